"""The config keys of single-stage pose regression, MODEL.POSE_REGRESSION.

Sources in brackets: [paper] Multi-Person Pose Regression via Pose Filtering and Scoring, [SMPR] the
authors' later code (cmdi-dlut/SMPR), [FCOS] Detectron2's, [ours] chosen here. Towers, levels, focal
loss, candidates and box suppression are MODEL.RETINANET's keys, as for other dense detectors.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_regression_keys(cfg: CN) -> None:
    """Adds the keys with their defaults, in place: the paper's best row."""
    cfg.MODEL.POSE_REGRESSION = CN()
    # Poses a location regresses one upon the other: 2, or 1 (the paper's baseline).
    cfg.MODEL.POSE_REGRESSION.NUM_STAGES = 2

    cfg.MODEL.POSE_REGRESSION.ALIGN = CN()
    # Where the second stage reads its features: map (a deformable convolution whose taps a 1x1
    # convolution finds from the first pose) [SMPR] | keypoint (a tap at each joint) [ours] | none.
    cfg.MODEL.POSE_REGRESSION.ALIGN.MODE = "map"
    # The classification reads aligned features, too. [paper: False; SMPR: True]
    cfg.MODEL.POSE_REGRESSION.ALIGN.CLS = False
    # ALIGN.MODE map: groups of channels with taps of their own. [SMPR: 4]
    cfg.MODEL.POSE_REGRESSION.ALIGN.GROUPS = 4

    cfg.MODEL.POSE_REGRESSION.SAMPLING = CN()
    # Locations that answer for a person: center (around the middle of her joints' box) | bbox (all
    # in her annotated box; the paper's first rows). [paper: center]
    cfg.MODEL.POSE_REGRESSION.SAMPLING.MODE = "center"
    # SAMPLING.MODE center: half the side of the square around the middle, strides. [FCOS: 1.5]
    cfg.MODEL.POSE_REGRESSION.SAMPLING.RADIUS = 1.5

    cfg.MODEL.POSE_REGRESSION.FILTER = CN()
    # OKSFilter: only first poses that resemble somebody train the second stage. [paper: True]
    cfg.MODEL.POSE_REGRESSION.FILTER.ENABLED = True
    # Least OKS of a pose that stays, 0 to 1. [paper: 0.5]
    cfg.MODEL.POSE_REGRESSION.FILTER.THRESH = 0.5
    # The best pose of each person stays in any case. [SMPR: True]
    cfg.MODEL.POSE_REGRESSION.FILTER.KEEP_BEST = True
    # Locations of dropped poses are background for the classification. [SMPR: True]
    cfg.MODEL.POSE_REGRESSION.FILTER.RELABEL_NEG = True

    # Whether a location predicts the OKS of its pose (PSM). [paper: True]
    cfg.MODEL.POSE_REGRESSION.TRAIN_PSM = True
    # Whether a location predicts its centre-ness. [paper: its ablation alone]
    cfg.MODEL.POSE_REGRESSION.TRAIN_CENTERNESS = False
    # What ranks the poses: cls | centerness | psm, the latter two times cls. [paper: psm]
    cfg.MODEL.POSE_REGRESSION.TEST_SCORE = "psm"

    cfg.MODEL.POSE_REGRESSION.PSM = CN()
    # Pose whose OKS is the target: refined (the final one) [paper] | init (the first one) [SMPR].
    cfg.MODEL.POSE_REGRESSION.PSM.TARGET = "refined"
    # The OKS of a pose also weighs its regression losses. [paper: True]
    cfg.MODEL.POSE_REGRESSION.PSM.WEIGHT_REGRESSION = True

    cfg.MODEL.POSE_REGRESSION.HEATMAP = CN()
    # Branch that learns in which cells of the finest level joints are; training alone.
    # [paper: True]
    cfg.MODEL.POSE_REGRESSION.HEATMAP.ENABLED = True
    # Channels of its convolutions. [SMPR: 128]
    cfg.MODEL.POSE_REGRESSION.HEATMAP.DIM = 128

    cfg.MODEL.POSE_REGRESSION.LOSS = CN()
    # Weights of the losses: classification. [SMPR: 1]
    cfg.MODEL.POSE_REGRESSION.LOSS.CLS_WEIGHT = 1.0
    # Joint cells of the finest level. [SMPR: 4]
    cfg.MODEL.POSE_REGRESSION.LOSS.HEATMAP_WEIGHT = 4.0
    # Offsets of the first pose. [SMPR: 0.05]
    cfg.MODEL.POSE_REGRESSION.LOSS.INIT_WEIGHT = 0.05
    # Offsets of the refined pose. [SMPR: 0.1]
    cfg.MODEL.POSE_REGRESSION.LOSS.REFINE_WEIGHT = 0.1
    # Pose score. [SMPR: 1]
    cfg.MODEL.POSE_REGRESSION.LOSS.PSM_WEIGHT = 1.0
    # Centre-ness. [FCOS: 1]
    cfg.MODEL.POSE_REGRESSION.LOSS.CENTERNESS_WEIGHT = 1.0
    # Where smooth L1 turns from squares to L1, strides. [SMPR's class default: 1]
    cfg.MODEL.POSE_REGRESSION.LOSS.SMOOTH_L1_BETA = 1.0

    # Poses whose score soft suppression lowers below this are dropped. [SMPR: 0.001]
    cfg.MODEL.POSE_REGRESSION.MIN_SCORE = 0.001

    cfg.MODEL.HRNET = CN()
    # HRNet (MODEL.POSE_FPN.BOTTOM_UP build_hrnet_backbone): channels of its finest branch; norm and
    # frozen stages are MODEL.RESNETS.NORM and MODEL.BACKBONE.FREEZE_AT. [paper: 32]
    cfg.MODEL.HRNET.WIDTH = 32
