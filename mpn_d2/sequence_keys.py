"""Config keys of people written one after the other, and of its associative embedding base.

Sources in brackets: [paper] the recurrent decoder (spec of unified association), [AE]
princeton-vl/pose-ae-train, [RSIS] imatge-upc/rsis, [inferred] chosen in the spec, [ours] here.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_sequence_keys(cfg: CN) -> None:
    """Adds the keys with their defaults, in place."""
    _add_tag_keys(cfg)
    _add_decoder_keys(cfg)
    _add_training_keys(cfg)
    _add_test_keys(cfg)


def _add_tag_keys(cfg: CN) -> None:
    cfg.MODEL.HOURGLASS = CN()
    # Hourglasses one behind the other (MODEL.BACKBONE.NAME StackedHourglass). [AE: 4]
    cfg.MODEL.HOURGLASS.STACKS = 4
    # Channels at stride 4. [AE: 256]
    cfg.MODEL.HOURGLASS.WIDTH = 256
    # Further channels at each coarser level. [AE: 128]
    cfg.MODEL.HOURGLASS.GROWTH = 128
    # Levels below stride 4. [AE: 4]
    cfg.MODEL.HOURGLASS.ORDER = 4
    cfg.MODEL.TAGS = CN()
    # Weight of the loss that draws a person's tags together. [AE: 0.001]
    cfg.MODEL.TAGS.PULL_WEIGHT = 0.001
    # Weight of the loss that drives the mean tags of two people apart. [AE: 0.001]
    cfg.MODEL.TAGS.PUSH_WEIGHT = 0.001
    # Joints whose tag is further than that from a person's mean are not hers. [AE: 1]
    cfg.MODEL.TAGS.THRESH = 1.0
    # Random brightness, contrast and saturation while training, largest share to each side. [ours:
    # off; AE: on]
    cfg.INPUT.COLOR_JITTER = 0.0
    # Images with more annotated people than that are not trained on; 0: no limit. [paper: 8 in one
    # comparison]
    cfg.INPUT.MAX_PEOPLE_PER_IMAGE = 0


def _add_decoder_keys(cfg: CN) -> None:
    # The recurrent decoder (MODEL.META_ARCHITECTURE RecurrentAssociation).
    cfg.MODEL.SEQUENCE = CN()
    # The base network that it reads: tags (stacked hourglass) [paper] | heatmaps (pyramids and a
    # keypoint subnet).
    cfg.MODEL.SEQUENCE.FEATURES = "tags"
    # FEATURES tags, of each stack: supervised (heatmaps and tags) | free | all. [inferred]
    cfg.MODEL.SEQUENCE.TAG_CHANNELS = "supervised"
    # FEATURES heatmaps: pyramid levels that are read beside the maps. [ours]
    cfg.MODEL.SEQUENCE.IN_FEATURES = ["k2"]
    # The base does not train. [inferred: True]
    cfg.MODEL.SEQUENCE.FREEZE_BASE = True
    # Features are normalised by running statistics and a learned affine map. [paper: True]
    cfg.MODEL.SEQUENCE.FEATURE_NORM = True
    # Features are projected to so many channels (1x1 convolution, ReLU); 0: they are not. [paper]
    cfg.MODEL.SEQUENCE.PROJECT = 0
    # Levels of a trained hourglass between features and decoder, for bases whose features do not
    # tell people apart; 0: none. [ours: off]
    cfg.MODEL.SEQUENCE.CONTEXT = 0
    # Group norm in that hourglass; its channels are then a multiple of 8. [ours: off]
    cfg.MODEL.SEQUENCE.CONTEXT_NORM = False
    # Two further features: x and y of each cell, -1 to 1 over the map. [ours: off]
    cfg.MODEL.SEQUENCE.COORDINATES = False
    # Cell side of the decoder, network-input pixels; a multiple of the base's. [inferred: 4]
    cfg.MODEL.SEQUENCE.STRIDE = 4
    # recurrent (one person a step) [paper] | attending (each person's maps are the base's heatmaps
    # behind a mask; knows no LSTM2) [ours] | fixed (MAX_ITERATIONS people at once, LSTM1.LAYERS
    # convolutions of LSTM1.WIDTH channels; needs EXACT_SGD, knows no LSTM2). [paper: breaks down]
    cfg.MODEL.SEQUENCE.DECODER = "recurrent"
    # DECODER attending: cells of the maps a side that are one cell of LSTM1. [ours]
    cfg.MODEL.SEQUENCE.COARSE = 1
    cfg.MODEL.SEQUENCE.LSTM1 = CN()
    # Layers of the LSTM that finds the people. [paper: 3]
    cfg.MODEL.SEQUENCE.LSTM1.LAYERS = 3
    # Channels of its first layer, halved after each. [RSIS: 128]
    cfg.MODEL.SEQUENCE.LSTM1.WIDTH = 128
    # Passes of LSTM1 per person, each fed with the maps of the one before: 0 (one pass, nothing fed
    # back) | 2 | 3. [paper: 2]
    cfg.MODEL.SEQUENCE.LOOP = 2
    # The first pass is fed with uniform noise up to that. [paper: 0.1]
    cfg.MODEL.SEQUENCE.NOISE = 0.1
    cfg.MODEL.SEQUENCE.LSTM2 = CN()
    # Whether a second LSTM refines the people. [paper: True]
    cfg.MODEL.SEQUENCE.LSTM2.ENABLED = True
    # Its layers. [paper: 2; 2, 3, 4 compared]
    cfg.MODEL.SEQUENCE.LSTM2.LAYERS = 2
    # Channels of its first layer, halved after each. [inferred: 64]
    cfg.MODEL.SEQUENCE.LSTM2.WIDTH = 64
    # It has the feedback loop, too. [inferred: True]
    cfg.MODEL.SEQUENCE.LSTM2.FEEDBACK = True
    # Order in which it gets the people: learned (LSTM1's) [paper] | random | confidence | inverse |
    # canonical (left to right).
    cfg.MODEL.SEQUENCE.ORDER = "learned"


def _add_training_keys(cfg: CN) -> None:
    # Losses: both | lstm2 (no heatmap loss on LSTM1). [paper: both]
    cfg.MODEL.SEQUENCE.LOSS_ON = "both"
    # Squared distances of maps: pixels (mean over the cells) | sum. [inferred: pixels]
    cfg.MODEL.SEQUENCE.NORMALIZE = "pixels"
    # Weight of the heatmap losses. [paper: 1]
    cfg.MODEL.SEQUENCE.HEATMAP_WEIGHT = 1.0
    # Weight of the stop loss. [paper: 1]
    cfg.MODEL.SEQUENCE.STOP_WEIGHT = 1.0
    # Fewer people found than annotated: a (heatmap loss where the stop score is over OMEGA) | b
    # (everywhere). [paper: a]
    cfg.MODEL.SEQUENCE.RULE_UNDER = "a"
    # More found than annotated: a (only as many maps as people are matched) | b (all). [paper: a']
    cfg.MODEL.SEQUENCE.RULE_OVER = "a"
    # People without keypoints and crowds, of whom one or more may be written: absent (the stop
    # vector knows none) [paper] | ignore (as many steps more are free of the stop loss) [ours].
    cfg.MODEL.SEQUENCE.UNANNOTATED = "absent"
    # Stop score below which nobody is left, while training. [paper: sigmoid(-1)]
    cfg.MODEL.SEQUENCE.OMEGA = 0.2689
    # Steps between two backward passes (within-image batching). [paper: 8]
    cfg.MODEL.SEQUENCE.T = 8
    # One backward pass over all steps of an image instead. [paper: False]
    cfg.MODEL.SEQUENCE.EXACT_SGD = False
    # The optimiser steps after every: chunk (T steps) | image. [inferred: chunk]
    cfg.MODEL.SEQUENCE.UPDATE = "chunk"
    # Iterations after which training goes one person further into each image: at first it stops
    # after one, chosen freely; 0: all from the start. [RSIS: by epochs]
    cfg.MODEL.SEQUENCE.CURRICULUM = 0
    # Training stops after so many people of an image; 0: it does not. [paper: 8 in one comparison]
    cfg.MODEL.SEQUENCE.HARD_CUT = 0
    # Most people of an image. [AE: 30]
    cfg.MODEL.SEQUENCE.MAX_ITERATIONS = 30


def _add_test_keys(cfg: CN) -> None:
    # OMEGA at test time. [inferred: the same]
    cfg.MODEL.SEQUENCE.OMEGA_TEST = 0.2689
    # Joints whose map is nowhere that high are missing. [paper: 0.015]
    cfg.MODEL.SEQUENCE.TAU = 0.015
    # Place below a cell: quarter (shift towards the higher neighbour) [AE] | parabola [ours].
    cfg.MODEL.SEQUENCE.SUBCELL = "quarter"
    # Score of a pose: joints (mean of the found ones' maxima) [inferred] | stop (stop score) |
    # product.
    cfg.MODEL.SEQUENCE.SCORE = "joints"
    # Missing joints are looked for by the person's mean tag (networks with tags). [AE: True]
    cfg.TEST.REFINE = False
    # The heatmaps for that, and for grouping by tags, are means of image and mirror image, and
    # joints have the tags of both. [AE: True]
    cfg.TEST.FLIP = False
    # The same over scales 0.5, 1, 2 and flip, with the tags of scale 1.
    # [AE: both were run]
    cfg.TEST.MULTISCALE = False
