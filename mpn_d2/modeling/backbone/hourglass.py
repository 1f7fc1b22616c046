"""Stacked hourglasses whose outputs are heatmaps, tags and free channels.

The base network of associative embedding (Newell, Huang, Deng, NIPS 2017) as in its code
(princeton-vl/pose-ae-train): spec of unified association, section 2. No norm layers.
Letters: N images, K keypoint types, S stacks; cells of stride 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import nn

from mpn_d2.structures.skeleton import get_skeleton

STRIDE = 4
# Of group norm, where it is asked for.
GROUPS = 8


@BACKBONE_REGISTRY.register()
class StackedHourglass(Backbone):
    """Gives the output of each stack, "hg1" ... "hgS", (N, `out_channels`, H/4, W/4), linear.

    Every stack but the first also sees the features and the output of the one before (1x1
    convolutions, added).
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        stacks: int = 4,
        width: int = 256,
        growth: int = 128,
        order: int = 4,
    ) -> None:
        """
        Args:
            in_channels: of the images.
            out_channels: of each stack's output.
            stacks: number of hourglasses, S.
            width: channels at stride 4.
            growth: further channels at each coarser level.
            order: levels below stride 4.
        """
        super().__init__()
        if min(stacks, width, order) < 1:
            raise ValueError(
                f"MODEL.HOURGLASS: STACKS {stacks}, WIDTH {width} and ORDER {order} must be 1 or "
                "more"
            )
        self.out_channels, self.order = out_channels, order
        stem, half = max(width // 4, 1), max(width // 2, 1)
        self.stem = nn.Sequential(
            conv_relu(in_channels, stem, kernel=7, stride=2),
            conv_relu(stem, half),
            nn.MaxPool2d(2),
            conv_relu(half, half),
            conv_relu(half, width),
        )
        self.hourglasses = nn.ModuleList(
            nn.Sequential(
                Hourglass(order, width, growth), conv_relu(width, width), conv_relu(width, width)
            )
            for _ in range(stacks)
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for _ in range(stacks))
        for head in self.heads:
            # Heatmaps are almost everywhere 0 at the start, like their targets.
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        self.merge_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.merge_outputs = nn.ModuleList(
            nn.Conv2d(out_channels, width, 1) for _ in range(stacks - 1)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        # Heatmaps, tags and as many free channels as both: 68 for COCO's keypoints.
        return {
            "in_channels": input_shape.channels,
            "out_channels": 4 * get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
            "stacks": cfg.MODEL.HOURGLASS.STACKS,
            "width": cfg.MODEL.HOURGLASS.WIDTH,
            "growth": cfg.MODEL.HOURGLASS.GROWTH,
            "order": cfg.MODEL.HOURGLASS.ORDER,
        }

    @property
    def size_divisibility(self) -> int:
        return STRIDE * 2**self.order

    def output_shape(self) -> dict[str, ShapeSpec]:
        shape = ShapeSpec(channels=self.out_channels, stride=STRIDE)
        return {f"hg{i + 1}": shape for i in range(len(self.hourglasses))}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (N, C, H, W), H and W multiples of `size_divisibility`."""
        x, found = self.stem(images), {}
        for i, (hourglass, head) in enumerate(zip(self.hourglasses, self.heads, strict=True)):
            features = hourglass(x)
            output = head(features)
            found[f"hg{i + 1}"] = output
            if i < len(self.merge_outputs):
                x = x + self.merge_features[i](features) + self.merge_outputs[i](output)
        return found


class Hourglass(nn.Module):
    """One level: what stays at this resolution, plus what the levels below see."""

    def __init__(self, order: int, width: int, growth: int, *, norm: bool = False) -> None:
        """
        Args:
            order: levels below this one, at least 1.
            width: channels in and out.
            growth: further channels of each level below.
            norm: group norm (GROUPS) between convolution and ReLU; widths are multiples of it.
        """
        super().__init__()
        inner = width + growth
        self.skip = conv_relu(width, width, norm=norm)
        self.down = conv_relu(width, inner, norm=norm)
        if order > 1:
            self.below: nn.Module = Hourglass(order - 1, inner, growth, norm=norm)
        else:
            self.below = conv_relu(inner, inner, norm=norm)
        self.up = conv_relu(inner, width, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.up(self.below(self.down(F.max_pool2d(x, 2, ceil_mode=True))))
        return self.skip(x) + F.interpolate(low, size=x.shape[-2:], mode="nearest")


def conv_relu(
    before: int, after: int, kernel: int = 3, stride: int = 1, *, norm: bool = False
) -> nn.Sequential:
    """A convolution of the same size (at stride 1), group norm where wanted, and a ReLU."""
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)
    norms = [nn.GroupNorm(GROUPS, after)] if norm else []
    return nn.Sequential(conv, *norms, nn.ReLU(inplace=True))
