"""tools/train_synthetic.py: figures by group, the table of variants, and that training learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from repo_tools import load_tool

REPO = Path(__file__).resolve().parents[2]
TINY = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "2"]
TINY += ["SOLVER.IMS_PER_BATCH", "2", "MODEL.PRN.NODES", "8", "DATALOADER.NUM_WORKERS", "0"]
TINY += ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]


tool = load_tool("train_synthetic")


@pytest.fixture()
def few_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws 3 test images in the place of all."""
    draw = tool.write_dataset

    def draw_few(*arguments: object, **options: object):
        options["count"] = options["count"] or 3
        return draw(*arguments, **{**options, "workers": 1})

    monkeypatch.setattr(tool, "write_dataset", draw_few)
    # The tool sets it; put back after the test.
    monkeypatch.setenv("DETECTRON2_DATASETS", "")


def run(folder: Path, *arguments: str) -> dict:
    output = ["--runs", str(folder / "runs"), "--output", str(folder / "docs"), "--images", "4"]
    tool.main(tool.parse_args([*output, *arguments, *TINY]))
    return json.loads((folder / "docs" / "results" / "synthetic.json").read_text())


def test_figures_of_the_run_and_of_each_variant_stand_side_by_side(
    tmp_path, few_test_images, capsys
):
    alone = run(tmp_path)
    assert {"keypoints/AP", "bbox/AP", "sem_seg/IoU-person"} <= set(alone["metrics"])
    assert set(alone["runs"]) == {"drawn-v1"} and alone["runs"]["drawn-v1"]["seconds"] > 0
    for name in ("drawn_v1.png", "drawn_v1_curves.png"):
        assert Image.open(tmp_path / "docs" / "images" / name).width > 300

    table = run(tmp_path, "--ablation")
    rows = {name.split("/")[1] for name in table["metrics"] if name.startswith("ablation/")}
    assert rows == set(tool.ABLATION)
    assert {k: v for k, v in table["metrics"].items() if "ablation" not in k} == alone["metrics"]
    schedules = [table["runs"][f"ablation/{row}"]["iterations x batch"] for row in rows]
    assert {"joint": "2 x 2", "assembly": "2 x 2"} in schedules
    printed = capsys.readouterr().out
    assert all(f"| ablation/{row} |" in printed for row in rows)

    # What was trained before is not trained again; its time counts.
    again = run(tmp_path)
    assert again["metrics"] == table["metrics"]
    assert again["runs"]["drawn-v1"]["seconds"] > alone["runs"]["drawn-v1"]["seconds"]


def test_other_test_settings_test_again_and_other_training_settings_train_again(
    tmp_path, few_test_images
):
    weights = tmp_path / "runs" / "drawn-v1" / "assembly" / "model_final.pth"

    def trained(*options: str) -> int:
        run(tmp_path, *options)
        return weights.stat().st_mtime_ns

    first = trained()
    assert trained("MODEL.RETINANET.NMS_THRESH_TEST", "0.4", "INPUT.MAX_SIZE_TEST", "96") == first
    assert trained("SOLVER.BASE_LR", "0.01") > first


def test_three_minutes_on_drawn_people_teach_every_part(tmp_path):
    """From scratch at half size, tested on the 200 unseen images of the long run."""
    command = [sys.executable, str(REPO / "tools" / "train_synthetic.py")]
    command += ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path), "--images", "600"]
    command += ["INPUT.MIN_SIZE_TRAIN", "(160,)", "INPUT.MAX_SIZE_TRAIN", "240"]
    command += ["INPUT.MIN_SIZE_TEST", "200", "INPUT.MAX_SIZE_TEST", "300"]
    command += ["STAGES.KEYPOINT.SOLVER.IMS_PER_BATCH", "8", "SOLVER.WARMUP_ITERS", "30"]
    command += ["STAGES.KEYPOINT.SOLVER.MAX_ITER", "280", "STAGES.PERSON.SOLVER.MAX_ITER", "200"]
    command += ["STAGES.ASSEMBLY.SOLVER.MAX_ITER", "100"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "results" / "synthetic.json").read_text())["metrics"]
    # Measured: keypoint AP50 5.4 (AP 1.0), box AP 22.6, IoU 51.2; an untrained network scores 0, 0
    # and less than a tenth.
    assert metrics["keypoints/AP50"] > 2
    assert metrics["bbox/AP"] > 10
    assert metrics["sem_seg/IoU-person"] > 40
