from mpn_d2.modeling.heads.build import (
    KEYPOINT_HEATMAP_HEAD_REGISTRY,
    build_keypoint_heatmap_head,
)
from mpn_d2.modeling.heads.keypoint_heatmap import HeatmapTargets, KeypointSubnet

__all__ = [
    "KEYPOINT_HEATMAP_HEAD_REGISTRY",
    "HeatmapTargets",
    "KeypointSubnet",
    "build_keypoint_heatmap_head",
]
