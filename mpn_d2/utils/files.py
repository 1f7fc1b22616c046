"""Files that other processes read: whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

# Between a file's name and the machine and process that writes it.
_PARTIAL = ".partial-"
# No space, no quota, a file larger than is allowed.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch says of a file that it could not write whole.
_TORCH = re.compile(r"inline_container.*(failed writing|unexpected pos)|iostream error", re.DOTALL)


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


def partial_beside(path: str | os.PathLike, *, suffix: str = "") -> Path:
    """Where the content of a file is written before it takes the file's name: beside it.

    What killed processes left so in that folder goes, the first time that this one asks.

    Args:
        path: of the file that it becomes.
        suffix: at the end, for what tells a file's kind by it.
    """
    path = Path(path)
    _remove_partials(os.path.abspath(path.parent))
    return path.with_name(f"{path.name}{_PARTIAL}{_host()}-{os.getpid()}{suffix}")


@functools.cache
def _remove_partials(folder: str) -> None:
    """Removes partial files whose process of this machine has ended; once: a folder may hold
    thousands. Those of other machines that share the folder may still be written."""
    end = re.compile(f".+{re.escape(_PARTIAL + _host())}-([0-9]+)([.][^.]*)?")
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        found = end.fullmatch(name)
        if found and not _is_running(int(found[1])):
            Path(folder, name).unlink(missing_ok=True)


def _host() -> str:
    return re.sub("[^A-Za-z0-9]", "_", socket.gethostname())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's, or no number of a process
    return True


@contextlib.contextmanager
def replaced_when_done(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, beside `path`; it becomes `path` when the block ends without an error.

    For files of any kind; otherwise as `write_text_atomically`.
    """
    path = Path(path)
    make_folder(path.parent)
    partial = partial_beside(path)
    try:
        with naming(path):
            yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Inside, an error for lack of space becomes an OSError that names the file at `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        failed = failed_write(error)
        if failed is None:
            raise
        name = failed.filename or os.fspath(path)
        raise OSError(failed.errno, failed.strerror, name) from error


def failed_write(error: BaseException | None) -> OSError | None:
    """What stands behind an error if that is a lack of space on a disk, None for any other.

    torch tells of it in RuntimeErrors of its own, and an error may come while another is handled.
    """
    failed = None
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return error
        if isinstance(error, RuntimeError) and _TORCH.search(str(error)):
            failed = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return failed


class JsonListWriter:
    """A JSON file with one long list, written piece by piece: whole at the end, or not there.

    Leaving the context after an error leaves what was there before.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.count = 0
        self._partial = partial_beside(self.path)
        self._file: TextIO | None = None

    def __enter__(self) -> JsonListWriter:
        make_folder(self.path.parent)
        self._file = open(self._partial, "w", encoding="utf-8")
        self._file.write("[")
        return self

    def extend(self, rows: Iterable[object]) -> None:
        """Appends rows; NaN is a ValueError, as JSON has none."""
        with naming(self.path):
            for row in rows:
                self._file.write(",\n" if self.count else "\n")
                self._file.write(json.dumps(row, allow_nan=False))
                self.count += 1

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            with naming(self.path):
                if kind is None:
                    self._file.write("\n]\n")
                self._file.close()
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)
