"""The scene of the faults, and how many there were."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    from fault_kinds import Scene
    from fault_runs import Commands

    root = tmp_path_factory.mktemp("faults").resolve()
    # Detectron2 reads it when it is imported, in the server.
    before = os.environ.get("DETECTRON2_DATASETS")
    os.environ["DETECTRON2_DATASETS"] = str(root / "data")
    try:
        commands = Commands()
    finally:
        if before is None:
            del os.environ["DETECTRON2_DATASETS"]
        else:
            os.environ["DETECTRON2_DATASETS"] = before
    yield Scene(root, commands)
    commands.close()


def pytest_terminal_summary(terminalreporter) -> None:
    if "fault_kinds" not in sys.modules:
        return
    from fault_kinds import COUNTS, KINDS

    for kind in KINDS:
        faults, ended, answered, none, lost, unanswered = (
            COUNTS[kind, how]
            for how in ("faults", "ended", "answered", "without effect", "lost", "unanswered")
        )
        if faults:
            terminalreporter.write_line(
                f"{kind}: {faults} faults, {ended} ended the command, {answered} it answered in "
                f"one line, {none} without effect; lost {lost}, unanswered {unanswered}"
            )
    if COUNTS["disk", "faults"]:
        small = COUNTS["disk", "small disk"]
        limits = COUNTS["disk", "faults"] - small
        terminalreporter.write_line(
            f"disks: {small} small ones mounted, {limits} times a limit on the size of files "
            "instead (who may not mount)"
        )
    if COUNTS:
        total = {how: sum(COUNTS[kind, how] for kind in KINDS) for how in ("faults", "lost")}
        unanswered = sum(COUNTS[kind, "unanswered"] for kind in KINDS)
        terminalreporter.write_line(
            f"all kinds: {total['faults']} faults, lost {total['lost']}, unanswered {unanswered}"
        )
