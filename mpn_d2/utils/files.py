"""Files that other processes read: whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
