"""Values of files in messages: short, and without characters that act on a terminal."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Iterable

# Characters of a text, entries of a list, texts of a row: enough to find the place by.
_TEXT, _ENTRIES, _LISTED = 60, 6, 10
_PATH = 500
_PLAIN = 2**63


def _shortener() -> reprlib.Repr:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _TEXT
    short.maxlist = short.maxtuple = short.maxdict = _ENTRIES
    short.maxlevel = 2
    return short


_REPR = _shortener()


def short(value: object) -> str:
    """`repr(value)`, with the middle of what is long left out."""
    return _REPR.repr(value)


def plain(value: object) -> str:
    """A number or a harmless short text as it is, anything else as `short` has it."""
    if isinstance(value, str):
        harmless = value.isprintable() and value.strip() and len(value) <= _TEXT
        return value if harmless else short(value)
    # Nearly all, and quicker.
    return str(value) if type(value) is int and abs(value) < _PLAIN else short(value)


def listed(values: Iterable[object]) -> str:
    """Several values as `plain` has them, the first ones of many."""
    values = list(values)
    names = [plain(value) for value in values[:_LISTED]]
    return ", ".join([*names, "..."] if len(values) > _LISTED else names)


def shown_path(path: str) -> str:
    """A path as it is, or escaped where it would act on a terminal; the end of a very long one."""
    path = path if path.isprintable() else repr(path)
    return path if len(path) <= _PATH else f"...{path[-_PATH:]}"


def is_clean(text: str) -> bool:
    """Whether a text has neither control characters nor halves of characters (lone surrogates)."""
    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)
