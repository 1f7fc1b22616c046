"""Text files are replaced whole or stay as they were."""

from __future__ import annotations

import os

import pytest

from mpn_d2.utils.files import write_text_atomically


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
