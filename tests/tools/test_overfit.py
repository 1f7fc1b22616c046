"""tools/overfit.py as a function: every stage trained and measured on its own figure."""

from __future__ import annotations

import json

from repo_tools import load_tool

TINY = ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "SOLVER.MAX_ITER", "2"]
TINY += ["MODEL.PRN.NODES", "8", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]

overfit = load_tool("overfit")


def test_trains_and_measures_every_stage(tmp_path, capsys):
    output, results = tmp_path / "out", tmp_path / "new" / "overfit.json"
    for _ in range(2):
        line = ["--output", str(output), "--results", str(results), *TINY]
        overfit.main(overfit.parse_args(line))
        content = json.loads(results.read_text())
        assert set(content["metrics"]) == set(overfit.FIGURES)
        assert all(0 <= value <= 100 for value in content["metrics"].values())
        # Annotated keypoints in annotated boxes: something is right even of an untrained PRN.
        assert content["metrics"]["assembly_stage/keypoints/AP"] > 0
    assert (output / "model_final.pth").is_file() and content["seed"] == 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in overfit.FIGURES)


def test_missing_figures_are_printed_as_a_dash(tmp_path, capsys, monkeypatch):
    figures = {"keypoint_stage/keypoints/AP": None, "person_stage/bbox/AP": 1.25}
    monkeypatch.setattr(overfit, "train_and_measure", lambda cfg, options: figures)
    overfit.main(overfit.parse_args(["--output", str(tmp_path), *TINY]))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["keypoint_stage/keypoints/AP", "-"] in rows and ["person_stage/bbox/AP", "1.2"] in rows
