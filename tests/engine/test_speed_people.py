"""People put into a network for the benchmark: placed as asked, and they come out again."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from torchvision.ops import box_iou

from mpn_d2.engine.pipeline_speed import inputs_of, speed_config
from mpn_d2.engine.speed_people import People, check_people, dense_outputs, place_people, seeing


@pytest.fixture(scope="module")
def model():
    from pathlib import Path

    from mpn_d2.config import load_config

    config = Path(__file__).resolve().parents[2] / "configs" / "MultiPoseNet" / "Lite_R_18.yaml"
    cfg = load_config(str(config), ["MODEL.DEVICE", "cpu"])
    return build_model(speed_config(cfg, [100])).eval()


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_people_stand_in_the_image_and_apart(count):
    people = place_people(count, 480)
    assert len(people) == count and people.keypoints.shape[1:] == (17, 3)
    assert ((people.boxes >= 0) & (people.boxes <= 480)).all()
    if count:
        sides = people.boxes[:, 2:] - people.boxes[:, :2]
        assert float(sides.min()) > 4
        # No suppression of boxes takes one for another.
        overlap = box_iou(people.boxes, people.boxes).fill_diagonal_(0)
        assert float(overlap.max()) < 0.3
        labelled = people.keypoints[people.keypoints[..., 2] > 0]
        assert ((labelled[:, :2] >= 0) & (labelled[:, :2] <= 480)).all()
        assert len(labelled) >= 10 * count
        assert torch.equal(people.boxes, place_people(count, 480).boxes)


@pytest.mark.parametrize("count", [0, 1, 20, 100])
def test_as_many_come_out_as_were_put_in(model, count):
    """Boxes, peaks and assembly are the network's own; the joints are those that were put in."""
    people = place_people(count, 320)
    before = model.dense
    with torch.no_grad(), seeing(model, people, 320, batch=2):
        assert model.dense is not before
        results = model(inputs_of(320, 2))
        again = model(inputs_of(320, 2))
    assert model.dense == before and "dense" not in vars(model)
    check_people(results, people)
    check_people(again, people)
    if not count:
        return
    for result in results:
        found = result["instances"]
        owner = box_iou(people.boxes, found.pred_boxes.tensor).argmax(dim=1)
        joints = found.pred_keypoints[owner]
        given = (people.keypoints[..., 2] > 0) & (joints[..., 2] > 0)
        gaps = (joints - people.keypoints)[..., :2].norm(dim=-1)[given]
        # Where two peaks of a crowd meet, one is lost.
        assert given.sum() > (0.9 if count < 100 else 0.5) * (people.keypoints[..., 2] > 0).sum()
        assert (gaps < 2).float().mean() > (0.95 if count < 100 else 0.7)


def test_others_than_those_who_were_put_in_are_an_error(model):
    people = place_people(3, 128)
    with torch.no_grad(), seeing(model, people, 128):
        results = model(inputs_of(128, 1))
    with pytest.raises(ValueError, match="2 people were put in; 3 boxes came out"):
        check_people(results, People(people.boxes[:2], people.keypoints[:2]))
    moved = People(people.boxes + 20, people.keypoints)
    with pytest.raises(ValueError, match="others came out"):
        check_people(results, moved)
    results[0]["instances"].pose_scores[1] = 0.0
    with pytest.raises(ValueError, match="3 boxes came out, 2 of them with a pose"):
        check_people(results, people)


def test_networks_and_sizes_that_do_not_fit_are_refused(model, paper_config):
    people = place_people(2, 128)
    with pytest.raises(ValueError, match="100 pixels: a multiple of 32"):
        dense_outputs(model, people, 100)
    with pytest.raises(ValueError, match="5 joints, the network 17"):
        dense_outputs(model, People(people.boxes, people.keypoints[:, :5]), 128)
    alone = build_model(paper_config("MultiPoseNet/Assembler_poses.yaml"))
    with pytest.raises(ValueError, match="no keypoint_head"):
        dense_outputs(alone, people, 128)
