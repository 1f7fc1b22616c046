"""An R-CNN of random weights at test time: views pooled with masks, results for users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mpn_d2.config import load_config
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.inference_model import (
    build_inference_model,
    build_members,
    check_inference_config,
)
from mpn_d2.engine.pose_predictor import PosePredictor
from mpn_d2.structures.skeleton import get_skeleton

CONFIG = str(Path(__file__).resolve().parents[2] / "configs/MultitaskRCNN/quick_overfit_two.yaml")
SMALL = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "6"]
SMALL += ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96", "MODEL.DEVICE", "cpu"]
SMALL += ["MODEL.ROI_KEYPOINT_HEAD.REFINE", "both"]
POOLED = ["TTA.ENABLED", "True", "TTA.FUSION", "poses", "OKS_NMS.MODE", "hard"]


def config(*options: str) -> CfgNode:
    return load_config(CONFIG, [*SMALL, *options])


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(3)
    model = build_model(config())
    # Poses that differ, offsets that are not 0.
    for name, parameter in model.roi_heads.keypoint_head.named_parameters():
        if "offset" in name or "score_lowres" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("rcnn")
    PoseCheckpointer(model, str(folder)).save("random")
    return str(folder / "random.pth")


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    torch.manual_seed(5)
    coarse = torch.rand(1, 3, 6, 8)
    smooth = torch.nn.functional.interpolate(coarse, (90, 117), mode="bilinear")[0]
    return (255 * smooth).to(torch.uint8)


def seen(model, image, **size):
    return model([{"image": image, "height": image.shape[1], "width": image.shape[2], **size}])[0][
        "instances"
    ]


def by_score(people):
    return people[people.pose_scores.argsort(descending=True, stable=True)]


def test_a_mirrored_image_has_the_mirrored_people(weights, image):
    model = build_inference_model(config(*POOLED, "TTA.FLIP", "True"), weights)
    people, mirrored = (by_score(seen(model, x)) for x in (image, image.flip(-1)))
    assert len(people) == len(mirrored) > 1
    width = image.shape[2]
    boxes = mirrored.pred_boxes.tensor[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1])
    boxes += torch.tensor([width, 0.0, width, 0])
    torch.testing.assert_close(people.pred_boxes.tensor, boxes, atol=1e-2, rtol=0)
    joints = mirrored.pred_keypoints[:, list(get_skeleton("coco").flip_indices)]
    joints[..., 0] = width - joints[..., 0]
    torch.testing.assert_close(people.pred_keypoints, joints, atol=1e-2, rtol=0)
    assert people.pred_masks.shape == (len(people), *image.shape[1:])
    assert people.pred_masks.any()
    assert (people.pred_masks != mirrored.pred_masks.flip(-1)).float().mean() < 1e-3


def test_views_of_parts_have_masks_in_the_image(weights, image):
    options = [*POOLED, "TTA.SCALES", "[1.0, 1.5]", "TTA.CROPS", "2", "OKS_NMS.THRESH", "1.0"]
    people = seen(build_inference_model(config(*options, SMALL[2], "12"), weights), image)
    assert people.pred_masks.shape == (len(people), 90, 117)
    for mask, box in zip(people.pred_masks, people.pred_boxes.tensor):
        rows, columns = mask.nonzero().unbind(1)
        if len(rows):
            # A mask lies in its box.
            assert columns.min() >= box[0] - 1 and columns.max() <= box[2] + 1
            assert rows.min() >= box[1] - 1 and rows.max() <= box[3] + 1


def test_results_in_another_size_than_the_image(weights, image):
    model = build_inference_model(config(*POOLED), weights)
    people, larger = seen(model, image), seen(model, image, height=180, width=351)
    assert larger.image_size == (180, 351) and len(larger) == len(people)
    scale = torch.tensor([3.0, 2.0])
    boxes = people.pred_boxes.tensor * scale.repeat(2)
    torch.testing.assert_close(larger.pred_boxes.tensor, boxes)
    assert larger.pred_masks.shape == (len(people), 180, 351)
    # Their pixels are those of the small masks.
    again = larger.pred_masks[:, 1::2, 1::3]
    assert (again != people.pred_masks).float().mean() < 0.05


def test_nobody_in_another_size(weights, image):
    options = [*POOLED, "TTA.FLIP", "True", "TTA.CROPS", "2", SMALL[0], "1.0"]
    nobody = seen(build_inference_model(config(*options), weights), image, height=30, width=40)
    assert len(nobody) == 0 and nobody.pred_masks.shape == (0, 30, 40)
    assert nobody.pred_keypoints.shape == (0, 17, 3)


def test_maps_of_the_whole_image_are_missed(weights):
    with pytest.raises(ValueError, match=r"TTA\.FUSION maps .* set TTA\.FUSION poses"):
        build_inference_model(config("TTA.ENABLED", "True", "TTA.FLIP", "True"), weights)


def test_members_without_masks_are_refused_where_masks_are_scored(weights):
    member = ["ENSEMBLE.CONFIGS", "['MultiPoseNet/R_50.yaml']", "ENSEMBLE.WEIGHTS", "['x.pth']"]
    with pytest.raises(ValueError, match=r"R_50.*no masks of people one by one.*leave segm out"):
        build_members(config(*POOLED, *member), load=lambda cfg, weights: torch.nn.Identity())
    members = build_members(
        config(*POOLED, *member, "EVAL.TASKS", "['bbox', 'keypoints']"),
        load=lambda cfg, weights: torch.nn.Identity(),
    )
    assert len(members) == 1


@pytest.mark.parametrize("options", [POOLED, ["OKS_NMS.MODE", "soft"]])
def test_nothing_compares_poses_of_an_rcnn_without_keypoints(options):
    without = ["MODEL.KEYPOINT_ON", "False", "EVAL.TASKS", "['bbox', 'segm']"]
    with pytest.raises(ValueError, match=r"MODEL\.KEYPOINT_ON is False, but TTA"):
        check_inference_config(config(*options, *without))
    check_inference_config(config(*without))


def test_masks_for_users(weights, image):
    predictor = PosePredictor(config(), weights, confidence_threshold=0.0)
    array = image.permute(1, 2, 0).numpy().copy()
    people = predictor(array)
    assert people.masks.shape == (len(people), 90, 117) and people.masks.dtype == bool
    assert people.person_mask is None and len(people) > 1
    for row, mask in zip(people.to_coco(4), people.masks, strict=True):
        assert np.array_equal(mask_util.decode(row["segmentation"]).astype(bool), mask)
    with_masks, without = (
        people.draw(array, boxes=False),
        people.draw(array, boxes=False, mask=False),
    )
    assert (with_masks != without).any()
    # An image scores the same alone and in a batch with another size.
    other = array[:40, :70].copy()
    together = predictor([array, other])
    np.testing.assert_allclose(together[0].keypoints, people.keypoints, atol=1e-3)
    np.testing.assert_allclose(together[1].boxes, predictor(other).boxes, atol=1e-3)
