"""tools/inference_table.py: rows are what they are called, a try leaves the docs alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from repo_tools import load_tool

from mpn_d2.config import load_config
from mpn_d2.engine.stages import evaluate
from mpn_d2.utils.results import flat_metrics

REPO = Path(__file__).resolve().parents[2]
TINY = [
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.MAX_SIZE_TEST", "96", "MODEL.PRN.NODES", "8"),
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", "5"),
]


@pytest.fixture(scope="module")
def tool():
    return load_tool("inference_table")


def test_a_try_trains_and_measures_beside_the_docs(tool, tmp_path, capsys):
    page = (REPO / "docs" / "inference.md").read_text()
    stages = [f"STAGES.{stage}.SOLVER.MAX_ITER" for stage in ("KEYPOINT", "PERSON", "ASSEMBLY")]
    once = [word for key in stages for word in (key, "1")]
    args = tool.parse_args(
        ["--images", "sample", "--runs", str(tmp_path), "--rows", "single", "flip", "poses_soft"]
        + ["--opts", *TINY, *once]
    )
    tool.main(args)
    results = json.loads((tmp_path / "try" / "inference.json").read_text())
    rows = {f"sample/{part}/{row}" for part in ("unseen", "fitted") for row in args.rows}
    assert set(results["runs"]) == rows
    assert set(tool.tables(results)) == {"sample/unseen", "sample/fitted"}
    assert all(f"{row}/keypoints/AP" in results["metrics"] for row in rows)
    commands = {row: results["runs"][f"sample/unseen/{row}"]["row_command"] for row in args.rows}
    assert "TTA" not in commands["single"] and "TTA.FLIP True" in commands["flip"]
    assert "--eval-only" in commands["single"] and "MODEL.PRN.NODES 8" in commands["single"]
    assert (tmp_path / "try" / "demo" / "model_final.pth").is_file()
    assert not (tmp_path / "demo").exists()
    assert (REPO / "docs" / "inference.md").read_text() == page
    assert "| `poses_soft` |" in capsys.readouterr().out
    for row in ("single", "flip", "poses_soft"):
        assert_figures_are_the_command_s(results, row, tmp_path / row)


def assert_figures_are_the_command_s(results: dict, row: str, output: Path) -> None:
    """One pass for all rows gives what each row's own command does."""
    words = shlex.split(results["runs"][f"sample/unseen/{row}"]["row_command"])
    options = [*words[words.index("--eval-only") + 1 :], "OUTPUT_DIR", str(output)]
    cfg = load_config(str(REPO / words[words.index("--config-file") + 1]), options)
    found = evaluate(cfg, weights=cfg.MODEL.WEIGHTS)
    for part, dataset in (("unseen", "coco_sample_val"), ("fitted", "coco_sample_train")):
        for name, value in flat_metrics(found[dataset]).items():
            assert results["metrics"][f"sample/{part}/{row}/{name}"] == value, (row, name)


def test_rows_are_one_step_or_all_up_to_it(tool):
    rows = tool.row_options(tool.IMAGES["drawn"], Path("runs"))
    assert rows["single"] == []
    steps = [row for row in rows if row in tool.STEPS]
    assert steps == list(tool.STEPS)
    assert "+flip" not in rows and rows["+scales"] == [*rows["flip"], *rows["scales"]]
    assert rows["+oks_nms"] == [word for step in steps for word in rows[step]]
    assert rows["poses"][-2:] == ["OKS_NMS.MODE", "hard"]
    assert "REFINE.CONFIG" not in str(tool.row_options(tool.IMAGES["sample"], Path("runs")))


def test_an_unknown_row_is_named(tool, tmp_path):
    args = tool.parse_args(["--runs", str(tmp_path), "--rows", "flop"])
    with pytest.raises(ValueError, match=r"--rows flop: choose of single, flip, scales"):
        tool.main(args)


def test_figures_that_cannot_be_written_end_it_before_any_training(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "prepare_data", None)
    args = tool.parse_args(["--runs", str(tmp_path), "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="--output .* is a folder: name a file"):
        tool.main(args)
