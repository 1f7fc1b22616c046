"""HRNet, parallel branches that keep a high resolution, under timm's names of its weights.

Sun, Xiao, Liu, Wang: Deep High-Resolution Representation Learning for Human Pose Estimation, CVPR
2019, figure 1 and section 3: branch i has 2^i times the stride and the channels of branch 0; every
module of a stage runs four residual blocks a branch and then adds all branches to each other.
ImageNet weights: a checkpoint of timm's `hrnet_w32` fits name by name (docs/pose_regression.md);
what it has for the classification alone is left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

# Modules of stages 2, 3 and 4, which have 2, 3 and 4 branches (table 1 of the paper).
_MODULES = (1, 4, 3)
_BLOCKS = 4
_STEM_WIDTH = 64
_STEM_OUT = 4 * _STEM_WIDTH


class HRNet(Backbone):
    """Images -> the branches of the last stage, "stride4" to "stride32".

    Args:
        width: channels of the finest branch (32 in HRNet-w32).
        norm: Detectron2's name of the norm.
        freeze_at: 1 freezes the stem, 2 the first stage too, 0 nothing.
    """

    def __init__(self, *, width: int = 32, norm: str = "FrozenBN", freeze_at: int = 0) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"MODEL.HRNET.WIDTH is {width}: at least 1 is needed")
        self.conv1, self.bn1 = _conv(3, _STEM_WIDTH, 3, 2), get_norm(norm, _STEM_WIDTH)
        self.conv2, self.bn2 = _conv(_STEM_WIDTH, _STEM_WIDTH, 3, 2), get_norm(norm, _STEM_WIDTH)
        blocks = [_Bottleneck(_STEM_WIDTH, norm)]
        blocks += [_Bottleneck(_STEM_OUT, norm) for _ in range(_BLOCKS - 1)]
        self.layer1 = nn.Sequential(*blocks)
        widths = [width * 2**i for i in range(len(_MODULES) + 1)]
        before = [_STEM_OUT]
        for i, count in enumerate(_MODULES):
            now = widths[: i + 2]
            self.add_module(f"transition{i + 1}", _transition(before, now, norm))
            stage = nn.Sequential(*(_Exchange(now, norm) for _ in range(count)))
            self.add_module(f"stage{i + 2}", stage)
            before = now
        self._shapes = {
            f"stride{4 * 2**i}": ShapeSpec(channels=c, stride=4 * 2**i)
            for i, c in enumerate(widths)
        }
        self._freeze(freeze_at)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W), multiples of `size_divisibility` -> features by name."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        branches = [self.layer1(x)]
        for i in range(len(_MODULES)):
            transition = getattr(self, f"transition{i + 1}")
            # A new branch comes from the coarsest one.
            branches = [
                layer(branches[min(j, len(branches) - 1)]) for j, layer in enumerate(transition)
            ]
            branches = getattr(self, f"stage{i + 2}")(branches)
        return dict(zip(self._shapes, branches, strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    @property
    def size_divisibility(self) -> int:
        # Branches are enlarged by whole factors when they are added.
        return 32

    def _freeze(self, freeze_at: int) -> None:
        frozen = [self.conv1, self.bn1, self.conv2, self.bn2] if freeze_at >= 1 else []
        frozen += [self.layer1] if freeze_at >= 2 else []
        for module in frozen:
            module.requires_grad_(False)
        if freeze_at >= 1:
            self.bn1 = FrozenBatchNorm2d.convert_frozen_batchnorm(self.bn1)
            self.bn2 = FrozenBatchNorm2d.convert_frozen_batchnorm(self.bn2)
        if freeze_at >= 2:
            self.layer1 = FrozenBatchNorm2d.convert_frozen_batchnorm(self.layer1)


@BACKBONE_REGISTRY.register()
def build_hrnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HRNet:
    """MODEL.HRNET.WIDTH, MODEL.RESNETS.NORM and MODEL.BACKBONE.FREEZE_AT."""
    return HRNet(
        width=cfg.MODEL.HRNET.WIDTH,
        norm=cfg.MODEL.RESNETS.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with four times the stem's channels out."""

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, _STEM_WIDTH, 1), get_norm(norm, _STEM_WIDTH)
        self.conv2, self.bn2 = _conv(_STEM_WIDTH, _STEM_WIDTH, 3), get_norm(norm, _STEM_WIDTH)
        self.conv3, self.bn3 = _conv(_STEM_WIDTH, _STEM_OUT, 1), get_norm(norm, _STEM_OUT)
        self.downsample = None
        if in_channels != _STEM_OUT:
            self.downsample = nn.Sequential(
                _conv(in_channels, _STEM_OUT, 1), get_norm(norm, _STEM_OUT)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, channels unchanged."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, channels, 3), get_norm(norm, channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), get_norm(norm, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class _Exchange(nn.Module):
    """Residual blocks on every branch, then each branch becomes the sum of all."""

    def __init__(self, widths: list[int], norm: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(_Block(c, norm) for _ in range(_BLOCKS))) for c in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_to_branch(widths, j, i, norm) for j in range(len(widths)))
            for i in range(len(widths))
        )

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        results = []
        for layers in self.fuse_layers:
            parts = [layer(x) for layer, x in zip(layers, features, strict=True)]
            results.append(F.relu(sum(parts[1:], parts[0])))
        return results


def _to_branch(widths: list[int], source: int, target: int, norm: str) -> nn.Module:
    """What one branch adds to another: enlarged, halved step by step, or as it is."""
    if source == target:
        return nn.Identity()
    here, there = widths[source], widths[target]
    if source > target:
        enlarge = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return nn.Sequential(_conv(here, there, 1), get_norm(norm, there), enlarge)
    steps = [_halving(here, here, norm) for _ in range(target - source - 1)]
    last = nn.Sequential(_conv(here, there, 3, 2), get_norm(norm, there))
    return nn.Sequential(*steps, last)


def _transition(before: list[int], now: list[int], norm: str) -> nn.ModuleList:
    """To the branches of the next stage: widened where needed, one more, half as large."""
    layers: list[nn.Module] = []
    for i, channels in enumerate(now):
        if i >= len(before):
            layers.append(nn.Sequential(_halving(before[-1], channels, norm)))
        elif before[i] != channels:
            conv = _conv(before[i], channels, 3)
            layers.append(nn.Sequential(conv, get_norm(norm, channels), nn.ReLU()))
        else:
            layers.append(nn.Identity())
    return nn.ModuleList(layers)


def _halving(in_channels: int, channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, channels, 3, 2), get_norm(norm, channels), nn.ReLU())


def _conv(in_channels: int, channels: int, side: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, side, stride, side // 2, bias=False)
    c2_msra_fill(conv)
    return conv
