"""Text files are replaced whole or stay as they were."""

from __future__ import annotations

import json
import os

import pytest

from mpn_d2.utils.files import JsonListWriter, write_text_atomically


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
