"""Prints how the mutations ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

_SENT = "mpn_fuzz_counts"


def pytest_sessionfinish(session) -> None:
    """A process of pytest-xdist (-n) sends its counts to the one that prints."""
    from mutations import COUNTS

    sent = getattr(session.config, "workeroutput", None)
    if sent is not None:
        sent[_SENT] = [[*key, count] for key, count in COUNTS.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """pytest-xdist: a process has ended; without `workeroutput` where it crashed."""
    from mutations import COUNTS

    for kind, end, count in getattr(node, "workeroutput", {}).get(_SENT, ()):
        COUNTS[kind, end] += count


def pytest_terminal_summary(terminalreporter) -> None:
    from mutations import summary

    for line in summary():
        terminalreporter.write_line(line)
