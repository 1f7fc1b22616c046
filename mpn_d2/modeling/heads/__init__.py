from mpn_d2.modeling.heads.bottom_up_features import BottomUpMaps, BottomUpReader, build_bottom_up
from mpn_d2.modeling.heads.build import (
    KEYPOINT_HEATMAP_HEAD_REGISTRY,
    build_keypoint_heatmap_head,
)
from mpn_d2.modeling.heads.heatmap_head import HeatmapHead, HeatmapTargets
from mpn_d2.modeling.heads.keypoint_heatmap import KeypointSubnet, SingleLevelSubnet
from mpn_d2.modeling.heads.openpose_channels import OpenPoseSubnet
from mpn_d2.modeling.heads.pose_regression import PoseOffsetHead
from mpn_d2.modeling.heads.pose_scoring import OKSFilter, PoseScorer
from mpn_d2.modeling.heads.tag_head import AssociativeEmbeddingHead

__all__ = [
    "KEYPOINT_HEATMAP_HEAD_REGISTRY",
    "AssociativeEmbeddingHead",
    "BottomUpMaps",
    "BottomUpReader",
    "HeatmapHead",
    "HeatmapTargets",
    "KeypointSubnet",
    "OKSFilter",
    "OpenPoseSubnet",
    "PoseOffsetHead",
    "PoseScorer",
    "SingleLevelSubnet",
    "build_bottom_up",
    "build_keypoint_heatmap_head",
]
