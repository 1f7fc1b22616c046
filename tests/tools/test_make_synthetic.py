"""The command that draws datasets: what it writes, prints and repeats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import make_synthetic


def test_draws_once_and_prints_the_difficulty(tmp_path, capsys):
    command = ["--dataset", "drawn-v1", "--split", "test", "--images", "2"]
    make_synthetic.main([*command, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "drawn-v1/test: drawn" in printed
    for row in ("mean_people", "overlapping", "cut_or_covered", "unannotated", "mean_largest_iou"):
        assert row in printed
    json_file = tmp_path / "drawn-v1" / "annotations" / "test.json"
    before = json_file.read_bytes()
    assert len(json.loads(before)["images"]) == 2
    make_synthetic.main([*command, "--output", str(tmp_path)])
    assert "complete, nothing to do" in capsys.readouterr().out
    assert json_file.read_bytes() == before


def test_workers_draw_the_same(tmp_path):
    for workers in ("1", "2"):
        make_synthetic.main(
            ["--dataset", "drawn-crowd-v1", "--split", "train", "--images", "3"]
            + ["--workers", workers, "--output", str(tmp_path / workers)]
        )
    for name in ("train/000003.png", "annotations/train.json"):
        one, two = (tmp_path / w / "drawn-crowd-v1" / name for w in ("1", "2"))
        assert one.read_bytes() == two.read_bytes()


def test_says_that_the_layouts_are_the_bundled_ones(tmp_path, capsys):
    make_synthetic.main(
        ["--dataset", "drawn-coco-v1", "--split", "test", "--images", "1"]
        + ["--output", str(tmp_path)]
    )
    assert "bundled layouts" in capsys.readouterr().out


def test_bad_layouts_are_one_line(tmp_path, capsys):
    from mpn_d2.engine.cli import run_command

    command = ["--dataset", "drawn-coco-v1", "--output", str(tmp_path), "--layouts", "nowhere"]
    with pytest.raises(SystemExit):
        run_command(lambda: make_synthetic.main(command))
    printed = capsys.readouterr().err.strip()
    assert "nowhere" in printed and "\n" not in printed
