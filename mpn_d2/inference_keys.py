"""The config keys of inference: augmentation at test time, ensembles, refinement, suppression.

Sources in brackets as in config.py: [paper], [LM], [ours]; and [SB] Simple Baselines, ECCV 2018.
Of these only SINGLE_PERSON changes a training: that of the refinement network.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_inference_keys(cfg: CN) -> None:
    """Adds the keys with their defaults, in place; the defaults are one plain pass."""
    _add_augmentation_keys(cfg)
    _add_evaluation_keys(cfg)
    _add_refinement_keys(cfg)
    _add_single_person_keys(cfg)


def _add_augmentation_keys(cfg: CN) -> None:
    # Repeated boxes: hard (dropped) [paper] | soft_linear | soft_gaussian (their scores are
    # lowered; Bodla et al., ICCV 2017).
    cfg.MODEL.RETINANET.NMS = "hard"
    # Width of soft_gaussian's penalty on the IoU. [Bodla et al.: 0.5]
    cfg.MODEL.RETINANET.SOFT_NMS_SIGMA = 0.5
    # Results carry the heatmaps too, "heatmaps" (K, h, w), spanning the image. [ours]
    cfg.EVAL.HEATMAPS = False

    # Test-time augmentation (engine/tta.py): every image is seen in several views.
    cfg.TTA = CN()
    # Whether views are taken and merged as the keys below say; False: one plain pass.
    cfg.TTA.ENABLED = False
    # Sizes of the whole image, factors on INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST; the first is the
    # base. [LM: 0.5, 1, 1.5, 2, 2.5 of 480 pixels]
    cfg.TTA.SCALES = [1.0]
    # Each view once more, mirrored. [LM: True]
    cfg.TTA.FLIP = False
    # The image is also cut into CROPS x CROPS overlapping parts, each seen as large as a whole
    # image; below 2: no parts. [paper: multi-crop, ours: 2]
    cfg.TTA.CROPS = 0
    # Share of a part's sides that it has in common with its neighbour, 0 to below 1. [ours]
    cfg.TTA.CROP_OVERLAP = 0.25
    # What views are merged as: maps (heatmaps averaged in the image, assembled once) | poses
    # (each view's people pooled; combine with OKS_NMS). [LM: maps; paper: poses]
    cfg.TTA.FUSION = "maps"
    # FUSION maps: boxes of all views (merged) or of the base alone (base). [LM: base]
    cfg.TTA.BOXES = "merged"
    # FUSION maps: cells of the mean heatmaps per cell of the base, each way; 0: 1, with CROPS as
    # many as the finest part has. [LM: pixels of the image]
    cfg.TTA.MAP_SCALE = 0.0

    # Further models beside that of this config, same skeleton: a config file and weights each.
    # Their views join this model's, merged as TTA.FUSION says. [paper: two backbones]
    cfg.ENSEMBLE = CN()
    # Their config files.
    cfg.ENSEMBLE.CONFIGS = []
    # Their checkpoints, in the same order.
    cfg.ENSEMBLE.WEIGHTS = []

    # Suppression of repeated poses in the result of an image.
    cfg.OKS_NMS = CN()
    # none | hard (repeats are dropped) | soft (their scores are lowered). [paper: hard, pooled]
    cfg.OKS_NMS.MODE = "none"
    # OKS above which a pose repeats a better one (hard); width of the penalty (soft). [mmpose: 0.9]
    cfg.OKS_NMS.THRESH = 0.9


def _add_evaluation_keys(cfg: CN) -> None:
    # `--eval-only` also prints keypoint AP with annotated boxes or keypoints in the place of the
    # predicted ones, all four pairs. [paper: its table of errors]
    cfg.EVAL.ERROR_BUDGET = False
    # Keypoint AP by how much a pose overlaps another annotated one, too: rising bounds of the OKS
    # between them, above 0 and below 1 ([0.1, 0.3]); [] for none. [ours]
    cfg.EVAL.OKS_OVERLAP = []
    # Share of images with as many people of at least that score as are annotated, too; below 0: it
    # is not counted. [ours]
    cfg.EVAL.COUNT_SCORE = -1.0
    # A pixel is a person's where the person mask is over this, 0 to 1. [spec section 10: 0.5]
    cfg.EVAL.MASK_THRESH = 0.5
    # Least score of people who are drawn, written by the demo and returned by PosePredictor where
    # no other is asked for, 0 to 1. COCO's figures count everybody. [ours]
    cfg.EVAL.CONFIDENCE_THRESH = 0.5
    # Name in the files for COCO's evaluation server, which datasets without annotations get
    # (person_keypoints_test-dev2017_<name>_results.zip): letters, digits, _ - . [ours]
    cfg.EVAL.ALGORITHM_NAME = "mpn_d2"
    # Competition of the files for VOC's server: comp5 (trained on VOC alone) | comp6 (on anything).
    # [VOC 2012 devkit; ours trains on COCO: comp6]
    cfg.EVAL.VOC_COMPETITION = "comp6"


def _add_refinement_keys(cfg: CN) -> None:
    # Single-person network on box crops (engine/refine.py).
    cfg.REFINE = CN()
    # Its config file; empty: no refinement. [paper: shaped like the keypoint subnet]
    cfg.REFINE.CONFIG = ""
    # Its checkpoint.
    cfg.REFINE.WEIGHTS = ""
    # How its pose and the first one of a box become one: average (joint by joint, where they agree)
    # [ours] | fill (joints that the first pose lacks) [ours] | replace [ours] | pool (both stay, as
    # two people: combine with OKS_NMS) [paper].
    cfg.REFINE.MERGE = "average"
    # Only boxes with at least this score are refined. [ours]
    cfg.REFINE.BOX_SCORE_THRESH = 0.2


def _add_single_person_keys(cfg: CN) -> None:
    # The network that REFINE names: its own config, training and test.
    cfg.SINGLE_PERSON = CN()
    # Whether a sample is one person, cut out by her box (data/person_crops.py), instead of an
    # image; what MODEL.META_ARCHITECTURE SinglePersonNet needs.
    cfg.SINGLE_PERSON.ENABLED = False
    # Height and width of a crop, network-input pixels. [SB]
    cfg.SINGLE_PERSON.SIZE = (256, 192)
    # A crop shows this share of the box's width and height beyond each side, at least. [SB: 0.125]
    cfg.SINGLE_PERSON.MARGIN = 0.125
    # Most that each side of a training box moves, share of its width or height, 0 to below 0.5:
    # detected boxes are not exact. INPUT.SCALE_FACTOR, ROTATION and FLIP_PROB come on top. [ours]
    cfg.SINGLE_PERSON.BOX_JITTER = 0.1
    # People with fewer labelled keypoints are not trained on. [SB: 1]
    cfg.SINGLE_PERSON.MIN_KEYPOINTS = 1
    # Crops in one forward pass at test time. [ours]
    cfg.SINGLE_PERSON.TEST_BATCH = 32
