"""Rows of tried versions: what a run of pytest counts to, and what the page shows of it."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch
from repo_tools import load_tool

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    return load_tool("try_versions")


@pytest.fixture()
def some_tests(tmp_path) -> Path:
    (tmp_path / "conftest.py").write_text("")
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): pass\n"
        "def test_c(): assert 0\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError\n"
        "def test_d(broken): pass\n"
        "@pytest.mark.skip\n"
        "def test_e(): pass\n"
    )
    return file


def test_a_run_is_counted_and_recorded(tool, some_tests, tmp_path):
    output = tmp_path / "versions.json"
    args = tool.parse_args(["--tests", str(some_tests), "--output", str(output)])
    with pytest.raises(ValueError, match="2 tests failed with these versions"):
        tool.main(args)
    content = json.loads(output.read_text())
    [(name, versions)] = content["versions"].items()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert content["metrics"] == {f"{name}/passed": 2, f"{name}/failed": 2, f"{name}/skipped": 1}
    with pytest.raises(ValueError, match="pytest ended with exit code 4: nothing is recorded"):
        tool.run_tests([str(tmp_path / "gone.py")])


def test_rows_are_added_and_replaced(tool, tmp_path):
    file = tmp_path / "versions.json"
    old = {"python": "3.12.1", "torch": "2.13.0", "torchvision": "0.28.0"}
    old |= {"numpy": "2.1.0", "detectron2": "0.7.2"}
    for failed in (3, 0):
        counts = {"passed": 1200 - failed, "failed": failed, "skipped": 1}
        tool.record(file, old, counts, 5.0)
    tool.record(file, {**old, "python": "3.11.7"}, {"passed": 7, "failed": 0, "skipped": 0}, 1.0)
    table = tool.tables(json.loads(file.read_text()))["tried"].splitlines()
    assert table[0].startswith("| python | torch |") and table[1].count("---") == 8
    assert table[2:] == [
        "| 3.11.7 | 2.13.0 | 0.28.0 | 2.1.0 | 0.7.2 | 7 | 0 | 0 |",
        "| 3.12.1 | 2.13.0 | 0.28.0 | 2.1.0 | 0.7.2 | 1,200 | 0 | 1 |",
    ]


def test_the_tests_that_are_run_exist(tool, capsys):
    assert all((REPO / path).exists() for path in tool.TESTS)
    with pytest.raises(SystemExit):
        tool.parse_args(["--tests", "tests/codecs"])
    assert "name another --output" in capsys.readouterr().err


def test_page_shows_what_was_tried_and_what_is_pinned(tool):
    text = (REPO / "docs" / "versions.md").read_text()
    results = tool.read_results(tool.RESULTS)
    table = tool.tables(results)["tried"] + "\n" if results else ""
    assert f"<!-- table tried -->\n{table}<!-- end tried -->" in text
    pins = dict(x.split("==") for x in (REPO / "constraints.txt").read_text().split() if "==" in x)
    for name in ("torch", "torchvision", "numpy"):
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert row.endswith(f"| {pins[name]} |")
