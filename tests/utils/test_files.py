"""Text files are replaced whole or stay as they were."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import pytest
import torch

from mpn_d2.utils.files import (
    JsonListWriter,
    check_file,
    failed_write,
    make_folder,
    naming,
    partial_beside,
    replaced_when_done,
    write_text_atomically,
)


def test_writes_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    for text in ("one ü\n", "two"):
        write_text_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(path.parent) == ["a.txt"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text_atomically(str(path), "old")

    def dies(*args):
        assert path.read_text() == "old"
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("old")
    for folder in ("file", "file/a/b"):
        words = f"folder .*{folder} cannot be made: .*/file is a file$"
        with pytest.raises(OSError, match=words):
            make_folder(tmp_path / folder)
        with pytest.raises(OSError, match=words):
            write_text_atomically(tmp_path / folder / "a.txt", "new")
        with pytest.raises(OSError, match=words), JsonListWriter(tmp_path / folder / "a.json"):
            pass
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"
    (tmp_path / "link").symlink_to(tmp_path / "new", target_is_directory=True)
    make_folder(tmp_path / "new" / "a")
    make_folder(tmp_path / "link" / "b")
    assert sorted(os.listdir(tmp_path / "new")) == ["a", "b"]


def test_json_list_is_written_piece_by_piece(tmp_path):
    rows = [{"a": 1, "b": [0.5, "ü"]}, {}, 3]
    path = tmp_path / "new" / "a.json"
    with JsonListWriter(path) as writer:
        writer.extend(rows[:1])
        writer.extend([])
        writer.extend(iter(rows[1:]))
        assert not path.exists()
    assert json.loads(path.read_text()) == rows and writer.count == 3
    with JsonListWriter(str(path)):
        pass
    assert json.loads(path.read_text()) == [] and os.listdir(path.parent) == ["a.json"]


@pytest.mark.parametrize("row", [float("nan"), object()])
def test_json_list_that_fails_leaves_the_old_file(tmp_path, row):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises((ValueError, TypeError)), JsonListWriter(path) as writer:
        writer.extend([1, {"a": row}])
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is full")
def test_a_full_disk_names_the_file(tmp_path):
    tensors = {"a": torch.zeros(9)}
    path = tmp_path / "a.pth"
    for write in (
        lambda: open("/dev/full", "wb", buffering=0).write(b"a"),
        lambda: torch.save(tensors, "/dev/full"),  # torch's own writer
        lambda: torch.save(tensors, open("/dev/full", "wb", buffering=0)),
    ):
        with pytest.raises(OSError) as caught, replaced_when_done(path) as partial:
            partial.write_text("half")
            write()
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
        assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_first_write(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    half = partial_beside(tmp_path.parent / "a.json").name
    assert half.startswith("a.json.partial-")
    own, host = f"-{os.getpid()}", half.split("-")[1]
    gone = [half.replace(own, f"-{ended.pid}"), half.replace(own, f"-{ended.pid}.mp4")]
    kept = [
        half.replace("a.json", "b.json"),  # this process writes it
        half.replace(own, "-1"),  # and process 1 runs
        gone[0].replace(host, "elsewhere"),
        "a.json.partial-notes",
    ]
    gone.append(gone[0].replace("a.json", "c.json"))
    for name in (*gone, *kept):
        (tmp_path / name).write_text("half")
    write_text_atomically(tmp_path / "a.json", "whole")
    assert set(os.listdir(tmp_path)) == {"a.json", *kept}
    assert partial_beside(tmp_path / "none" / "a.mp4", suffix=".mp4").suffix == ".mp4"


def test_other_errors_are_no_full_disks(tmp_path):
    for error in (RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "no", "b")):
        with pytest.raises(type(error)) as caught, naming(tmp_path / "a"):
            raise error
        assert caught.value is error and failed_write(error) is None


def test_a_file_that_cannot_be_written_is_told_before(tmp_path):
    (tmp_path / "file").write_text("old")
    check_file("--output", tmp_path / "file")
    check_file("--output", tmp_path / "new" / "a.json")
    check_file("--output", "a.json")
    with pytest.raises(ValueError, match=f"--output {tmp_path} is a folder: name a file"):
        check_file("--output", tmp_path)
    with pytest.raises(OSError, match="file cannot be made: .*/file is a file"):
        check_file("--output", str(tmp_path / "file" / "a.json"))
    assert os.listdir(tmp_path) == ["file"]
