"""Backbone with two pyramids: shapes, strides, parameter counts (spec sections 1, 2 and 13)."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN

from mpn_d2.modeling.backbone import AnyStrideFPN, FeatureRelay

LEVELS = ("k2", "k3", "k4", "k5", "p3", "p4", "p5", "p6", "p7")


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def parameters_and_buffers(module) -> int:
    """Weights and biases of norms count whether they are parameters or buffers (design 7.17)."""
    buffers = sum(b.numel() for n, b in module.named_buffers() if n.endswith(("weight", "bias")))
    return parameters(module) + buffers


@pytest.mark.parametrize(
    ("config", "trunk"), [("R_50", 23_508_032), ("R_101", 42_500_160), ("R_50_dilated", 23_508_032)]
)
def test_parameter_counts_of_the_paper(paper_config, config, trunk):
    backbone = build_backbone(paper_config(f"MultiPoseNet/{config}.yaml"))
    assert parameters_and_buffers(backbone.bottom_up) == trunk
    assert parameters(backbone.keypoint_fpn) == 3_344_384
    assert parameters(backbone.person_fpn) == 7_997_440


@pytest.mark.parametrize(
    ("config", "strides"),
    [
        ("R_18_small", [4, 8, 16, 32, 8, 16, 32, 64, 128]),
        ("R_50_dilated", [4, 8, 16, 16, 8, 16, 16, 32, 64]),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_feature_shapes(paper_config, config, strides, shared):
    cfg = paper_config(f"MultiPoseNet/{config}.yaml", ["MODEL.POSE_FPN.SHARED", str(shared)])
    backbone = build_backbone(cfg).eval()
    height, width = 96, 160
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, height, width))
    assert tuple(features) == LEVELS == tuple(backbone.output_shape())
    for name, stride in zip(LEVELS, strides, strict=True):
        assert backbone.output_shape()[name].stride == stride
        size = (-(-height // stride), -(-width // stride))
        assert features[name].shape == (1, cfg.MODEL.FPN.OUT_CHANNELS, *size), name
    keypoint = backbone.pyramids(backbone.bottom_up(torch.randn(1, 3, 64, 64)), person=False)
    assert list(keypoint) == ["k2", "k3", "k4", "k5"]


def test_shared_pyramid_has_one_set_of_weights(paper_config):
    separate = build_backbone(paper_config("MultiPoseNet/R_18_small.yaml"))
    shared = build_backbone(paper_config("MultiPoseNet/R_50_shared.yaml"))
    assert shared.keypoint_fpn is None and shared.person_fpn is None
    assert parameters(shared.fpn) == 3_344_384 + 4_718_848 + 590_080
    names = {n for m in separate.person_modules() for n, _ in m.named_parameters()}
    assert any(n.startswith("fpn_lateral3") for n in names)
    # Of a shared pyramid only p6 and p7 belong to persons alone.
    assert shared.person_modules() == [shared.fpn.top_block]


def test_any_stride_fpn_equals_detectron2_where_strides_double():
    shapes = {
        "res3": ShapeSpec(channels=6, stride=8),
        "res4": ShapeSpec(channels=8, stride=16),
        "res5": ShapeSpec(channels=4, stride=32),
    }
    ours = AnyStrideFPN(shapes, list(shapes), out_channels=5)
    theirs = FPN(FeatureRelay(shapes), list(shapes), out_channels=5)
    theirs.load_state_dict(ours.state_dict())
    features = {
        "res3": torch.randn(2, 6, 24, 16),
        "res4": torch.randn(2, 8, 12, 8),
        "res5": torch.randn(2, 4, 6, 4),
    }
    got, want = ours(features), theirs(features)
    assert list(got) == list(want) == ["p3", "p4", "p5"]
    for name in want:
        torch.testing.assert_close(got[name], want[name])
    assert ours.output_shape() == theirs.output_shape()


def test_any_stride_fpn_by_hand_at_equal_strides():
    shapes = {"a": ShapeSpec(channels=1, stride=4), "b": ShapeSpec(channels=1, stride=4)}
    fpn = AnyStrideFPN(shapes, ["a", "b"], out_channels=1)
    for conv in (*fpn.lateral_convs, *fpn.output_convs):
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
        conv.weight.data[0, 0, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] = 1
    a, b = torch.randn(1, 1, 5, 7), torch.randn(1, 1, 5, 7)
    fine, coarse = fpn({"a": a, "b": b}).values()
    torch.testing.assert_close(coarse, b)
    torch.testing.assert_close(fine, a + b)


def test_missing_feature_is_named(paper_config):
    cfg = paper_config("MultiPoseNet/R_18_small.yaml", ["MODEL.RESNETS.OUT_FEATURES", "['res5']"])
    with pytest.raises(ValueError, match="no feature 'res2'"):
        build_backbone(cfg)
