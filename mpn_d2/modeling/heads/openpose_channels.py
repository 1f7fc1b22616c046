"""The keypoint subnet with OpenPose's channels, as in LiMeng95/MultiPoseNet.pytorch.

Letters: N images, K keypoint types of the skeleton, H x W cells. Facts on that code's checkpoints:
docs/checkpoints.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from mpn_d2.modeling.heads.build import KEYPOINT_HEATMAP_HEAD_REGISTRY
from mpn_d2.modeling.heads.heatmap_head import HeatmapTargets
from mpn_d2.modeling.heads.keypoint_heatmap import KeypointSubnet
from mpn_d2.structures.outputs import HeatmapOutputs
from mpn_d2.structures.skeleton import OPENPOSE_NAMES, get_skeleton


@KEYPOINT_HEATMAP_HEAD_REGISTRY.register()
class OpenPoseSubnet(KeypointSubnet):
    """KeypointSubnet whose convolutions predict OpenPose's channels instead of the skeleton's.

    The last convolution has a neck more than COCO, those of the intermediate supervision a
    background channel after it. What comes out is in the order of the skeleton: neck and background
    are left out, and neither is trained. There is no person mask: its channel is 0 everywhere,
    without a loss.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        keypoint_names: Sequence[str],
        **keypoint_subnet,
    ):
        """
        Args:
            input_shape: see HeatmapHead.
            keypoint_names: of the skeleton, each one of OpenPose's.
            keypoint_subnet: arguments of KeypointSubnet.

        Raises:
            ValueError: a keypoint that OpenPose does not have.
        """
        super().__init__(input_shape=input_shape, **keypoint_subnet)
        unknown = [name for name in keypoint_names if name not in OPENPOSE_NAMES]
        if unknown:
            raise ValueError(
                f"MODEL.KP_SUBNET.NAME OpenPoseSubnet has no channel for {', '.join(unknown)}: "
                "set MODEL.SKELETON coco, or MODEL.KP_SUBNET.NAME KeypointSubnet"
            )
        channels = torch.tensor([OPENPOSE_NAMES.index(name) for name in keypoint_names])
        self.register_buffer("channels", channels, persistent=False)
        self.predictor = self._map_conv(self.predictor.in_channels, len(OPENPOSE_NAMES))
        self.intermediate = nn.ModuleDict(
            {
                name: self._map_conv(conv.in_channels, len(OPENPOSE_NAMES) + 1)
                for name, conv in self.intermediate.items()
            }
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "keypoint_names": get_skeleton(cfg.MODEL.SKELETON).keypoint_names,
        }

    def layers(self, features: dict[str, torch.Tensor]) -> HeatmapOutputs:
        """Pyramid features (N, C, H_l, W_l) by name -> maps (N, K + 1, H, W), the last one 0."""
        outputs = super().layers(features)
        intermediate = {name: self._in_order(maps) for name, maps in outputs.intermediate.items()}
        return replace(outputs, maps=self._in_order(outputs.maps), intermediate=intermediate)

    def make_targets(self, *args, **kwargs) -> HeatmapTargets:
        """As HeatmapHead's; the person mask, which is not predicted, counts nothing."""
        targets = super().make_targets(*args, **kwargs)
        targets.loss_mask[:, self.num_keypoints] = 0
        return targets

    def _in_order(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, OpenPose's channels, H, W) -> (N, K, H, W), and zeros for a person mask if any."""
        ordered = maps.index_select(1, self.channels)
        return F.pad(ordered, (0, 0, 0, 0, 0, self.num_maps - self.num_keypoints))
