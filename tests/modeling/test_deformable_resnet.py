"""Backbones with deformable convolutions: names, start, freezing, levels of the pyramid."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import build_resnet_backbone

from mpn_d2.layers.deformable_conv import DeformableConv2d
from mpn_d2.modeling.backbone.deformable_resnet import build_deformable_resnet_backbone

NARROW = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"]
NARROW += ["MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.FPN.OUT_CHANNELS", "16"]
RB = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, True]"]
IMAGES = ShapeSpec(channels=3)


def shallow(paper_config, options=()):
    """ResNet-18, whose widths Detectron2 fixes."""
    return paper_config("MultitaskRCNN/quick_overfit_two.yaml", [*options])


@pytest.mark.parametrize("depth", [18, 50])
def test_it_begins_as_the_plain_network_with_its_names(depth, paper_config):
    if depth == 18:
        cfg = shallow(paper_config, RB)
    else:
        cfg = paper_config(
            "MultitaskRCNN/R_50_multi_RB.yaml", [*NARROW, "MODEL.RESNETS.NORM", "BN"]
        )
    plain_cfg = cfg.clone()
    plain_cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    network = build_deformable_resnet_backbone(cfg, IMAGES).eval()
    plain = build_resnet_backbone(plain_cfg, IMAGES).eval()
    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing and all(".offset." in name for name in missing)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for name, feature in plain(x).items():
            assert torch.equal(network(x)[name], feature)
    # All 3x3 convolutions of res3 to res5, none below.
    deformed = {n for n, m in network.named_modules() if isinstance(m, DeformableConv2d)}
    names = ["conv1", "conv2"] if depth == 18 else ["conv2"]
    blocks = [2, 2, 2] if depth == 18 else [4, 6, 3]
    assert deformed == {
        f"res{stage}.{block}.{name}"
        for stage, count in zip((3, 4, 5), blocks, strict=True)
        for block in range(count)
        for name in names
    }


def test_every_deformable_layer_learns(paper_config):
    network = build_deformable_resnet_backbone(shallow(paper_config, RB), IMAGES)
    sum(f.square().mean() for f in network(torch.randn(2, 3, 64, 64)).values()).backward()
    for module in network.modules():
        if isinstance(module, DeformableConv2d):
            assert module.weight.grad.abs().sum() > 0
            assert module.offset.weight.grad.abs().sum() > 0


def test_freezing(paper_config):
    def trained(options) -> set[str]:
        network = build_deformable_resnet_backbone(shallow(paper_config, [*RB, *options]), IMAGES)
        return {name for name, p in network.named_parameters() if p.requires_grad}

    frozen = trained(["MODEL.BACKBONE.FREEZE_AT", "3"])
    assert frozen and not any(name.startswith(("stem", "res2", "res3")) for name in frozen)
    strict = trained(["RB.TRAIN_ONLY_DEFORM_STAGES", "True"])
    assert {name.split(".")[2] for name in strict} == {"conv1", "conv2"}
    assert {name.split(".")[0] for name in strict} == {"res3", "res4", "res5"}
    cfg = shallow(paper_config, [*RB, "RB.TRAIN_ONLY_DEFORM_STAGES", "True"])
    network = build_deformable_resnet_backbone(cfg, IMAGES)
    # Statistics of frozen norms do not move either.
    assert isinstance(network.res3[0].shortcut.norm, FrozenBatchNorm2d)
    assert not isinstance(network.res3[0].conv2.norm, FrozenBatchNorm2d)


@pytest.mark.parametrize(
    "name, levels",
    [
        ("R_50_multi.yaml", {"p3": 8, "p4": 16, "p5": 32, "p6": 64}),
        ("R_50_single.yaml", {"p5": 32, "p6": 64}),
        ("R_50_standard.yaml", {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}),
    ],
)
def test_levels_of_the_pyramid(name, levels, paper_config):
    cfg = paper_config(f"MultitaskRCNN/{name}", NARROW)
    backbone = build_backbone(cfg)
    assert {n: s.stride for n, s in backbone.output_shape().items()} == levels
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == len(levels)
    features = backbone(torch.randn(1, 3, 64, 128))
    assert {n: tuple(f.shape[-2:]) for n, f in features.items()} == {
        n: (64 // s, 128 // s) for n, s in levels.items()
    }


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.RESNETS.DEFORM_MODULATED", "True"], r"DEFORM_MODULATED"),
        (["MODEL.RESNETS.DEFORM_NUM_GROUPS", "2"], r"DEFORM_NUM_GROUPS"),
        (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[True]"], r"four entries are needed"),
        (["RB.TRAIN_ONLY_DEFORM_STAGES", "True"], r"names no stage"),
    ],
)
def test_impossible_keys_are_named(options, message, paper_config):
    with pytest.raises(ValueError, match=message):
        build_deformable_resnet_backbone(shallow(paper_config, options), IMAGES)
