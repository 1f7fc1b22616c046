"""Heads that predict keypoint heatmaps and person mask from the keypoint pyramid.

KeypointSubnet is MultiPoseNet's (paper section 3.1, spec section 3), SingleLevelSubnet the rows
of its ablation that predict from K2 alone (E4 a and b of spec section 12).
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import nn

from mpn_d2.layers.upsampled_conv import ConvOfUpsampledLevels
from mpn_d2.modeling.heads.build import KEYPOINT_HEATMAP_HEAD_REGISTRY
from mpn_d2.modeling.heads.heatmap_head import HeatmapHead
from mpn_d2.structures.outputs import HeatmapOutputs


@KEYPOINT_HEATMAP_HEAD_REGISTRY.register()
class KeypointSubnet(HeatmapHead):
    """Two 3x3 convolutions per level, upsampled to the finest, concatenated, smoothed, predicted.

    While training, a 1x1 convolution on every pyramid level is supervised with the same maps
    (intermediate supervision); it is not run at inference.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        d_dim: int = 128,
        d_relu: bool = True,
        smooth_dim: int = 256,
        norm: str = "",
        **heatmap_head,
    ):
        """
        Args:
            input_shape: see HeatmapHead.
            d_dim, d_relu, smooth_dim, norm: layer sizes, see MODEL.KP_SUBNET.
            heatmap_head: arguments of HeatmapHead.
        """
        super().__init__(input_shape=input_shape, **heatmap_head)

        def conv3x3(in_channels: int, out_channels: int, relu: bool) -> Conv2d:
            conv = Conv2d(
                in_channels,
                out_channels,
                kernel_size=3,
                padding=1,
                bias=not norm,
                norm=get_norm(norm, out_channels),
                activation=F.relu if relu else None,
            )
            weight_init.c2_msra_fill(conv)
            return conv

        self.d_convs = nn.ModuleDict()
        self.intermediate = nn.ModuleDict()
        for name, shape in input_shape.items():
            self.d_convs[name] = nn.Sequential(
                conv3x3(shape.channels, d_dim, d_relu), conv3x3(d_dim, d_dim, d_relu)
            )
            if self.intermediate_weight > 0:
                self.intermediate[name] = self._map_conv(shape.channels)
        self.smooth = conv3x3(d_dim * len(input_shape), smooth_dim, relu=True)
        self.predictor = self._map_conv(smooth_dim)
        self.factors = [shape.stride // self.stride for shape in input_shape.values()]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "d_dim": cfg.MODEL.KP_SUBNET.D_DIM,
            "d_relu": cfg.MODEL.KP_SUBNET.D_RELU,
            "smooth_dim": cfg.MODEL.KP_SUBNET.SMOOTH_DIM,
            "norm": cfg.MODEL.KP_SUBNET.NORM,
        }

    def layers(self, features: dict[str, torch.Tensor]) -> HeatmapOutputs:
        """Pyramid features (N, C, H_l, W_l) by name -> maps (N, K + 1, H, W)."""
        # Coarse to fine, the order of the references, so that their weights can be converted.
        levels = [self.d_convs[f](features[f]) for f in self.in_features[::-1]]
        if isinstance(self.smooth, ConvOfUpsampledLevels):
            smoothed = self.smooth(levels)
        else:
            finest = levels[-1].shape[-2:]
            smoothed = self.smooth(torch.cat([self._resize(x, finest) for x in levels], dim=1))
        return HeatmapOutputs(
            maps=self.predictor(smoothed),
            stride=self.stride,
            intermediate=self._intermediate_maps(self.intermediate, features),
        )

    def smooth_at_low_resolution(self) -> None:
        """From now on smooths the levels before it upsamples them: the same maps, only to predict
        with."""
        convs: list[Any] = [self.d_convs[f] for f in self.in_features[::-1]]
        channels = [conv[-1].out_channels for conv in convs]
        self.smooth = ConvOfUpsampledLevels(
            self.smooth, channels=channels, factors=self.factors[::-1], mode=self.upsample
        )


@KEYPOINT_HEATMAP_HEAD_REGISTRY.register()
class SingleLevelSubnet(HeatmapHead):
    """The maps come from the finest level alone, by the 1x1 convolution of its supervision.

    The coarser levels are supervised beside it while training, unless the intermediate weight
    is 0; none of them is run at inference.
    """

    @configurable
    def __init__(self, *, input_shape: dict[str, ShapeSpec], **heatmap_head):
        """See HeatmapHead."""
        super().__init__(input_shape=input_shape, **heatmap_head)
        finest, *coarser = self.in_features
        self.predictor = self._map_conv(input_shape[finest].channels)
        self.intermediate = nn.ModuleDict()
        if self.intermediate_weight > 0:
            for name in coarser:
                self.intermediate[name] = self._map_conv(input_shape[name].channels)

    def layers(self, features: dict[str, torch.Tensor]) -> HeatmapOutputs:
        """Pyramid features (N, C, H_l, W_l) by name -> maps (N, K + 1, H, W)."""
        finest, *coarser = self.in_features
        maps = self.predictor(features[finest])
        if self.training and not self.intermediate:
            # Levels that nothing reads stay in the graph: DDP waits for gradients of all weights.
            maps = maps + sum(features[name][..., :0].sum() for name in coarser)
        return HeatmapOutputs(
            maps=maps,
            stride=self.stride,
            intermediate=self._intermediate_maps(self.intermediate, features),
        )
