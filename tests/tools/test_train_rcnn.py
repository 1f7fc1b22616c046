"""tools/train_rcnn.py: trains, evaluates, records; rows and tables; a try leaves the docs alone."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from repo_tools import load_tool

from mpn_d2.config import load_config
from mpn_d2.engine.checkpoint import PoseCheckpointer, read_settings

REPO = Path(__file__).resolve().parents[2]
TINY = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "1"]
TINY += ["INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MAX_SIZE_TEST", "96", "SOLVER.IMS_PER_BATCH", "2"]
TINY += ["DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS"]
TINY += ["(8,)", "TEST.DETECTIONS_PER_IMAGE", "3", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"]


@pytest.fixture(scope="module")
def tool():
    return load_tool("train_rcnn")


def test_a_try_trains_rows_from_a_trunk_and_measures(tool, tmp_path, monkeypatch, capsys):
    # Photographs in the place of drawn people: what is drawn is tested elsewhere.
    def photographs(args: Namespace, root: Path) -> None:
        assert args.dataset == "drawn-v1" and args.images == 5
        tool.register_pose_datasets()

    monkeypatch.setattr(tool, "draw_data", photographs)
    page = (REPO / "docs" / "multitask_rcnn.md").read_text()
    source = build_model(
        load_config(str(REPO / "configs/quick/drawn_v1.yaml"), ["MODEL.PRN.NODES", "8"])
    )
    PoseCheckpointer(source, str(tmp_path)).save("drawn")
    arguments = ["--runs", str(tmp_path), "--images", "5", "--weights", str(tmp_path / "drawn.pth")]
    arguments += ["--rows", "regular", "RB+H", "--opts", *TINY]
    arguments += ["DATASETS.TRAIN", "('coco_sample_two',)", "DATASETS.TEST", "('coco_sample_two',)"]
    tool.main(tool.parse_args(arguments))
    results = json.loads((tmp_path / "try" / "multitask_rcnn.json").read_text())
    assert set(results["runs"]) == {"rows/regular", "rows/RB+H"}
    for row in results["runs"]:
        for metric in tool.COLUMNS.values():
            assert f"{row}/{metric}" in results["metrics"]
        assert results["runs"][row]["iterations x batch"] == "1 x 2"
        assert results["runs"][row]["trunk"] == str(tmp_path / "drawn.pth")
    # The frozen part of the trunk is where it came from; the rest is not random either.
    folder = tmp_path / "try" / "multitask-rcnn" / "rows"
    stem = "backbone.bottom_up.stem.conv1.weight"
    trained = torch.load(folder / "RB+H" / "model_final.pth", weights_only=True)["model"]
    assert torch.equal(trained[stem], source.state_dict()[stem])
    assert "backbone.bottom_up.res3.0.conv1.offset.weight" in trained
    assert (REPO / "docs" / "multitask_rcnn.md").read_text() == page
    assert "| `RB+H` |" in capsys.readouterr().out

    # The network of the page: figures beside those of the rows, and a picture.
    rest = [x for x in arguments if x not in ("--rows", "regular", "RB+H")]
    tool.main(tool.parse_args(rest))
    both = json.loads((tmp_path / "try" / "multitask_rcnn.json").read_text())
    assert set(both["runs"]) == {"rows/regular", "rows/RB+H", tool.MAIN}
    assert set(tool.COLUMNS.values()) < set(both["metrics"])
    assert Image.open(tmp_path / "try" / "images" / "rcnn_drawn_v1.png").height == 260


def test_a_trunk_keeps_the_settings_of_its_weights(tool, tmp_path, paper_config):
    options = ["MODEL.PRN.NODES", "8"]
    weights = build_model(paper_config("quick/drawn_v1.yaml", options)).state_dict()
    trunk = {"INPUT.FORMAT": "RGB", "MODEL.POSE_FPN.SHARED": False}
    settings = {
        "backbone.bottom_up.": trunk,
        "backbone.keypoint_fpn.": {"MODEL.FPN.FUSE_TYPE": "sum"},
        "head.": {"MODEL.ANCHOR_GENERATOR.OFFSET": 0.0},
    }
    torch.save({"model": weights, "settings": settings}, tmp_path / "converted.pth")
    config = str(REPO / "configs" / "MultitaskRCNN" / "quick_drawn_v1.yaml")
    given = str(tmp_path / "converted.pth"), config, TINY, tmp_path / "run"
    written = tool.write_trunk(*given)
    kept = {
        "backbone.bottom_up.": {"INPUT.FORMAT": "RGB"},
        "backbone.fpn_": {"MODEL.FPN.FUSE_TYPE": "sum"},
    }
    assert read_settings(written) == kept
    for key, value in (("INPUT.FORMAT", "BGR"), ("MODEL.FPN.FUSE_TYPE", "avg")):
        cfg = load_config(config, [*TINY, "INPUT.FORMAT", "RGB", key, value])
        with pytest.raises(ValueError, match=f"{key} is '{value}'"):
            PoseCheckpointer(build_model(cfg), cfg=cfg).load(written)
    torch.save({"model": weights}, tmp_path / "converted.pth")
    assert read_settings(tool.write_trunk(*given)) == {}


def test_rows_differ_in_one_thing(tool):
    plans = tool.planned(Namespace(rows=[], overfit=False, trunk=None))
    assert list(plans) == [f"rows/{row}" for row in tool.ROWS]
    configs = {row: load_config(*plans[f"rows/{row}"]) for row in tool.ROWS}
    kinds = {
        row: (
            cfg.MODEL.ROI_KEYPOINT_HEAD.REFINE,
            cfg.MODEL.ROI_KEYPOINT_HEAD.LOSS,
            any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE),
        )
        for row, cfg in configs.items()
    }
    assert kinds == {
        "regular": ("none", "softmax", False),
        "RB": ("none", "softmax", True),
        "RB+H": ("both", "softmax", True),
        "heatmap": ("heatmap", "softmax", False),
        "conv": ("conv", "softmax", False),
        "regular_mse": ("none", "mse", False),
    }


def test_tables_show_what_was_measured(tool):
    metrics = {"bbox/AP": 71.26, "segm/AP": 60.0, "keypoints/AP": 50.0, "rows/RB/bbox/AP": 30.0}
    found = tool.tables({"metrics": metrics, "runs": {"drawn-v1": {}, "rows/RB": {}}})
    assert found["networks"].splitlines()[-1] == "| `drawn-v1` | 71.3 | 60.0 | 50.0 | - | - |"
    assert found["rows"].splitlines()[-1] == "| `RB` | 30.0 | - | - | - | - |"
    assert tool.tables({}) == {}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--rows", "RBH"], "--rows RBH: choose of regular, RB, RB"),
        (["--overfit", "--weights", "x.pth"], "--overfit starts from nothing"),
        (["--weights", "missing.pth"], "missing.pth"),
        ([], "drawn-v1/model_final.pth' not found, the network of drawn people"),
    ],
)
def test_mistakes_are_one_line(tool, tmp_path, arguments, words):
    args = tool.parse_args(["--runs", str(tmp_path), *arguments])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        tool.main(args)
    assert words in str(error.value) and "\n" not in str(error.value)
