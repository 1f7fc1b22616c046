"""Commands that are killed, run out of disk, lose their data or a process, and are repeated.

In `make test` some commands suffer a fault, each kind of fault at least once; `make faults` sets
MPN_FAULTS, the number of faults of each kind for each command.
"""

from __future__ import annotations

import os

import pytest
from fault_cases import cases
from fault_runs import Lost, Unanswered

CASES = {case.name: case for case in cases()}
NUMBER = int(os.environ.get("MPN_FAULTS", "0"))
# What `make test` tries, cheap ones; the seeds are the first of `make faults`.
SHORT = [
    ("training", "moment"),
    ("training", "worker"),
    ("chain", "file"),
    ("evaluation", "data"),
    ("scores", "write"),
    ("images", "file"),
    ("video", "disk"),
    ("drawn", "disk"),
    ("drawn by two", "worker"),
    ("torchscript", "file"),
]
# Faults that may come too late before another moment is tried.
TRIES = 4
LONG = [(case.name, kind) for case in CASES.values() for kind in case.kinds]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "kind"), LONG if NUMBER else SHORT)
def test_nothing_is_lost(scene, name, kind):
    failures, with_effect = [], 0
    for seed in range(NUMBER or TRIES):
        try:
            with_effect += scene.play(CASES[name], kind, seed)
        except (Lost, Unanswered) as error:
            failures.append(f"{type(error).__name__}: {error}")
        if not NUMBER and (with_effect or failures):
            break
    assert not failures, "\n\n".join(failures)
    # Faults that come too late say nothing. Some commands read all their data in one moment, at
    # their beginning: there the first fault alone is sure to come in time.
    needed = 1 if kind == "data" else max(NUMBER // 2, 1)
    assert with_effect >= needed, f"{with_effect} of {NUMBER or TRIES} had an effect"
