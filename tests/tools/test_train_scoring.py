"""tools/train_scoring.py: a tiny run with both rows; a try leaves the docs alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from repo_tools import load_tool

from mpn_d2.config import load_config
from mpn_d2.engine.checkpoint import PoseCheckpointer

REPO = Path(__file__).resolve().parents[2]
TINY = ["STAGES.SCORING.INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
TINY += ["STAGES.SCORING.SOLVER.MAX_ITER", "2", "STAGES.SCORING.SOLVER.IMS_PER_BATCH", "2"]
TINY += ["DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
TINY += ["MODEL.PRN.NODES", "8", "DATASETS.TRAIN", "('coco_sample_two',)"]
TINY += ["DATASETS.TEST", "('coco_sample_two',)"]


@pytest.fixture()
def tool():
    return load_tool("train_scoring")


def test_both_rows_of_a_try(tool, tmp_path, monkeypatch, capsys):
    from mpn_d2.data.datasets import register_pose_datasets

    # Photographs in the place of drawn people: what is drawn is tested elsewhere.
    monkeypatch.setattr(tool, "draw_data", lambda args, root: register_pose_datasets())
    model = build_model(load_config(str(REPO / "configs/quick/drawn_v1.yaml"), TINY[-8:]))
    PoseCheckpointer(model, str(tmp_path)).save("network")
    network = tmp_path / "network.pth"
    page = (REPO / "docs" / "pose_regression.md").read_text()
    given = ["--runs", str(tmp_path), "--weights", str(network), "--opts", *TINY]
    tool.main(tool.parse_args(given))
    results = json.loads((tmp_path / "try" / "results" / "pose_scoring.json").read_text())
    for row in tool.ROWS:
        assert {f"{row}/{name}" for name in tool.COLUMNS.values()} <= set(results["metrics"])
        assert results["runs"][row]["network"] == str(network)
    assert results["runs"]["with"]["iterations x batch"] == {"scoring": "2 x 2"}
    assert "with PSM" in capsys.readouterr().out
    assert (REPO / "docs" / "pose_regression.md").read_text() == page
    # Without a trained network there is nothing to rank.
    with pytest.raises(ValueError, match="would stay untrained"):
        tool.train_run(
            str(REPO / "configs/quick/drawn_v1_scored.yaml"),
            [*TINY, "OUTPUT_DIR", str(tmp_path / "cold"), "MODEL.WEIGHTS", ""],
        )


def test_a_missing_network_is_told_before_anything_is_drawn(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"drawn-v1/model_final\.pth.*train_synthetic"):
        tool.main(tool.parse_args(["--runs", str(tmp_path)]))
    assert not list(tmp_path.iterdir())
