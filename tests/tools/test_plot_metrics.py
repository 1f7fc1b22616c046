"""Curves of runs: which folders, which panels, what is drawn."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image
from repo_tools import load_tool


@pytest.fixture(scope="module")
def tool():
    return load_tool("plot_metrics")


def write_run(folder, **curves):
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"iteration": i, **{name: values[i] for name, values in curves.items()}})
        for i in range(len(next(iter(curves.values()))))
    ]
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")
    return folder


def plot(tool, *arguments):
    tool.main(tool.parse_args([str(a) for a in arguments]))


def test_stage_folders_of_a_chain_come_in_order_of_training(tool, tmp_path):
    for age, stage in enumerate(("keypoint", "person", "assembly")):
        folder = write_run(tmp_path / "out" / stage, total_loss=[1.0])
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", (1000 + age, 1000 + age))
    runs = tool.find_runs([str(tmp_path / "out")])
    assert [path.name for path in runs.values()] == ["keypoint", "person", "assembly"]
    # A folder with a training of its own comes before its stages.
    (tmp_path / "out" / "metrics.json").write_text("{}")
    # A stage that wrote nothing yet is passed over.
    (tmp_path / "out" / "assembly" / "metrics.json").write_text("")
    runs = tool.find_runs([str(tmp_path / "out")])
    assert [path.name for path in runs.values()] == ["out", "keypoint", "person"]
    with pytest.raises(FileNotFoundError, match="no metrics.json in .*nothing"):
        tool.find_runs([str(tmp_path / "out"), str(tmp_path / "nothing")])


def test_picture_has_a_column_a_run_and_a_row_a_kind(tool, tmp_path, capsys):
    a = write_run(tmp_path / "a", total_loss=[3.0, 2.0], lr=[0.1, 0.1])
    b = write_run(tmp_path / "b", total_loss=[1.0, 0.0])
    plot(tool, a, "--output", tmp_path / "new" / "one.png")
    plot(tool, a, b, "--output", tmp_path / "two.png", "--keys", "total_loss")
    one, two = Image.open(tmp_path / "new" / "one.png"), Image.open(tmp_path / "two.png")
    # 1 + 5 inches a run wide, 3.2 inches a row high, 120 dots an inch.
    assert one.size == (720, 768)
    assert two.size == (1320, 384)
    assert "b: to iteration 1" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "new", "two.png"}


def test_repeated_iterations_are_drawn_once_with_their_last_value(tool, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", total_loss=[9.0, 8.0, 7.0])
    with (run / "metrics.json").open("a") as file:
        file.write('{"iteration": 1, "start_iteration": 1.0}\n')
        file.write('{"iteration": 1, "total_loss": 5.0}\n{"iteration": 2, "to')
    drawn = {}
    monkeypatch.setattr(tool, "draw", lambda runs, *args: drawn.update(runs))
    plot(tool, run, "--output", tmp_path / "x.png")
    assert drawn == {str(run): {"total_loss": [(0, 9.0), (1, 5.0)]}}


def test_smoothing_is_a_running_mean_shorter_at_the_ends(tool):
    values = np.array([1.0, 5.0, 3.0, 7.0])
    assert tool.smoothed(values, 1).tolist() == values.tolist()
    assert tool.smoothed(values, 3).tolist() == [3.0, 3.0, 5.0, 5.0]
    assert tool.smoothed(values, 2).tolist() == [3.0, 4.0, 5.0, 7.0]


def test_mistakes_are_named(tool, tmp_path):
    run = write_run(tmp_path / "run", total_loss=[1.0])
    with pytest.raises(ValueError, match="no run has AP; they have total_loss"):
        plot(tool, run, "--output", tmp_path / "x.png", "--keys", "AP")
    with pytest.raises(ValueError, match="--smooth is 0"):
        plot(tool, run, "--output", tmp_path / "x.png", "--smooth", 0)
    with pytest.raises(ValueError, match="nothing to plot among time"):
        plot(tool, write_run(tmp_path / "t", time=[1.0]), "--output", tmp_path / "x.png")
    (run / "metrics.json").write_text("")
    with pytest.raises(ValueError, match="holds no values yet"):
        plot(tool, run, "--output", tmp_path / "x.png")
    assert not list(tmp_path.glob("*.png"))
