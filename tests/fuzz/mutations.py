"""Broken and hostile input, made by hypothesis, and what a command may answer to it.

A mutation is a list of edits of a good document: an entry is deleted, repeated, emptied, or takes
the place of something of another type or size. `answer` runs what reads the document and says how
it ended: in a result, or in one clear line as `run_command` prints it. Anything else (another
exception, a message of several lines, or one that names neither file nor key) is a failure.

Such mutations seldom come to what is known to be dangerous: `places` and `put` are for those that
change one thing in a wanted way.

MPN_FUZZ is the number of mutations of a kind (50; `make fuzz`: 1,000).
"""

from __future__ import annotations

import copy
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mpn_d2.engine.cli import _MISTAKES, _one_line

NUMBER = int(os.environ.get("MPN_FUZZ", "50"))
# How mutations of each kind ended: printed by `make fuzz` (tests/fuzz/conftest.py).
COUNTS: Counter[tuple[str, str]] = Counter()

FUZZ = settings(
    max_examples=NUMBER,
    deadline=None,
    derandomize=NUMBER <= 50,  # the normal tests are the same every time
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)

# What stands where something else should.
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**70), 0.5, -0.0]),
    st.sampled_from([10**30, 10**300, 1e308, -1e308]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.sampled_from(
        ["", "0", "person", "../../../etc/passwd", "/dev/zero", "a" * 5000, "\u0000", "\ud800x"]
    ),
    st.text(max_size=8),
    st.sampled_from([[], {}, [[]], [{}], [None], {"a": []}, [1, 2, 3], [math.nan] * 51]),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=7),
)
EDITS = st.sampled_from(["replace", "delete", "repeat", "shorten", "rename", "insert"])
# Where: one number a step down, taken modulo the number of entries there.
PLACES = st.lists(st.integers(0, 10**6), min_size=1, max_size=6)
MUTATIONS = st.lists(st.tuples(PLACES, EDITS, JUNK), min_size=1, max_size=3)


def mutated(document: object, mutations: list[tuple[list[int], str, object]]) -> object:
    """A copy of a JSON document after some edits; the document itself stays."""
    document = copy.deepcopy(document)
    for places, edit, junk in mutations:
        _edit(document, places, edit, copy.deepcopy(junk))
    return document


def _edit(document: object, places: list[int], edit: str, junk: object) -> None:
    holder, key = None, None
    inner = document
    for place in places:
        if not isinstance(inner, dict | list) or not inner:
            break
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        holder, key = inner, keys[place % len(keys)]
        inner = inner[key]
    if holder is None:
        return
    if edit == "replace":
        holder[key] = junk
    elif edit == "delete":
        del holder[key]
    elif edit == "shorten" and isinstance(inner, dict | list | str):
        holder[key] = (
            type(inner)(list(inner.items())[::2]) if isinstance(inner, dict) else inner[1:]
        )
    elif isinstance(holder, list):
        holder.insert(key, inner if edit == "repeat" else junk)
    elif edit == "rename":
        holder[f"{key}_"] = holder.pop(key)
    else:
        holder["unknown"] = junk


def places(document: object, *kinds: type, under: tuple = ()) -> list[tuple]:
    """Ways (keys and indices) to all values of the given types in a JSON document."""
    found = [under] if type(document) in kinds and under else []
    if isinstance(document, dict | list):
        entries = document.items() if isinstance(document, dict) else enumerate(document)
        for key, inner in entries:
            found += places(inner, *kinds, under=(*under, key))
    return found


DELETED = object()


def put(document: object, place: tuple, value: object) -> object:
    """A copy of a document with `value` in a place; DELETED: without what is there."""
    document = copy.deepcopy(document)
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    if value is DELETED:
        del holder[place[-1]]
    else:
        holder[place[-1]] = copy.deepcopy(value)
    return document


def answer(kind: str, work: Callable[[], object], *names: str) -> str:
    """ "result" or "refused"; what fits neither is counted as "else" and raised.

    Args:
        kind: of the mutations, for the counts.
        work: reads the document and works with it.
        names: of which a message must name at least one; none: it must only be one line.
    """
    try:
        ended = _ended(work, names)
    except BaseException:
        COUNTS[kind, "else"] += 1
        raise
    COUNTS[kind, ended] += 1
    return ended


def _ended(work: Callable[[], object], names: tuple[str, ...]) -> str:
    try:
        work()
    except _MISTAKES as error:
        line = _one_line(error)
        assert line, f"{type(error).__name__} without a message"
        assert len(line) < 2000, f"a message of {len(line)} characters: {line[:200]} ..."
        raw = [c for c in line if unicodedata.category(c) in ("Cc", "Cs")]
        assert not raw or not names, f"raw control characters {raw[:5]} in a message"
        assert not names or any(name in line for name in names), f"names none of {names}: {line}"
        return "refused"
    return "result"


def summary() -> list[str]:
    """A line a kind: how its mutations ended."""
    lines = []
    for kind in sorted({kind for kind, _ in COUNTS}):
        results, refused, other = (COUNTS[kind, end] for end in ("result", "refused", "else"))
        lines.append(
            f"{kind}: {results + refused + other} mutations, {results} ended in a result, "
            f"{refused} in one clear line, {other} in anything else"
        )
    return lines
