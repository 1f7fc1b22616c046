#!/usr/bin/env python
"""Runs a quick part of the tests with the versions of this environment; fills docs/versions.md.

    make versions TORCH=2.13.0 PYTHON=python3.12

makes an environment with these versions (docs/versions.md) and runs this file in it. Alone, it
tries the environment that it is started in:

    python tools/try_versions.py
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import detectron2
import numpy
import torch
import torchvision

from mpn_d2.engine.cli import run_command
from mpn_d2.utils.doc_tables import fill_tables
from mpn_d2.utils.results import read_results, write_results

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "docs" / "results" / "versions.json"
PAGE = REPO / "docs" / "versions.md"
# Every system trains, predicts, is saved and loaded; layers, codecs and configs by their values.
TESTS = (
    "tests/test_contract.py",
    "tests/test_config.py",
    "tests/structures",
    "tests/codecs",
    "tests/layers",
    "tests/data/test_dataset_mapper.py",
    "tests/engine/test_checkpoint.py",
    "tests/engine/test_pose_predictor.py",
)
COUNTS = ("passed", "failed", "skipped")
VERSIONS = ("python", "torch", "torchvision", "numpy", "detectron2")


def versions_here() -> dict[str, str]:
    """Of what this Python imports."""
    modules = (torch, torchvision, numpy, detectron2)
    found = {module.__name__: module.__version__ for module in modules}
    return {"python": platform.python_version(), **found}


def run_tests(tests: list[str]) -> dict[str, int]:
    """Counts of a run of pytest, whose output is shown.

    Raises:
        ValueError: it did not come to its end.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
        code = subprocess.run(command, cwd=REPO).returncode
        if code not in (0, 1) or not report.is_file():
            raise ValueError(f"pytest ended with exit code {code}: nothing is recorded")
        return counts_of(report)


def counts_of(report: Path) -> dict[str, int]:
    """Passed, failed (errors are failures) and skipped tests of a JUnit file."""
    (suite,) = ET.parse(report).getroot().iter("testsuite")
    total, failures, errors, skipped = (
        int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def record(path: Path, versions: dict[str, str], counts: dict[str, int], seconds: float) -> None:
    """Adds a row to the results, in the place of one with the same versions."""
    before = read_results(path)
    name = "_".join(versions[key] for key in VERSIONS)
    metrics = {**before.get("metrics", {}), **{f"{name}/{k}": v for k, v in counts.items()}}
    rows = {**before.get("versions", {}), name: versions}
    write_results(path, metrics, seconds=seconds, seed=0, versions=rows, tests=list(TESTS))


def tables(results: dict) -> dict[str, str]:
    """The table of docs/versions.md: a row for each set of versions that was tried."""
    lines = ["| " + " | ".join([*VERSIONS, *COUNTS]) + " |", "|" + "---|" * 8]
    for name, versions in sorted(results["versions"].items()):
        counts = [f"{results['metrics'][f'{name}/{key}']:,}" for key in COUNTS]
        lines.append("| " + " | ".join([*(versions[key] for key in VERSIONS), *counts]) + " |")
    return {"tried": "\n".join(lines)}


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    counts = run_tests(args.tests)
    record(Path(args.output), versions_here(), counts, time.perf_counter() - start)
    print(f"{args.output}: {', '.join(f'{n} {key}' for key, n in counts.items())}")
    if Path(args.output).resolve() == RESULTS:
        fill_tables(PAGE, tables(read_results(args.output)))
    if counts["failed"]:
        raise ValueError(f"{counts['failed']} tests failed with these versions, see above")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default=str(RESULTS), metavar="F")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), metavar="PATH")
    args = parser.parse_args(arguments)
    if args.tests != list(TESTS) and Path(args.output).resolve() == RESULTS:
        parser.error("--tests makes other figures: name another --output")
    return args


if __name__ == "__main__":
    run_command(lambda: main(parse_args()))
