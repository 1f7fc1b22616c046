"""Rows of the table of networks, from folders as train_net.py leaves them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from repo_tools import load_tool

from mpn_d2.config import load_config
from mpn_d2.utils.results import read_results

REPO = Path(__file__).resolve().parents[2]
METRICS = {"keypoints": {"AP": 61.25, "AR": 70.0}, "bbox": {"AP": 63.75}, "sem_seg": {}}


@pytest.fixture(scope="module")
def tool():
    return load_tool("model_zoo")


@pytest.fixture
def run_folder(tmp_path):
    def make(name: str, config: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        cfg = load_config(str(REPO / "configs" / config))
        (folder / "config.yaml").write_text(cfg.dump())
        torch.save({"model": {"x": torch.zeros(1000)}}, folder / "model_final.pth")
        (folder / "results.json").write_text(json.dumps({"people-val": METRICS, "other": {}}))
        return folder

    return make


def test_rows_of_runs(tool, run_folder, tmp_path, capsys):
    page, output = tmp_path / "page.md", tmp_path / "zoo.json"
    page.write_text("# Page\n<!-- table runs -->\n<!-- end runs -->\n")
    small = run_folder("small", "MultiPoseNet/R_18_small.yaml")
    drawn = run_folder("drawn", "quick/drawn_v1.yaml")
    command = ["--output", str(output), "--page", str(page)]
    tool.main(tool.parse_args([str(small), str(drawn), *command]))
    assert "small: keypoint AP 61.2" in capsys.readouterr().out
    metrics = read_results(output)["metrics"]
    assert metrics["small/keypoints/AP"] == 61.25 and metrics["small/segm/AP"] is None
    assert metrics["small/sem_seg/IoU-person"] is None
    cfg = load_config(str(REPO / "configs" / "MultiPoseNet" / "R_18_small.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    expected = sum(x.numel() for x in tool.build_pose_model(cfg).parameters())
    assert metrics["small/parameters"] == expected > 1e6
    digest = hashlib.sha256((small / "model_final.pth").read_bytes()).hexdigest()
    rows = [
        [x.strip() for x in line.split("|")[1:-1]] for line in page.read_text().splitlines()[1:]
    ]
    named = {row[0]: row for row in rows if row}
    row = named["`small`"]
    assert row[1:4] == ["MultiPoseNet", "keypoints_coco_2017_train", "people-val"]
    assert row[4:8] == ["61.2", "63.8", "-", "-"] and row[-1] == digest[:12]
    assert named["`drawn`"][2] == "drawn-v1-train"
    # Again: a row is replaced, the others stay.
    (small / "results.json").write_text(json.dumps({"v": {"keypoints": {"AP": 1.0}}}))
    tool.main(tool.parse_args([str(small), *command]))
    metrics = read_results(output)["metrics"]
    assert metrics["small/keypoints/AP"] == 1.0 and metrics["drawn/keypoints/AP"] == 61.25


@pytest.mark.parametrize("missing", ["config.yaml", "model_final.pth", "results.json"])
def test_a_folder_that_is_no_run(tool, run_folder, tmp_path, missing):
    folder = run_folder("run", "MultiPoseNet/R_18_small.yaml")
    (folder / missing).unlink()
    output = tmp_path / "zoo.json"
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing"):
        tool.main(tool.parse_args([str(folder), "--output", str(output), "--page", ""]))
    assert not output.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"a": 1}'])
def test_results_of_another_kind(tool, run_folder, content):
    folder = run_folder("run", "MultiPoseNet/R_18_small.yaml")
    (folder / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json is no results file of an evaluation"):
        tool.read_run(folder)


def test_runs_of_one_name_are_told_apart(tool, run_folder, tmp_path):
    output = tmp_path / "zoo.json"
    first, second = (run_folder(f"x={i}", "quick/drawn_v1.yaml") for i in "12")
    command = ["--output", str(output), "--page", ""]
    with pytest.raises(ValueError, match=r"two runs are called x=1: name one of them, NAME="):
        tool.main(tool.parse_args([str(first), str(first), *command]))
    tool.main(tool.parse_args([str(first), f"other={second}", *command]))
    assert set(read_results(output)["runs"]) == {"x=1", "other"}
