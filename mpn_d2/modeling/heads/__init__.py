from mpn_d2.modeling.heads.build import (
    KEYPOINT_HEATMAP_HEAD_REGISTRY,
    build_keypoint_heatmap_head,
)
from mpn_d2.modeling.heads.heatmap_head import HeatmapHead, HeatmapTargets
from mpn_d2.modeling.heads.keypoint_heatmap import KeypointSubnet, SingleLevelSubnet
from mpn_d2.modeling.heads.openpose_channels import OpenPoseSubnet

__all__ = [
    "KEYPOINT_HEATMAP_HEAD_REGISTRY",
    "HeatmapHead",
    "HeatmapTargets",
    "KeypointSubnet",
    "OpenPoseSubnet",
    "SingleLevelSubnet",
    "build_keypoint_heatmap_head",
]
