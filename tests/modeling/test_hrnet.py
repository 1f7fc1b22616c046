"""HRNet and its pyramid: timm's names, shapes at odd sizes, frozen parts."""

from __future__ import annotations

import hashlib

import pytest
import torch
from detectron2.modeling import build_model

from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.modeling.backbone import HighResolutionPyramid, HRNet

# Of timm 1.0.31's hrnet_w32 without what it has for classification alone (HEAD): names and shapes
# of its state, as below.
TIMM_ENTRIES = 1525
TIMM_DIGEST = "2dd813b7e9a08d8f"
COUNTERS = "num_batches_tracked"
HEAD = ("incre_modules", "downsamp_modules", "final_layer", "classifier")


def digest(state: dict[str, torch.Tensor]) -> tuple[int, str]:
    lines = sorted(
        f"{name} {tuple(value.shape)}"
        for name, value in state.items()
        if not name.endswith(COUNTERS) and not name.startswith(HEAD)
    )
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_names_and_shapes_are_timms(norm):
    assert digest(HRNet(norm=norm).state_dict()) == (TIMM_ENTRIES, TIMM_DIGEST)


def test_the_same_features_as_timm():
    timm = pytest.importorskip(
        "timm", reason="timm is no dependency: pip install mpn_d2[backbones]"
    )
    theirs = timm.create_model(
        "hrnet_w32", pretrained=False, features_only=True, feature_location=""
    )
    theirs.eval()
    ours = HRNet(norm="BN").eval()
    missing, _ = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    assert digest(theirs.state_dict()) == (TIMM_ENTRIES, TIMM_DIGEST)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = theirs(image)[-4:], ours(image)
    for a, b in zip(expected, found.values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_timms_checkpoint_fills_the_backbone(paper_config, tmp_path):
    """As docs/pose_regression.md says; what timm has for classification is left out."""
    source = HRNet(norm="BN")
    state = {name: torch.rand_like(value.float()) for name, value in source.state_dict().items()}
    state |= {"classifier.weight": torch.zeros(10, 2048), "final_layer.0.bias": torch.zeros(2048)}
    torch.save(state, tmp_path / "hrnet_w32.pth")
    model = build_model(paper_config("PoseRegression/HRNet_w32.yaml"))
    checkpointer = PoseCheckpointer(model)
    checkpointer.load(f"{tmp_path / 'hrnet_w32.pth'}?matching_heuristics=True")
    prefix = "backbone.bottom_up."
    assert not [name for name in checkpointer.not_loaded if name.startswith(prefix)]
    for name, value in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(value, state[name]), name
    # Nothing else was taken for a part of HRNet.
    others = {name for name in model.state_dict() if not name.startswith(prefix)}
    assert checkpointer.not_loaded == others


def small_pyramid(**kwargs) -> HighResolutionPyramid:
    names = ["stride4", "stride8", "stride16", "stride32"]
    return HighResolutionPyramid(HRNet(width=8, norm="BN", **kwargs), names, 16)


def test_levels_of_the_pyramid():
    pyramid = small_pyramid().eval()
    assert pyramid.size_divisibility == 64
    with torch.no_grad():
        levels = pyramid(torch.randn(2, 3, 64, 192))
    assert list(levels) == ["p3", "p4", "p5", "p6", "p7"]
    for name, shape in pyramid.output_shape().items():
        expected = (2, 16, -(-64 // shape.stride), -(-192 // shape.stride))
        assert tuple(levels[name].shape) == expected, name
    assert [s.stride for s in pyramid.output_shape().values()] == [8, 16, 32, 64, 128]


def test_frozen_parts():
    free = HRNet(width=8, norm="BN", freeze_at=0)
    assert all(p.requires_grad for p in free.parameters())
    frozen = HRNet(width=8, norm="BN", freeze_at=2)
    names = [name for name, p in frozen.named_parameters() if not p.requires_grad]
    assert names and all(n.startswith(("conv1", "conv2", "layer1")) for n in names)
    before = {n: v.clone() for n, v in frozen.state_dict().items()}
    frozen.train()(torch.randn(2, 3, 32, 32))
    changed = {n for n, v in frozen.state_dict().items() if not torch.equal(v, before[n])}
    assert changed and not any(n.startswith(("bn1", "bn2", "layer1")) for n in changed)


def test_unknown_features_are_named():
    with pytest.raises(ValueError, match=r"no feature 'res5'.*stride4"):
        HighResolutionPyramid(HRNet(width=8, norm="BN"), ["stride4", "res5"], 16)
