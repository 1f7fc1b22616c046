"""The keypoint head with offsets: as the framework's where they are 0, losses, poses, keys."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.keypoint_head import (
    KRCNNConvDeconvUpsampleHead,
    keypoint_rcnn_loss,
)
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

from mpn_d2.codecs.heatmap_offsets import encode_box_heatmaps, read_at_offsets
from mpn_d2.modeling.roi_heads import KeypointOffsetHead
from mpn_d2.modeling.roi_heads.keypoint_offset_head import REFINEMENTS

K = 17
SHAPE = ShapeSpec(channels=6, height=14, width=14)


def build(refine: str, loss: str, **kwargs) -> KeypointOffsetHead:
    return KeypointOffsetHead(
        SHAPE,
        num_keypoints=K,
        conv_dims=[8, 8],
        refine=refine,
        loss=loss,
        loss_normalizer="visible",
        **kwargs,
    )


def training_people(count: int, height: int = 60, width: int = 80) -> Instances:
    corner = torch.rand(count, 2) * 20
    keypoints = torch.rand(count, K, 3) * torch.tensor([60.0, 50.0, 0.0])
    keypoints[..., 2] = torch.randint(0, 3, (count, K))
    people = Instances((height, width))
    people.proposal_boxes = Boxes(torch.cat([corner, corner + 30], dim=1))
    people.gt_keypoints = Keypoints(keypoints)
    return people


@pytest.mark.parametrize("loss", ["mse", "softmax"])
@pytest.mark.parametrize("refine", REFINEMENTS)
def test_offsets_of_nothing_are_the_unrefined_head_bit_for_bit(refine, loss):
    plain, refined = build("none", loss), build(refine, loss)
    shared = plain.state_dict()
    own = refined.state_dict()
    own.update({k: v for k, v in shared.items() if "score_lowres" not in k})
    # The K maps are the first outputs; the offsets are as the head makes them.
    own["score_lowres.weight"][:, :K] = shared["score_lowres.weight"]
    own["score_lowres.bias"][:K] = shared["score_lowres.bias"]
    refined.load_state_dict(own)
    x = torch.randn(3, 6, 14, 14)
    with torch.no_grad():
        assert torch.equal(refined.layers(x), plain.layers(x))
    torch.testing.assert_close(refined.layers(x), plain.layers(x), atol=1e-5, rtol=1e-5)


def test_without_refinement_and_with_softmax_it_is_the_framework_s_head():
    ours = build("none", "softmax")
    theirs = KRCNNConvDeconvUpsampleHead(
        SHAPE, num_keypoints=K, conv_dims=[8, 8], loss_normalizer="visible"
    )
    theirs.load_state_dict(ours.state_dict())
    x, people = torch.randn(5, 6, 14, 14), [training_people(3), training_people(2)]
    with EventStorage():
        assert ours(x, people)["loss_keypoint"].equal(theirs(x, people)["loss_keypoint"])
    found, expected = Instances((90, 90)), Instances((90, 90))
    for i in (found, expected):
        i.pred_boxes = Boxes(torch.tensor([[3.0, 4.0, 50.5, 80.0], [0.0, 0.0, 9.0, 7.0]]))
    ours.eval()(x[:2], [found]), theirs.eval()(x[:2], [expected])
    assert torch.equal(found.pred_keypoints, expected.pred_keypoints)


def test_constant_offsets_shift_the_maps():
    head = build("heatmap", "mse")
    assert head.score_lowres.weight.shape[1] == 51
    x = torch.randn(2, 6, 14, 14)
    with torch.no_grad():
        before = head.layers(x)
        # (+1, 0) for type 0: its x is output K.
        head.score_lowres.bias[K] = 1
        after = head.layers(x)
    assert torch.equal(after[:, 0, :, :-1], before[:, 0, :, 1:]) and not after[:, 0, :, -1].any()
    assert torch.equal(after[:, 1:], before[:, 1:])


@pytest.mark.parametrize("refine", ["conv", "heatmap", "both"])
def test_gradients_reach_the_offsets(refine):
    head = build(refine, "mse")
    nn.init.normal_(head.score_lowres.weight[:, :K], std=0.5)
    loss = head(torch.randn(3, 6, 14, 14), [training_people(3)])["loss_keypoint"]
    loss.backward()
    if refine != "heatmap":
        for layer in (head.conv_fcn1, head.conv_fcn2):
            assert layer.offset.weight.grad.abs().sum() > 0
    if refine != "conv":
        assert head.score_lowres.weight.grad[:, K:].abs().sum() > 0


def test_squared_error_is_summed_over_cells_and_keypoints_and_the_mean_of_boxes():
    head = build("heatmap", "mse", sigma=1.5, loss_weight=0.25)
    nn.init.normal_(head.score_lowres.weight, std=0.3)
    x, people = (
        torch.randn(4, 6, 14, 14),
        [training_people(3), training_people(0), training_people(1)],
    )
    outputs = KRCNNConvDeconvUpsampleHead.layers(head, x)
    maps = read_at_offsets(outputs[:, :K].sigmoid(), outputs[:, K:])
    total = 0.0
    boxes = torch.cat([i.proposal_boxes.tensor for i in people])
    joints = torch.cat([i.gt_keypoints.tensor for i in people])
    targets = encode_box_heatmaps(joints, boxes, 56, 1.5)
    for r in range(4):
        for k in range(K):
            total += ((maps[r, k] - targets[r, k]) ** 2).sum().item()
    assert head(x, people)["loss_keypoint"].item() == pytest.approx(0.25 * total / 4, rel=1e-4)
    # Hidden joints as if they were not there.
    visible = build("heatmap", "mse", sigma=1.5, loss_weight=0.25, min_visibility=2)
    visible.load_state_dict(head.state_dict())
    people[0].gt_keypoints.tensor[..., 2] = 1
    people[2].gt_keypoints.tensor[..., 2] = 1
    expected = 0.25 * (maps**2).sum().item() / 4
    assert visible(x, people)["loss_keypoint"].item() == pytest.approx(expected, rel=1e-4)


def test_an_untrained_head_says_the_prior_everywhere():
    head = build("both", "mse", prior=0.02)
    nn.init.zeros_(head.score_lowres.weight)
    maps = head.layers(torch.randn(1, 6, 14, 14))
    inner = maps[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.02))


@pytest.mark.parametrize("loss", ["mse", "softmax"])
def test_nobody_to_learn_from_or_to_find(loss):
    head = build("both", loss)
    with EventStorage():
        found = head(torch.zeros(0, 6, 14, 14), [training_people(0), training_people(0)])
    assert found["loss_keypoint"] == 0
    found["loss_keypoint"].backward()
    nobody = Instances((9, 9), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    head.eval()(torch.zeros(0, 6, 14, 14), [nobody])
    assert nobody.pred_keypoints.shape == (0, K, 3) and nobody.pose_scores.shape == (0,)


def test_softmax_divides_as_the_framework_does():
    head = KeypointOffsetHead(
        SHAPE, num_keypoints=K, conv_dims=[8], refine="none", loss="softmax", loss_normalizer=7.0
    )
    x, people = torch.randn(3, 6, 14, 14), [training_people(2), training_people(1)]
    with EventStorage():
        expected = keypoint_rcnn_loss(head.layers(x), people, normalizer=14.0)
        assert head(x, people)["loss_keypoint"].equal(expected)


@pytest.mark.parametrize("refine", REFINEMENTS)
def test_softmax_of_layers_in_any_memory_format(refine):
    """The framework's loss refuses maps in channels-last order; CHANNELS_LAST and AMP make such."""
    torch.manual_seed(3)
    head, people = build(refine, "softmax"), [training_people(4)]
    x = torch.randn(4, 6, 14, 14)
    with EventStorage():
        expected = head(x, people)["loss_keypoint"]
        head = head.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(head(x, people)["loss_keypoint"], expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(
                head(x, people)["loss_keypoint"], expected, rtol=0.02, atol=0.0
            )


def test_scores_of_poses():
    people = Instances((60, 60))
    people.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 30.0, 50.0], [9.0, 2.0, 20.0, 50.0]]))
    people.scores = torch.tensor([0.9, 0.5])
    x = torch.randn(2, 6, 14, 14)
    for parts in (["box"], ["keypoints"], ["box", "keypoints"]):
        head = build("none", "mse", pose_score=parts).eval()
        head(x, [people])
        means = people.pred_keypoints[..., 2].mean(1)
        expected = torch.ones(2)
        expected = expected * people.scores if "box" in parts else expected
        expected = expected * means if "keypoints" in parts else expected
        torch.testing.assert_close(people.pose_scores, expected)
    # Boxes that are given have no score.
    people.remove("scores")
    build("none", "mse").eval()(x, [people])
    assert (people.pose_scores == 1).all()


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"refine": "all"},
            r"ROI_KEYPOINT_HEAD\.REFINE is 'all'; choose of none, conv, heatmap, both",
        ),
        ({"loss": "l1"}, r"LOSS is 'l1'; choose of mse, softmax"),
        ({"min_visibility": 0}, r"MIN_VISIBILITY is 0; choose of 1, 2"),
        ({"pose_score": ["joints"]}, r"POSE_SCORE is 'joints'"),
        ({"pose_score": []}, r"POSE_SCORE is empty"),
        ({"sigma": 0.0}, r"TARGET_SIGMA is 0\.0"),
        ({"prior": 1.0}, r"PRIOR is 1\.0"),
    ],
)
def test_impossible_keys_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"refine": "none", "loss": "mse", **options})
