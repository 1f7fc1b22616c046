"""What stands in the lists of a config, which yacs does not look into."""

from __future__ import annotations

from collections.abc import Iterator

_NUMBER = (int, float)


def entries_fit(value: object, default: object) -> bool:
    """Whether the entries of a key's lists are of the type of its default's.

    Numbers where the default has numbers, strings where it has strings; anything but None where it
    is empty. True for a key without lists.
    """
    if not isinstance(default, (list, tuple)):
        return True
    usual, found = list(_entries(default)), list(_entries(value))
    for kind in (_NUMBER, str):
        if usual and all(isinstance(entry, kind) for entry in usual):
            return all(isinstance(entry, kind) for entry in found)
    return None not in found


def _entries(value: object) -> Iterator[object]:
    """What stands in a list, and in the lists in it; nothing for what is no list."""
    if isinstance(value, (list, tuple)):
        for entry in value:
            if isinstance(entry, (list, tuple)):
                yield from _entries(entry)
            else:
                yield entry
