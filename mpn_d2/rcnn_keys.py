"""The config keys of the multi-task R-CNN that Detectron2 lacks.

Sources in brackets: [report] J. Ye and Z. Ma, Columbia E6691 2021; [D2] Detectron2; [inferred] the
spec's reading of the report; [ours] chosen here.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_rcnn_keys(cfg: CN) -> None:
    """Adds the keys with their defaults, in place. KeypointOffsetHead reads ROI_KEYPOINT_HEAD."""
    # Where learned offsets refine the head: none | conv (its 3x3 convolutions are deformable) |
    # heatmap (the maps are read at offsets) | both. [inferred: both is the report's H]
    cfg.MODEL.ROI_KEYPOINT_HEAD.REFINE = "none"
    # Loss: mse (squared error to Gaussians, summed over cells and keypoints, mean over boxes)
    # [report] | softmax (over the cells of a map) [D2].
    cfg.MODEL.ROI_KEYPOINT_HEAD.LOSS = "mse"
    # LOSS mse: standard deviation of the Gaussians, cells. [report: 1]
    cfg.MODEL.ROI_KEYPOINT_HEAD.TARGET_SIGMA = 1.0
    # LOSS mse: joints of lower visibility count as not there: 1 (unlabelled ones) | 2 (hidden ones
    # too). [inferred: 1]
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_VISIBILITY = 1
    # LOSS mse: what every cell of an untrained map says, between 0 and 1. At 0.5, the sigmoid's own
    # start, the summed loss begins at 13,000. [ours: 0.01, as RetinaNet's]
    cfg.MODEL.ROI_KEYPOINT_HEAD.PRIOR = 0.01
    # MODEL.ROI_HEADS.NAME EnlargedKeypointROIHeads: the keypoint head's features and maps span the
    # box times this, inside the image, for joints that are labelled outside of it. [ours; D2: 1]
    cfg.MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE = 1.0
    # The score of a pose is the product of: box (its score) [D2] | keypoints (their mean score).
    cfg.MODEL.ROI_KEYPOINT_HEAD.POSE_SCORE = ["box"]

    cfg.RB = CN()
    # Of the bottom-up network train the deformable convolutions and their offsets alone; else
    # MODEL.BACKBONE.FREEZE_AT decides. [inferred: False, a stricter reading of the report: True]
    cfg.RB.TRAIN_ONLY_DEFORM_STAGES = False
