"""Trunks of torchvision and timm give the same features here."""

from __future__ import annotations

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from torch import nn

from mpn_d2.convert import convert
from mpn_d2.engine.checkpoint import PoseCheckpointer

SMALL = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.PRN.NODES", "4"]
IMAGE = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(4)).byte()


def shaken(network: nn.Module) -> nn.Module:
    """Norms as trained ones have them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def features(network: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """res2 to res5 of torchvision's and timm's networks, from an RGB image in 0 to 255."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    found = {}
    with torch.no_grad():
        x = (image.float() / 255 - mean) / std
        x = network.maxpool(network.bn1(network.conv1(x[None])).relu())
        for i in range(1, 5):
            x = found[f"res{i + 1}"] = getattr(network, f"layer{i}")(x)
    return found


def check(source: str, network: nn.Module, cfg, path) -> None:
    done = convert(source, network.state_dict())
    assert sorted(done.unused) == ["fc.bias", "fc.weight"]
    torch.save({"model": done.weights, "settings": done.settings}, path)
    model = build_model(cfg).eval()
    checkpointer = PoseCheckpointer(model, cfg=cfg)
    checkpointer.load(str(path))
    assert not any(name.startswith("backbone.bottom_up.") for name in checkpointer.not_loaded)
    with torch.no_grad():
        ours = model.backbone.bottom_up(model.preprocess_image([{"image": IMAGE}]).tensor)
    for name, expected in features(network, IMAGE).items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 18), ("resnet50", 50)])
def test_torchvision(name, depth, tmp_path, paper_config):
    options = [*SMALL, "MODEL.RESNETS.DEPTH", str(depth)]
    if depth == 18:
        options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    network = shaken(torchvision.models.get_model(name))
    check(
        "torchvision_resnet",
        network,
        paper_config("MultiPoseNet/R_50.yaml", options),
        tmp_path / "x.pth",
    )


@pytest.mark.parametrize(
    ("name", "groups", "width"), [("resnext50_32x4d", 32, 4), ("wide_resnet50_2", 1, 128)]
)
def test_groups_and_widths(name, groups, width, tmp_path, paper_config):
    network = shaken(torchvision.models.get_model(name))
    options = ["MODEL.RESNETS.NUM_GROUPS", str(groups), "MODEL.RESNETS.WIDTH_PER_GROUP", str(width)]
    cfg = paper_config("MultiPoseNet/R_50.yaml", [*SMALL, *options])
    check("torchvision_resnet", network, cfg, tmp_path / "x.pth")
    # The weights of either do not go into the plain network.
    cfg = paper_config("MultiPoseNet/R_50.yaml", SMALL)
    with pytest.raises(ValueError, match=rf'MODEL\.RESNETS\.WIDTH_PER_GROUP "{width}"'):
        PoseCheckpointer(build_model(cfg), cfg=cfg).load(str(tmp_path / "x.pth"))


def test_timm(tmp_path, paper_config):
    timm = pytest.importorskip("timm")
    network = shaken(timm.create_model("resnet34"))
    options = [*SMALL, "MODEL.RESNETS.DEPTH", "34", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    cfg = paper_config("MultiPoseNet/R_50.yaml", options)
    check("timm_resnet", network, cfg, tmp_path / "x.pth")


def test_other_networks_are_refused():
    state = torchvision.models.resnet18().state_dict()
    with pytest.raises(ValueError, match=r"4 unknown: stem\.0\.weight"):
        convert("timm_resnet", {**state, **{f"stem.{i}.weight": torch.zeros(1) for i in range(4)}})
    del state["layer2.0.downsample.0.weight"]
    with pytest.raises(ValueError, match=r"1 missing: layer2\.0\.downsample\.0\.weight"):
        convert("torchvision_resnet", state)
    with pytest.raises(ValueError, match=r"layers of \[0, 0, 0, 0\] basic blocks"):
        convert("torchvision_resnet", torchvision.models.squeezenet1_0().state_dict())
