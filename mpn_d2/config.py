"""Every config key that `mpn_d2` adds to Detectron2's, with meaning, unit and source.

Sources in brackets: [paper] MultiPoseNet, ECCV 2018; [LM] LiMeng95/MultiPoseNet.pytorch,
[KP] mkocabas/pose-residual-network, [TC] TropComplique/MultiPoseNet; [ours] chosen here.
"""

from __future__ import annotations

import difflib

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from mpn_d2.config_lists import entries_fit
from mpn_d2.config_source import merge_config_file
from mpn_d2.engine_keys import add_engine_keys
from mpn_d2.inference_keys import add_inference_keys
from mpn_d2.rcnn_keys import add_rcnn_keys
from mpn_d2.regression_keys import add_regression_keys
from mpn_d2.sequence_keys import add_sequence_keys
from mpn_d2.speed_keys import add_speed_keys


def add_mpn_config(cfg: CN) -> None:
    """Adds the keys of `mpn_d2` with their defaults to a Detectron2 config, in place."""
    _add_model_keys(cfg)
    _add_assembly_keys(cfg)
    _add_data_keys(cfg)
    add_engine_keys(cfg)
    add_inference_keys(cfg)
    add_rcnn_keys(cfg)
    add_regression_keys(cfg)
    add_sequence_keys(cfg)
    add_speed_keys(cfg)
    # Configs saved by a newer Detectron2 hold this key; where the installed one lacks it, it is
    # dropped with a warning. (The other way round the default stands.)
    if "FLOAT32_PRECISION" not in cfg:
        cfg.register_deprecated_key("FLOAT32_PRECISION")


def load_config(config_file: str, options: list[str] | None = None) -> CN:
    """Detectron2's config with our keys, a file and KEY VALUE options merged, not frozen.

    Without a GPU, MODEL.DEVICE becomes "cpu" unless the options name it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a key that does not exist or a value of the wrong type; names the key.
    """
    cfg = get_cfg()
    add_mpn_config(cfg)
    if config_file:
        try:
            merge_config_file(cfg, config_file)
        except KeyError as error:
            raise ValueError(f"{config_file}: {_explain_key(cfg, _missing_key(error))}") from error
        except (ValueError, AssertionError) as error:
            message = _explain_value(error)
            named = message.startswith(f"{config_file}")
            raise ValueError(message if named else f"{config_file}: {message}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(
                f"{config_file}: it, or a file that its _BASE_ names, is not a config of "
                f"KEY: VALUE lines ({error})"
            ) from error
    for stage in cfg.STAGES.values():
        if isinstance(stage, CN):
            # Sections that came from the file take any key too.
            stage.set_new_allowed(True)
    cfg.DATASETS.OWN.set_new_allowed(True)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    merge_options(cfg, options or [])
    check_values(cfg)
    return cfg


def check_values(cfg: CN) -> None:
    """ValueError naming the first key that has no value and needs one, or whose list is wrong.

    yacs takes an empty entry of a file (None) for every type, and does not look into lists.
    """
    defaults = get_cfg()
    add_mpn_config(defaults)
    for key in _all_keys(defaults):
        held, default = cfg, defaults
        for name in key.split("."):
            held = held.get(name) if isinstance(held, CN) else None
            default = default[name]
        if held is None and default is not None:
            raise ValueError(f"config key {key} has no value: give one (default: {default!r})")
        if not entries_fit(held, default):
            shown = held if len(str(held)) < 200 else f"{str(held)[:200]} ..."
            raise ValueError(
                f"config key {key} is {shown}: it holds entries of another type than its default "
                f"{default!r}"
            )


def merge_options(cfg: CN, options: list[str]) -> None:
    """Merges KEY VALUE pairs of a command line, in place.

    Stages (STAGES.<NAME>) and datasets (DATASETS.OWN.<NAME>) take any key.

    Raises:
        ValueError: a value missing, an unknown key, or a value of the wrong type.
    """
    if len(options) % 2:
        raise ValueError(f"options come as KEY VALUE pairs, but {options[-1]!r} has no value")
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key.startswith(("STAGES.", "DATASETS.OWN.")) and _add_key(cfg, key, value):
            continue
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, AssertionError, TypeError, AttributeError) as error:
            if isinstance(error, AssertionError) and "Non-existent" not in str(error):
                raise ValueError(f"option {key} {value}: {error}") from error
            raise ValueError(_explain_key(cfg, key)) from error
        except ValueError as error:
            raise ValueError(f"option {key} {value}: {_explain_value(error)}") from error


def _add_key(cfg: CN, key: str, value: str) -> bool:
    """Sets a key that its section lacks and allows; False if it is there or may not be."""
    node = cfg
    *sections, name = key.split(".")
    for section in sections:
        if section not in node and node.is_new_allowed():
            node[section] = CN(new_allowed=True)
        node = node.get(section)
        if not isinstance(node, CN):
            return False
    if not node.is_new_allowed() or name in node:
        return False
    node[name] = CN._decode_cfg_value(value)
    return True


def _missing_key(error: KeyError) -> str:
    """The key of yacs' "Non-existent config key: X"."""
    return str(error.args[0]).split(": ")[-1].strip("'\"")


def _explain_key(cfg: CN, key: str) -> str:
    """'no config key X; near names: ...'."""
    near = difflib.get_close_matches(key, _all_keys(cfg), n=3)
    shown = key if key.isprintable() and key.strip() else repr(key)
    return f"no config key {shown}" + (f"; near: {', '.join(near)}" if near else "")


def _explain_value(error: Exception) -> str:
    """The error's text; without the pages of a section that a value was given for."""
    message = str(error)
    if "Type mismatch" in message and "CfgNode" in message:
        return f"{message.split('for config key: ')[-1]} is a section of keys, not one value"
    return message


def _all_keys(cfg: CN, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in cfg.items():
        keys += _all_keys(value, f"{prefix}{name}.") if isinstance(value, CN) else [prefix + name]
    return keys


def _add_model_keys(cfg: CN) -> None:
    # Skeleton that fixes the keypoint channels: coco | crowdpose | mpii | the path of a YAML file
    # (docs/own_data.md). [paper: COCO's]
    cfg.MODEL.SKELETON = "coco"
    # Parts that get a loss and gradients: keypoint, person, assembly. Stages set it. [paper: three]
    cfg.MODEL.TRAIN_PARTS = ["keypoint", "person", "assembly"]
    # How far gradients go between parts that train together, 0 to 3: the table in
    # modeling/meta_arch/joint.py. [review notes 4.2: 0]
    cfg.MODEL.JOINT_LEVEL = 0
    # Convolutions in PyTorch's channels_last layout: the same results, a fifth faster in bfloat16
    # on a CPU. [ours: False]
    cfg.MODEL.CHANNELS_LAST = False

    cfg.MODEL.POSE_FPN = CN()
    # Registered builder (BACKBONE_REGISTRY) of the bottom-up network under both pyramids.
    cfg.MODEL.POSE_FPN.BOTTOM_UP = "build_resnet_backbone"
    # True: keypoints and person detection share one pyramid; False: one each. [paper: False]
    cfg.MODEL.POSE_FPN.SHARED = False
    # 3x3 convolution on the coarsest keypoint level, as on the others. [paper: True; LM: False]
    cfg.MODEL.POSE_FPN.KEYPOINT_TOP_CONV = True
    # Bottom-up features of the keypoint pyramid (k2..k5). [paper]
    cfg.MODEL.POSE_FPN.KEYPOINT_IN_FEATURES = ["res2", "res3", "res4", "res5"]
    # Bottom-up features of the detection pyramid (p3..p5; p6 and p7 come from the last); [] leaves
    # it out. [paper]
    cfg.MODEL.POSE_FPN.PERSON_IN_FEATURES = ["res3", "res4", "res5"]

    cfg.MODEL.KP_SUBNET = CN()
    # Registered keypoint head: KeypointSubnet [paper] | SingleLevelSubnet (K2 alone; its ablation)
    # | OpenPoseSubnet (OpenPose's channels, no person mask) [LM].
    cfg.MODEL.KP_SUBNET.NAME = "KeypointSubnet"
    # Keypoint pyramid levels that the head reads, fine to coarse. [paper]
    cfg.MODEL.KP_SUBNET.IN_FEATURES = ["k2", "k3", "k4", "k5"]
    # Channels of the two 3x3 convolutions per level (D_i). [paper: 128]
    cfg.MODEL.KP_SUBNET.D_DIM = 128
    # ReLU after each D convolution. [ours: True; LM: none]
    cfg.MODEL.KP_SUBNET.D_RELU = True
    # Channels after the 3x3 smoothing convolution of the concatenated levels. [LM: 256]
    cfg.MODEL.KP_SUBNET.SMOOTH_DIM = 256
    # Upsampling of the D_i to stride 4: nearest [LM] | bilinear [TC].
    cfg.MODEL.KP_SUBNET.UPSAMPLE = "nearest"
    # Norm of the D and smoothing convolutions, "" for none. [LM: none]
    cfg.MODEL.KP_SUBNET.NORM = ""
    # Weight of the loss at every pyramid level, 0 drops these heads. [LM: 1]
    cfg.MODEL.KP_SUBNET.INTERMEDIATE_WEIGHT = 1.0
    # Weight of the loss on the final maps. [LM: 1]
    cfg.MODEL.KP_SUBNET.FINAL_WEIGHT = 1.0

    cfg.MODEL.TARGET = CN()
    # Standard deviation of the heatmap Gaussians, network-input pixels. [LM: 7.0]
    cfg.MODEL.TARGET.SIGMA = 7.0
    # Gaussian values below this are 0. [LM, TC: 0.01]
    cfg.MODEL.TARGET.CUT = 0.01
    # Overlapping peaks of one type: max [TC] | add (clipped at 1) [LM].
    cfg.MODEL.TARGET.MERGE = "max"

    cfg.MODEL.LOSS = CN()
    # Factor on the losses of the keypoint part, in every stage. [ours: 1]
    cfg.MODEL.LOSS.KEYPOINT_WEIGHT = 1.0
    # Factor on the losses of the person part. [ours: 1]
    cfg.MODEL.LOSS.PERSON_WEIGHT = 1.0
    # Factor on the loss of the assembly. [ours: 1]
    cfg.MODEL.LOSS.ASSEMBLY_WEIGHT = 1.0
    # Ignore region also masks the person mask channel. [paper: True]
    cfg.MODEL.LOSS.MASK_SEG = True
    # Weight of the person mask channel, a heatmap channel's being 1. [paper: 1]
    cfg.MODEL.LOSS.MASK_WEIGHT = 1.0
    # Extra weight of a heatmap cell, times its target: peaks are few, and a network from scratch
    # learns long to predict nothing first. [paper: 0]
    cfg.MODEL.LOSS.PEAK_WEIGHT = 0.0

    cfg.MODEL.PEAKS = CN()
    # Heatmap values up to this are no candidates. [LM: 0.1]
    cfg.MODEL.PEAKS.THRESH = 0.1
    # Most candidates kept per image and keypoint type, the highest first. [ours]
    cfg.MODEL.PEAKS.MAX_PER_TYPE = 60


def _add_assembly_keys(cfg: CN) -> None:
    cfg.MODEL.ASSEMBLER = CN()
    # Registered assembler (POSE_ASSEMBLER_REGISTRY).
    cfg.MODEL.ASSEMBLER.NAME = "PoseAssembler"
    # Its weights before any training or MODEL.WEIGHTS: a path, or the name of a file in
    # mpn_d2/weights. Empty: none. [ours]
    cfg.MODEL.ASSEMBLER.WEIGHTS = ""
    # How a box rates candidates: prn | prn_nonresidual | ucr | max | identity | learned [ours].
    # [paper: prn]
    cfg.MODEL.ASSEMBLER.EVIDENCE = "prn"
    # Candidates to boxes: reference [KP] | mutual_best [ours] | hungarian | argmax [TC].
    cfg.MODEL.ASSEMBLER.MATCHING = "mutual_best"
    # Matching reference: False hands one keypoint to two boxes where the authors do. [ours: True]
    cfg.MODEL.ASSEMBLER.ONE_TO_ONE = True
    # Joints without a candidate: none (left out) | argmax of the evidence, score 0. [KP: argmax, of
    # types without a candidate in the box, in images where some type has none in any box]
    cfg.MODEL.ASSEMBLER.FALLBACK = "none"
    # Pairs rated lower than that never match; 0: whoever has no better one takes any. [ours]
    cfg.MODEL.ASSEMBLER.LEAST_EVIDENCE = 0.0
    # Side of the window of cells summed around a candidate, odd. [KP: 15]
    cfg.MODEL.ASSEMBLER.WINDOW = 15
    # Only boxes with at least this score may claim keypoints. [LM: 0.5]
    cfg.MODEL.ASSEMBLER.BOX_SCORE_THRESH = 0.5
    # The score of a pose is the product of: box (its score) | keypoints (their mean score, missing
    # ones 0) | evidence (mean pair score of those found) | oks (evidence learned: the share of
    # COCO's ten OKS thresholds that it expects to pass). [references: keypoints]
    cfg.MODEL.ASSEMBLER.POSE_SCORE = ["keypoints"]

    # What the assembly trains on: people (one box each) [paper] | images (all boxes together; what
    # evidence learned needs) [ours].
    cfg.MODEL.ASSEMBLER.SAMPLES = "people"
    cfg.MODEL.ASSEMBLER.LEARNED = CN()
    # Evidence learned: features of a (box, candidate) pair. [ours]
    cfg.MODEL.ASSEMBLER.LEARNED.WIDTH = 64
    # Numbers in each message between pairs, boxes and candidates. [ours]
    cfg.MODEL.ASSEMBLER.LEARNED.MESSAGE = 24
    # Features of a box. [ours]
    cfg.MODEL.ASSEMBLER.LEARNED.BOX_WIDTH = 128
    # Rounds of messages; 0 rates each pair alone. [ours]
    cfg.MODEL.ASSEMBLER.LEARNED.ROUNDS = 3
    # Pairs that are less probable than that at first take no part in the rounds. [ours]
    cfg.MODEL.ASSEMBLER.LEARNED.LEAST = 0.01
    # A box reaches this share of its width and height further on each side. [ours]
    cfg.MODEL.ASSEMBLER.LEARNED.MARGIN = 0.6

    cfg.MODEL.POSE_SCORER = CN()
    # META_ARCHITECTURE ScoredMultiPoseNet (pose scores times the OKS that is expected of the pose;
    # --stage scoring trains that): units of its two hidden layers. [ours]
    cfg.MODEL.POSE_SCORER.WIDTH = 64

    cfg.MODEL.PRN = CN()
    # Units of the hidden layers. [paper: 1024]
    cfg.MODEL.PRN.NODES = 1024
    # Hidden layers: 1 [KP, TC] | 2 [LM].
    cfg.MODEL.PRN.NUM_HIDDEN = 2
    # Dropout after each hidden layer. [paper: 0.5]
    cfg.MODEL.PRN.DROPOUT = 0.5
    # Softmax scope: channel (per keypoint type) [TC] | global [LM] | slice17 [KP].
    cfg.MODEL.PRN.SOFTMAX = "channel"
    # Box grid (height, width) in cells. [KP: 56 x 36]
    cfg.MODEL.PRN.CROP = (56, 36)
    # Network input: peaks (rasterised candidates) [KP] | heatmap (crop of the maps) [paper].
    cfg.MODEL.PRN.INPUT_MODE = "peaks"
    # A box reaches this share of its width and height further on each side. [KP: 0.21]
    cfg.MODEL.PRN.BOX_MARGIN = 0.21
    # Blur of the rasterised input, cells. [KP: 1]
    cfg.MODEL.PRN.INPUT_SIGMA = 1.0
    # Blur of the training label, cells. [KP: 2]
    cfg.MODEL.PRN.LABEL_SIGMA = 2.0
    # People with fewer labelled keypoints are no training samples. [paper: more than 2]
    cfg.MODEL.PRN.MIN_KEYPOINTS = 3
    # Order of training: sorted (many keypoints and large people first) [paper] | growing (few
    # keypoints first) [TC] | none (shuffled).
    cfg.MODEL.PRN.CURRICULUM = "sorted"
    # Curriculum growing: iterations until people with one more keypoint join. [TC: 10000]
    cfg.MODEL.PRN.GROWING_ITERS = 10000
    # Probability that a training person is mirrored, 0 to 1. [KP: 0; TC: 0.5]
    cfg.MODEL.PRN.FLIP_PROB = 0.0


def _add_data_keys(cfg: CN) -> None:
    # Datasets of one's own, a section each: OWN.<name>.JSON (COCO format, .gz too), .IMAGES
    # (folder; may be left out where the assembly alone trains), .SKELETON (default:
    # MODEL.SKELETON). Paths start at the working folder (docs/own_data.md).
    cfg.DATASETS.OWN = CN(new_allowed=True)
    # Probability of the left-right flip while training, 0 to 1. [paper: 0.3]
    cfg.INPUT.FLIP_PROB = 0.3
    # Recipe of training images: resize (shorter edge, flip; Detectron2's) | resize_crop (the same,
    # then a square of CROP_SIZE out of it) [pose regression's paper] | crop (moved, scaled and
    # turned about people, flip). [paper: crop for keypoints, resize for persons]
    cfg.INPUT.AUGMENTATION = "resize"
    # Side of the square crop, network-input pixels. [LM: 480]
    cfg.INPUT.CROP_SIZE = 480
    # Middle of the crop: person (an annotated one at random) | crowd (everybody annotated) |
    # either (one of the two at random). [paper: crowd or main person]
    cfg.INPUT.CROP_CENTER = "either"
    # The middle moves by up to this to each side, network-input pixels. [LM: 40]
    cfg.INPUT.CROP_JITTER = 40.0
    # Height that the main person is scaled to, network-input pixels; 0: the whole image is scaled
    # as by `resize`. [LM: 0.6 x 368]
    cfg.INPUT.PERSON_HEIGHT = 220.8
    # Bounds of the random factor on that scale. [LM: 0.8 to 1.2]
    cfg.INPUT.SCALE_FACTOR = (0.8, 1.2)
    # Bound of the random rotation to each side, degrees. [LM: 40]
    cfg.INPUT.ROTATION = 40.0
    # Images with fewer labelled keypoints (all people together) are not trained on. [ours]
    cfg.INPUT.MIN_KEYPOINTS_PER_IMAGE = 0
    cfg.INPUT.NOISE = CN()
    # Degraded samples of the assembly's training: probability, 0 to 1. [references: 0]
    cfg.INPUT.NOISE.PROB = 0.0
    # The most of each kind; a degraded sample gets between none and that. [ours]
    # Sides of boxes: standard deviation as a share of width or height.
    cfg.INPUT.NOISE.BOX = 0.1
    # Share of the keypoints left out.
    cfg.INPUT.NOISE.MISSING = 0.2
    # False keypoints, as a share of the true ones.
    cfg.INPUT.NOISE.FALSE = 0.2
    # Place of keypoints: standard deviation in COCO sigmas of their type.
    cfg.INPUT.NOISE.POSITION = 1.0
    # ASSEMBLER.SAMPLES images: probability that somebody has a box but no keypoint, 0 to 1. [ours]
    cfg.INPUT.NOISE.UNANNOTATED = 0.0
    # ASSEMBLER.SAMPLES images: probability of a box around several people (a crowd), 0 to 1. [ours]
    cfg.INPUT.NOISE.CROWD = 0.0
    # ASSEMBLER.SAMPLES images: probability that the candidates of a degraded sample get scores, low
    # ones more often where they are false, 0 to 1; else all are 1. [ours]
    cfg.INPUT.NOISE.SCORED = 0.5

    cfg.EVAL = CN()
    # Keypoints that are assembled at test time: pred | gt (annotated ones: assignment only).
    cfg.EVAL.KEYPOINT_SOURCE = "pred"
    # Boxes that keypoints are assembled in at test time: pred | gt.
    cfg.EVAL.BOX_SOURCE = "pred"
    # With gt boxes: leave out crowds and people without keypoints. [review: off]
    cfg.EVAL.GT_BOX_FILTER = False
    # Tasks scored in one run: bbox, segm (masks of people one by one), keypoints, sem_seg (the
    # mask of all people together).
    cfg.EVAL.TASKS = ["bbox", "keypoints", "sem_seg"]
