"""tools/train_unified.py, draw_sequence.py, draw_side_by_side.py: figures, tables, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.modeling import build_model
from PIL import Image
from repo_tools import load_tool

from mpn_d2.config import load_config
from mpn_d2.engine.checkpoint import PoseCheckpointer

REPO = Path(__file__).resolve().parents[2]
TINY = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "1"]
TINY += ["STAGES.JOINT.SOLVER.MAX_ITER", "1", "STAGES.JOINT.SOLVER.IMS_PER_BATCH", "1"]
TINY += ["MODEL.SEQUENCE.MAX_ITERATIONS", "2", "MODEL.HOURGLASS.WIDTH", "8"]
TINY += ["MODEL.HOURGLASS.GROWTH", "4", "DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
TINY += ["SOLVER.AMP.ENABLED", "False", "MODEL.PRN.NODES", "8"]


tool, picture_tool = load_tool("train_unified"), load_tool("draw_sequence")
beside_tool = load_tool("draw_side_by_side")


@pytest.fixture()
def base(tmp_path, monkeypatch) -> str:
    """A base network's checkpoint; 3 test images in the place of all."""
    draw = tool.write_dataset

    def draw_few(*arguments: object, **options: object):
        options["count"] = options["count"] or 3
        return draw(*arguments, **{**options, "workers": 1})

    monkeypatch.setattr(tool, "write_dataset", draw_few)
    # The tool sets it; put back after the test.
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    options = ["MODEL.PRN.NODES", "8", "MODEL.DEVICE", "cpu"]
    model = build_model(load_config(str(REPO / "configs/quick/drawn_v1.yaml"), options))
    PoseCheckpointer(model, str(tmp_path)).save("base")
    return str(tmp_path / "base.pth")


def run(folder: Path, base: str, *arguments: str) -> dict:
    common = ["--runs", str(folder / "runs"), "--weights", base, "--images", "3"]
    tool.main(tool.parse_args([*common, *arguments, "--opts", *TINY]))
    file = folder / "runs" / "try" / "results" / "unified_association.json"
    return json.loads(file.read_text())


def test_tag_grouping_needs_no_base(tmp_path, base, monkeypatch):
    started = []
    monkeypatch.setattr(tool, "row", lambda args, runs, name: started.append(name))
    options = ["--runs", str(tmp_path / "runs"), "--images", "3", "--only"]
    tool.main(tool.parse_args([*options, "tag_grouping"]))
    assert started == ["tag_grouping"]
    with pytest.raises(FileNotFoundError, match="train_synthetic"):
        tool.main(tool.parse_args([*options, "tag_grouping", "recurrent"]))


def test_systems_and_rows_stand_side_by_side_and_steps_are_drawn(tmp_path, base, capsys):
    page = tool.PAGE.read_text()
    found = run(tmp_path, base)
    for system in ("recurrent", "recurrent_no_loop", "tag_grouping", "multiposenet"):
        for figure in ("AP", "count_right", "AP_overlap_0_0.1", "AP_overlap_0.3_1"):
            assert f"drawn-crowd-v1/{system}/keypoints/{figure}" in found["metrics"]
    assert "keypoints/AP" in found["metrics"]  # on drawn-v1
    picture = tmp_path / "runs" / "try" / "images" / "unified_association_steps.png"
    assert Image.open(picture).height >= 260
    found = run(tmp_path, base, "--rows", "--only", "loop_0", "T_1")
    assert {"drawn-crowd-v1/recurrent", "drawn-crowd-v1/rows/T_1"} <= set(found["runs"])
    tables = tool.tables(found)
    assert set(tables) == {"systems", "rows"}
    assert [line.split("|")[1].strip() for line in tables["rows"].splitlines()[2:]] == [
        "`loop_0`",
        "`T_1`",
    ]
    assert tables["systems"] in capsys.readouterr().out
    assert tool.PAGE.read_text() == page  # a try

    weights = tmp_path / "runs" / "try" / "unified" / "recurrent" / "model_final.pth"
    images = tmp_path / "runs" / "try" / "datasets" / "drawn-crowd-v1" / "test"
    output = tmp_path / "drawn" / "steps.png"
    arguments = ["--config-file", "UnifiedAssociation/quick_crowd.yaml", "--output", str(output)]
    arguments += ["--input", str(images / "000001.png"), "--columns", "2", *TINY]
    arguments += ["MODEL.SEQUENCE.OMEGA_TEST", "0.0", "MODEL.WEIGHTS", str(weights)]
    picture_tool.main(picture_tool.parse_args(arguments))
    # Everybody and two steps (the most), two in a row.
    width, height = Image.open(output).size
    assert abs(width - 2 * 240) < 60 and height == 2 * 260

    # With and without people, and another system, on two images.
    quick = ["UnifiedAssociation/quick_crowd.yaml", str(weights)]
    output = tmp_path / "drawn" / "beside.png"
    arguments = ["--output", str(output), "--score-threshold", "0"]
    arguments += ["--input", *(str(images / f"00000{i}.png") for i in (1, 2))]
    arguments += ["--network", "decoder", *quick, "--network", "base", "quick/drawn_v1.yaml", base]
    settings = [*TINY, "MODEL.SEQUENCE.OMEGA_TEST", "0.0", "MODEL.SEQUENCE.TAU", "0.0"]
    beside_tool.main(beside_tool.parse_args([*arguments, "--opts", *settings]))
    sheet = np.asarray(Image.open(output).convert("RGB"))
    assert sheet.shape[0] == 2 * 260 and abs(sheet.shape[1] - 3 * 240) < 90
    # The decoder drew people on the first image, in the second column of three.
    side = sheet.shape[1] // 3
    left, middle = sheet[30:260, :side], sheet[30:260, side : 2 * side]
    assert (left != middle).any()


def test_mistakes_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="train it .python tools/train_synthetic.py"):
        tool.main(tool.parse_args(["--runs", str(tmp_path)]))
    with pytest.raises(ValueError, match="--only T_9: choose of loop_2"):
        tool.main(tool.parse_args(["--runs", str(tmp_path), "--rows", "--only", "T_9"]))
    beside = ["--input", str(tmp_path), "--network", "a", "quick/drawn_v1.yaml", "w.pth"]
    with pytest.raises(ValueError, match="name a .png"):
        beside_tool.main(beside_tool.parse_args([*beside, "--output", "sheet.jpg"]))
    with pytest.raises(ValueError, match="--score-threshold 2.0: 0 to 1"):
        arguments = [*beside, "--output", "s.png", "--score-threshold", "2"]
        beside_tool.main(beside_tool.parse_args(arguments))
    sample = str(REPO / "datasets/coco_sample/val/000000160012.jpg")
    common = ["--config-file", "UnifiedAssociation/quick_crowd.yaml", "--input", sample]
    with pytest.raises(ValueError, match="name a .png"):
        picture_tool.main(picture_tool.parse_args([*common, "--output", "steps.jpg"]))
    with pytest.raises(ValueError, match=r"give MODEL\.WEIGHTS"):
        picture_tool.main(picture_tool.parse_args([*common, "--output", "steps.png"]))
