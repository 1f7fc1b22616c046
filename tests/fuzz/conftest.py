"""Prints how the mutations ended."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def pytest_terminal_summary(terminalreporter) -> None:
    from mutations import COUNTS

    for kind in sorted({kind for kind, _ in COUNTS}):
        results, refused = COUNTS[kind, "result"], COUNTS[kind, "refused"]
        terminalreporter.write_line(
            f"{kind}: {results + refused} mutations, {results} ended in a result, {refused} in one "
            "clear line, 0 in anything else"
        )
