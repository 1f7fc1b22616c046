"""Five pyramid levels, p3 to p7 (strides 8 to 128), for heads that predict at every location.

Two necks: Detectron2's FPN with p6 and p7 from p5, as FCOS has it, and HRNet's high-resolution
pyramid. Pose regression's spec, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from fvcore.nn.weight_init import c2_xavier_fill

_NUM_LEVELS = 5
_FIRST_LEVEL = 3


@BACKBONE_REGISTRY.register()
def build_fpn_to_p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN over MODEL.POSE_FPN.BOTTOM_UP with p6 and p7 from p5.

    (Detectron2's RetinaNet backbone makes these two from res5.)
    """
    bottom_up = BACKBONE_REGISTRY.get(cfg.MODEL.POSE_FPN.BOTTOM_UP)(cfg, input_shape)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


class HighResolutionPyramid(Backbone):
    """Levels averaged down from one map that joins all branches at the finest one's size.

    HRNet's HRFPN with convolutions of stride 2 [ref:SMPR]: branches are enlarged bilinearly and
    joined, a 1x1 convolution reduces them, level i is the mean over 2^i x 2^i cells and a 3x3
    convolution of stride 2.
    """

    def __init__(
        self, bottom_up: Backbone, in_features: list[str], out_channels: int, norm: str = ""
    ) -> None:
        """
        Args:
            bottom_up: gives the named features, fine to coarse.
            in_features: their names.
            out_channels: of every level.
            norm: Detectron2's name of the norm after each convolution, "" for none.
        """
        super().__init__()
        shapes = bottom_up.output_shape()
        for name in in_features:
            if name not in shapes:
                raise ValueError(
                    f"the bottom-up network has no feature {name!r}, only {list(shapes)}: set "
                    "MODEL.FPN.IN_FEATURES to some of these"
                )
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        joined = sum(shapes[name].channels for name in in_features)
        self.reduce = _conv(joined, out_channels, norm, kernel_size=1)
        names = [f"p{_FIRST_LEVEL + i}" for i in range(_NUM_LEVELS)]
        for name in names:
            conv = _conv(out_channels, out_channels, norm, kernel_size=3, stride=2, padding=1)
            self.add_module(f"output_{name}", conv)
        finest = shapes[in_features[0]].stride
        self._shapes = {
            name: ShapeSpec(channels=out_channels, stride=finest * 2 ** (i + 1))
            for i, name in enumerate(names)
        }
        # The coarsest mean is over whole windows.
        self._divisibility = max(finest * 2 ** (_NUM_LEVELS - 1), bottom_up.size_divisibility)

    @property
    def size_divisibility(self) -> int:
        return self._divisibility

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W), multiples of `size_divisibility` -> p3 .. p7."""
        features = self.bottom_up(images)
        finest = features[self.in_features[0]]
        size = finest.shape[-2:]
        parts = [finest]
        for name in self.in_features[1:]:
            parts.append(
                F.interpolate(features[name], size=size, mode="bilinear", align_corners=False)
            )
        joined = self.reduce(torch.cat(parts, dim=1))
        levels = {}
        for i, name in enumerate(self._shapes):
            mean = F.avg_pool2d(joined, 2**i) if i else joined
            levels[name] = getattr(self, f"output_{name}")(mean)
        return levels

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes


@BACKBONE_REGISTRY.register()
def build_high_resolution_pyramid_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> HighResolutionPyramid:
    """The pyramid over MODEL.POSE_FPN.BOTTOM_UP and its MODEL.FPN.IN_FEATURES."""
    bottom_up = BACKBONE_REGISTRY.get(cfg.MODEL.POSE_FPN.BOTTOM_UP)(cfg, input_shape)
    return HighResolutionPyramid(
        bottom_up, cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM
    )


def _conv(in_channels: int, channels: int, norm: str, **kwargs: int) -> Conv2d:
    conv = Conv2d(in_channels, channels, bias=norm == "", norm=get_norm(norm, channels), **kwargs)
    c2_xavier_fill(conv)
    return conv
