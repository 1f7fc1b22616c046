"""Time and memory of networks that regress poses: people who come out again, bytes by hand."""

from __future__ import annotations

import json

import pytest
import torch

from mpn_d2.engine import regression_speed, speed_reference
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.pipeline_speed import inputs_of
from mpn_d2.engine.speed_people import place_people
from mpn_d2.utils.saved_bytes import MIB, SavedBytes
from tools import benchmark

CONFIG = "PoseRegression/R_18_small.yaml"


@pytest.mark.parametrize("count", [0, 1, 12])
def test_people_who_are_put_in_come_out_again(paper_config, count):
    model = build_pose_model(paper_config(CONFIG)).eval()
    people = place_people(count, 320)
    with torch.no_grad(), regression_speed.showing(model, people, 320):
        (result,) = model(inputs_of(320, 1))
    found = result["instances"].pred_keypoints
    regression_speed.check_poses(found, people)
    assert "layers" not in vars(model.head)
    if count:
        with pytest.raises(ValueError, match=f"{count} people were put in, {count - 1} came out"):
            regression_speed.check_poses(found[1:], people)
        with pytest.raises(ValueError, match="others came out"):
            regression_speed.check_poses(found + 3.0, people)
    with pytest.raises(ValueError, match="images of 70 pixels: a multiple of 32"):
        with regression_speed.showing(model, people, 70):
            pass


def test_figures_of_the_regression_part(tmp_path, sample_dir, monkeypatch):
    monkeypatch.setattr(speed_reference, "PROPOSALS", 20)
    output = tmp_path / "b.json"
    arguments = ["--config-file", str(sample_dir.parents[1] / "configs" / CONFIG)]
    arguments += ["--part", "regression", "--output", str(output), "--persons", "1", "4"]
    arguments += ["--size", "128", "--rounds", "1", "MODEL.DEVICE", "cpu"]
    benchmark.main(benchmark.parse_args(arguments))
    figures = json.loads(output.read_text())["metrics"]
    for count in (1, 4):
        own, other = (figures[f"regression/seconds/{x}{count}"] for x in ("", "keypoint_rcnn/"))
        assert figures[f"regression/ratio/{count}"] == pytest.approx(own / other)
    growth = figures["regression/seconds/4"] / figures["regression/seconds/1"] - 1
    assert figures["regression/more_percent/1_to_4"] == pytest.approx(100 * growth)
    assert len(figures) == 7


def test_memory_by_shapes_is_that_of_a_real_step(paper_config):
    cfg = paper_config(CONFIG)
    figures = regression_speed.training_memory(cfg, size=128, batch=2)
    model, kept = build_pose_model(cfg).train(), SavedBytes()
    with kept.watching(model):
        features = model.backbone(torch.rand(2, 3, 128, 128))
        outputs = model.head.layers([features[name] for name in model.head_in_features])
    # The dense losses come on top of that.
    real = kept.peak / MIB
    assert real <= figures["regression/training_mib/kept"] <= 1.1 * real
    weights = sum(p.numel() for p in model.parameters()) * 12
    weights += sum(x.numel() for x in model.buffers()) * 4
    assert figures["regression/training_mib/weights"] == pytest.approx(weights / MIB)
    total = figures["regression/training_mib/kept"] + weights / MIB
    assert figures["regression/training_mib/total"] == pytest.approx(total)
    del outputs


def test_the_papers_training_fits_in_eleven_gibibytes(paper_config):
    """Batch 2, 800 x 800 (issue of pose regression)."""
    cfg = paper_config("PoseRegression/R_50.yaml")
    figures = regression_speed.training_memory(cfg, size=800, batch=2)
    # Of the head alone, 8 convolutions keep two maps each of 256 x 100 x 100 on the finest level.
    finest = 8 * 2 * 2 * 256 * 100 * 100 * 4 / MIB
    kept = figures["regression/training_mib/kept"]
    assert 3 * finest < kept < figures["regression/training_mib/total"] < 11 * 1024


def test_other_networks_are_refused(paper_config):
    cfg = paper_config("MultiPoseNet/R_18_small.yaml", ["MODEL.PRN.NODES", "8"])
    with pytest.raises(ValueError, match="and a MultiPoseNet is none"):
        regression_speed.training_memory(cfg, size=64, batch=1)
