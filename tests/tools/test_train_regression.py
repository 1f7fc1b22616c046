"""tools/train_regression.py: rows that build upon each other, figures and tables of a tiny run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from repo_tools import load_tool

from mpn_d2.config import load_config

REPO = Path(__file__).resolve().parents[2]
TINY = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "2"]
TINY += ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
TINY += ["SOLVER.AMP.ENABLED", "False"]
PAPER_ROWS = ["baseline", "align", "sampling", "heatmap", "filter"]


tool = load_tool("train_regression")


@pytest.mark.parametrize("row", [*PAPER_ROWS, "psm", "joints"])
def test_rows_are_the_papers_configs(row):
    """Whatever MODEL.POSE_REGRESSION says in the config of that row."""
    name = {"psm": "R_50.yaml", "joints": "R_50_keypoint_align.yaml"}.get(row, f"R_50_{row}.yaml")
    paper = load_config(str(tool.CONFIGS / name)).MODEL.POSE_REGRESSION
    ours = load_config(str(tool.CONFIGS / "quick_drawn_v1_ablation.yaml"), tool.row_options(row))
    ours = ours.MODEL.POSE_REGRESSION
    # What R_18_small.yaml changes for all of them: a narrower branch, nearly L1.
    ours.HEATMAP.DIM = paper.HEATMAP.DIM
    ours.LOSS.SMOOTH_L1_BETA = paper.LOSS.SMOOTH_L1_BETA
    if ours.ALIGN.MODE == "none":
        assert ours.NUM_STAGES == 1
    assert ours == paper


@pytest.fixture()
def few_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws 3 test images in the place of all."""
    draw = tool.draw_data.__globals__["write_dataset"]

    def draw_few(*arguments: object, **options: object):
        options["count"] = options["count"] or 3
        return draw(*arguments, **{**options, "workers": 1})

    monkeypatch.setitem(tool.draw_data.__globals__, "write_dataset", draw_few)
    monkeypatch.setenv("DETECTRON2_DATASETS", os.environ.get("DETECTRON2_DATASETS", ""))


def run(folder: Path, *arguments: str) -> dict:
    given = ["--runs", str(folder / "runs"), "--output", str(folder / "docs"), "--images", "4"]
    tool.main(tool.parse_args([*given, *arguments, "--opts", *TINY]))
    return json.loads((folder / "docs" / "results" / "pose_regression.json").read_text())


def test_figures_and_tables_of_a_run_and_of_rows(tmp_path, few_test_images, monkeypatch, capsys):
    ranked_by, evaluate = [], tool.evaluate

    def noted_evaluate(cfg, **options):
        ranked_by.append(cfg.MODEL.POSE_REGRESSION.TEST_SCORE)
        return evaluate(cfg, **options)

    monkeypatch.setattr(tool, "evaluate", noted_evaluate)
    page = tmp_path / "docs" / "pose_regression.md"
    page.parent.mkdir()
    page.write_text("".join(f"<!-- table {n} -->\n<!-- end {n} -->\n" for n in tool.tables({})))
    alone = run(tmp_path, "--weights", "")
    assert {f"keypoints/{name}" for name in tool.COLUMNS.values()} <= set(alone["metrics"])
    assert alone["runs"]["keypoints"]["iterations x batch"] == {"joint": "2 x 2"}
    assert alone["runs"]["keypoints"]["trunk"] == "none"
    assert ranked_by == ["psm", "cls"]
    assert f"{tool.BY_CLASS}/AP" in alone["metrics"]
    assert Image.open(tmp_path / "docs" / "images" / "regression_drawn_v1.png").width > 300
    # A try: trained beside what whole runs leave.
    assert [x.name for x in (tmp_path / "runs").iterdir()] == ["try"]

    # From a trunk: what this run has just left.
    trunk = str(tmp_path / "runs" / "try" / "regression" / "model_final.pth")
    both = run(tmp_path, "--weights", trunk, "--rows", "baseline", "psm")
    rows = {name.split("/")[1] for name in both["metrics"] if name.startswith("rows/")}
    assert rows == {"baseline", "psm"}
    assert both["runs"]["rows/psm/keypoints"]["trunk"] == trunk
    assert {k: v for k, v in both["metrics"].items() if not k.startswith("rows/")} == (
        alone["metrics"]
    )
    assert all(table in page.read_text() for table in tool.tables(both).values())
    assert "`+ psm`" in capsys.readouterr().out


def test_two_photographs_by_heart(tmp_path, monkeypatch):
    """Without drawn data or a trunk; a try leaves the docs alone."""
    monkeypatch.setattr(tool, "draw_data", None)
    page = (tool.REPO / "docs" / "pose_regression.md").read_text()
    arguments = ["--runs", str(tmp_path), "--overfit", "--opts", *TINY]
    tool.main(tool.parse_args(arguments))
    found = json.loads((tmp_path / "try" / "results" / "pose_regression.json").read_text())
    assert {f"overfit_two/keypoints/{x}" for x in tool.COLUMNS.values()} <= set(found["metrics"])
    assert found["runs"]["overfit_two/keypoints"]["trunk"] == "none"
    assert (tmp_path / "try" / "regression_overfit_two" / "model_final.pth").is_file()
    assert (tool.REPO / "docs" / "pose_regression.md").read_text() == page
    with pytest.raises(ValueError, match="--overfit starts from nothing"):
        tool.main(tool.parse_args([*arguments[:3], "--weights", "x.pth"]))
    figures = {"metrics": {"overfit_two/keypoints/AP": 97.26}}
    assert "| 97.3 | - |" in tool.tables(figures)["overfit"]


def test_a_missing_trunk_is_told_before_anything_is_drawn(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"drawn-v1/model_final\.pth.*train_synthetic"):
        tool.main(tool.parse_args(["--runs", str(tmp_path)]))
    assert not list(tmp_path.iterdir())
