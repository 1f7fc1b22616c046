"""ROI heads whose keypoint head sees more than the box: what it sees, what results say."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage

from mpn_d2.engine.build import build_pose_model
from mpn_d2.modeling.roi_heads.enlarged_boxes import EnlargedKeypointROIHeads, enlarged_boxes

CONFIG = "MultitaskRCNN/quick_overfit_two.yaml"
ENLARGED = ["MODEL.ROI_HEADS.NAME", "EnlargedKeypointROIHeads", "MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE"]
SMALL = ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.MASK_ON", "False"]
SIZE = (120, 160)


def heads(paper_config, scale: str):
    torch.manual_seed(5)
    return build_pose_model(paper_config(CONFIG, [*ENLARGED, scale, *SMALL])).roi_heads


def features(roi_heads) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    return {
        name: torch.randn(1, 64, SIZE[0] // s + 1, SIZE[1] // s, generator=generator)
        for name, s in strides.items()
    }


def one_person(joint: tuple[float, float]) -> Instances:
    """Box (60, 40, 100, 80) whose only labelled joint is given."""
    keypoints = torch.zeros(1, 17, 3)
    keypoints[0, 3] = torch.tensor([*joint, 1.0])
    person = Instances(SIZE)
    person.gt_boxes = Boxes(torch.tensor([[60.0, 40.0, 100.0, 80.0]]))
    person.gt_classes = torch.zeros(1, dtype=torch.long)
    person.gt_keypoints = Keypoints(keypoints)
    return person


def training_losses(roi_heads, person: Instances) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # of the sampling
    proposals = Instances(SIZE)
    proposals.proposal_boxes = Boxes(torch.tensor([[62.0, 40.0, 100.0, 80.0], [0.0, 0, 20, 20]]))
    proposals.objectness_logits = torch.zeros(2)
    images = ImageList(torch.zeros(1, 3, *SIZE), [SIZE])
    with EventStorage():
        return roi_heads.train()(images, features(roi_heads), [proposals], [person])[1]


def test_boxes_grow_around_their_centres_and_stay_inside():
    boxes = Boxes(torch.tensor([[60.0, 40.0, 100.0, 80.0], [0.0, 100.0, 30.0, 120.0]]))
    found = enlarged_boxes(boxes, 1.5, SIZE).tensor
    assert found.tolist() == [[50.0, 30.0, 110.0, 90.0], [0.0, 95.0, 37.5, 120.0]]
    assert boxes.tensor[0].tolist() == [60.0, 40.0, 100.0, 80.0]
    assert len(enlarged_boxes(Boxes(torch.zeros(0, 4)), 1.5, SIZE)) == 0


def test_a_joint_outside_of_the_box_is_learned(paper_config):
    outside = one_person((54.0, 60.0))
    plain, enlarged = heads(paper_config, "1.0"), heads(paper_config, "1.6")
    assert training_losses(plain, outside)["loss_keypoint"] == 0
    losses = training_losses(enlarged, outside)
    assert losses["loss_keypoint"] > 1
    losses["loss_keypoint"].backward()
    assert enlarged.keypoint_head.score_lowres.weight.grad[:, 3].any()


def test_results_keep_their_boxes_and_joints_may_lie_outside(paper_config):
    enlarged = heads(paper_config, "1.6").eval()
    people = Instances(SIZE)
    people.pred_boxes = Boxes(torch.tensor([[60.0, 40.0, 100.0, 80.0], [10.0, 0.0, 50.0, 90.0]]))
    people.pred_classes, people.scores = torch.zeros(2, dtype=torch.long), torch.ones(2)
    with torch.no_grad():
        found = enlarged.forward_with_given_boxes(features(enlarged), [people])[0]
        larger = Instances(SIZE)
        larger.pred_boxes = enlarged_boxes(people.pred_boxes, 1.6, SIZE)
        larger.pred_classes, larger.scores = people.pred_classes, people.scores
        expected = StandardROIHeads.forward_with_given_boxes(
            heads(paper_config, "1.0").eval(), features(enlarged), [larger]
        )[0]
    assert found.pred_boxes.tensor.equal(people.pred_boxes.tensor)
    torch.testing.assert_close(found.pred_keypoints, expected.pred_keypoints)
    assert found.has("pose_scores")
    x = found.pred_keypoints[0, :, 0]
    assert ((x < 60) | (x > 100)).any()
    none = Instances(SIZE)
    none.pred_boxes, none.scores = Boxes(torch.zeros(0, 4)), torch.zeros(0)
    none.pred_classes = torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        found = enlarged.forward_with_given_boxes(features(enlarged), [none])[0]
    assert found.pred_keypoints.shape == (0, 17, 3)


def test_a_scale_of_one_is_the_framework_s(paper_config):
    inside = one_person((70.0, 60.0))
    ours = heads(paper_config, "1.0")
    assert isinstance(ours, EnlargedKeypointROIHeads)
    options = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", *ENLARGED[2:], "1.0", *SMALL]
    torch.manual_seed(5)
    theirs = build_pose_model(paper_config(CONFIG, options)).roi_heads
    assert type(theirs) is StandardROIHeads
    theirs.load_state_dict(ours.state_dict())
    found, expected = training_losses(ours, inside), training_losses(theirs, inside)
    assert found.keys() == expected.keys() and found["loss_keypoint"] > 1
    assert all(found[name].equal(expected[name]) for name in found)


@pytest.mark.parametrize(
    "options, message",
    [
        ([*ENLARGED, "0.9"], r"BOX_SCALE is 0\.9: 1 .* or more is needed"),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], r"1\.6, which StandardROIHeads do not read"),
    ],
)
def test_impossible_keys_are_named(paper_config, options, message):
    with pytest.raises(ValueError, match=message):
        build_pose_model(paper_config(CONFIG, options))
