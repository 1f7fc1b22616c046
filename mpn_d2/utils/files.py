"""Files that other processes read: whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO


def check_folder(folder: str | os.PathLike) -> None:
    """Raises an OSError where a folder cannot be made because a file is in its place or above."""
    for place in (Path(folder), *Path(folder).parents):
        if os.path.lexists(place) and not os.path.isdir(place):
            raise NotADirectoryError(f"folder {folder} cannot be made: {place} is a file")


def check_file(name: str, path: str | os.PathLike) -> None:
    """Raises an error for a file that cannot be written, before the work that fills it.

    Raises:
        ValueError: a folder is in its place; names the argument `name`.
        OSError: a file is in the place of its folder.
    """
    if os.path.isdir(path):
        raise ValueError(f"{name} {os.fspath(path)} is a folder: name a file")
    check_folder(os.path.dirname(path))


def make_folder(folder: str | os.PathLike) -> None:
    """Makes a folder and those above it where they are missing; OSError as `check_folder`."""
    check_folder(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a text file (UTF-8) so that a reader finds the old content or the new, never half.

    Missing folders are made; an interrupted write leaves the file as it was.
    """
    with replaced_when_done(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced_when_done(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, beside `path`; it becomes `path` when the block ends without an error.

    For files of any kind; otherwise as `write_text_atomically`.
    """
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class JsonListWriter:
    """A JSON file with one long list, written piece by piece: whole at the end, or not there.

    Leaving the context after an error leaves what was there before.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.count = 0
        self._partial = self.path.with_name(f"{self.path.name}.partial-{os.getpid()}")
        self._file: TextIO | None = None

    def __enter__(self) -> JsonListWriter:
        make_folder(self.path.parent)
        self._file = open(self._partial, "w", encoding="utf-8")
        self._file.write("[")
        return self

    def extend(self, rows: Iterable[object]) -> None:
        """Appends rows; NaN is a ValueError, as JSON has none."""
        for row in rows:
            self._file.write(",\n" if self.count else "\n")
            self._file.write(json.dumps(row, allow_nan=False))
            self.count += 1

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.write("\n]\n")
            self._file.close()
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)
