"""Views of an image for networks that regress poses: pooled people, mirrored images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.inference_model import build_inference_model
from mpn_d2.structures.skeleton import get_skeleton

CONFIG = "PoseRegression/R_18_small.yaml"
FLIP = list(get_skeleton("coco").flip_indices)
SMALL = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "160"]
POOLED = ["TTA.ENABLED", "True", "TTA.FLIP", "True", "TTA.FUSION", "poses"]
POOLED += ["OKS_NMS.MODE", "hard", "OKS_NMS.THRESH", "0.7"]


@pytest.fixture()
def weights(paper_config, tmp_path):
    """A network whose outputs differ from place to place."""
    model = build_pose_model(paper_config(CONFIG))
    with torch.no_grad():
        for output, std in ((model.head.cls_output, 0.5), (model.head.final_output, 0.05)):
            torch.nn.init.normal_(output.weight, std=std)
        model.head.cls_output.bias.zero_()
    PoseCheckpointer(model, str(tmp_path)).save("model")
    return str(tmp_path / "model.pth")


def test_a_mirrored_image_has_the_mirrored_people(paper_config, weights):
    model = build_inference_model(paper_config(CONFIG, [*SMALL, *POOLED]), weights)
    image = torch.randint(0, 255, (3, 90, 130), dtype=torch.uint8)
    plain, mirrored = (model([{"image": x}])[0]["instances"] for x in (image, image.flip(2)))
    assert len(plain) == len(mirrored) > 1
    torch.testing.assert_close(plain.scores, mirrored.scores, atol=1e-4, rtol=0)
    joints = mirrored.pred_keypoints[:, FLIP].clone()
    joints[..., 0] = 130 - joints[..., 0]
    torch.testing.assert_close(plain.pred_keypoints, joints, atol=1e-2, rtol=1e-4)


def test_views_need_pooling(paper_config, weights):
    """There are no heatmaps to average."""
    options = [*SMALL, "TTA.ENABLED", "True", "TTA.FLIP", "True"]
    with pytest.raises(ValueError, match=r"TTA\.FUSION poses"):
        build_inference_model(paper_config(CONFIG, options), weights)
    # Suppression of repeats alone needs no second view.
    alone = build_inference_model(paper_config(CONFIG, [*SMALL, "OKS_NMS.MODE", "soft"]), weights)
    image = torch.randint(0, 255, (3, 70, 64), dtype=torch.uint8)
    assert alone([{"image": image}])[0]["instances"].image_size == (70, 64)


@pytest.mark.parametrize("main", ["MultiPoseNet/R_18_small.yaml", CONFIG])
def test_an_ensemble_of_both_systems(paper_config, weights, tmp_path, main):
    """People of both are pooled; the mask is that of the networks that have one."""
    configs = Path(__file__).resolve().parents[2] / "configs"
    other = "MultiPoseNet/R_18_small.yaml"
    PoseCheckpointer(build_pose_model(paper_config(other)), str(tmp_path)).save("other")
    files = {CONFIG: weights, other: str(tmp_path / "other.pth")}
    (member,) = set(files) - {main}
    options = [*SMALL, "TTA.FUSION", "poses", "OKS_NMS.MODE", "hard", "ENSEMBLE.CONFIGS"]
    options += [str([str(configs / member)]), "ENSEMBLE.WEIGHTS", str([files[member]])]
    cfg = paper_config(main, options)
    image = {"image": torch.randint(0, 255, (3, 90, 130), dtype=torch.uint8)}
    (result,) = build_inference_model(cfg, files[main])([image])
    one = paper_config(main, [*SMALL, "OKS_NMS.MODE", "hard"])
    alone = build_inference_model(one, files[main])([image])[0]
    assert len(result["instances"]) > 0
    assert ("sem_seg" in result) == (main == other)
    if main == other:
        assert result["sem_seg"].shape == (2, 90, 130)
        torch.testing.assert_close(result["sem_seg"], alone["sem_seg"], atol=1e-4, rtol=0)
