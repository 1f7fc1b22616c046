"""The config keys of training runs: solver, precision, checkpoints, evaluation, stages.

Sources in brackets as in config.py.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_engine_keys(cfg: CN) -> None:
    """Adds the keys with their defaults, in place."""
    # Optimiser: adam [paper] | sgd (Detectron2's). With either, Detectron2's
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE knows full_model too: one norm over all gradients.
    cfg.SOLVER.OPTIMIZER = "adam"
    # Newest checkpoints of every SOLVER.CHECKPOINT_PERIOD that are kept, 0 for all. [ours]
    cfg.SOLVER.CHECKPOINT_KEEP = 2
    # model_best.pth is the best evaluation by the first of these that has a value, on the first
    # test dataset ("task/metric"); [] keeps none. [ours]
    cfg.TEST.BEST_METRIC = ["keypoints/AP", "bbox/AP"]
    # Type of SOLVER.AMP.ENABLED's autocast: bfloat16 (CPU, GPU) | float16 (GPU). [ours]
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # Micro-batches that a process cuts its images of a step into, to save memory. [ours: 1]
    cfg.SOLVER.ACCUMULATION = 1
    cfg.SOLVER.EMA = CN()
    # Decay of the averaged weights that are evaluated and saved, 0 to 1; 0 for none. [ours: off]
    cfg.SOLVER.EMA.DECAY = 0.0
    # With SOLVER.LR_SCHEDULER_NAME ReduceOnPlateau (beside Detectron2's schedules): the learning
    # rate falls when a figure of the evaluation every TEST.EVAL_PERIOD stops getting better.
    cfg.SOLVER.PLATEAU = CN()
    # "task/metric" of the first of DATASETS.TEST, or loss: that of training, over DATASETS.TEST.
    cfg.SOLVER.PLATEAU.METRIC = "loss"
    # The learning rate is multiplied by this. [paper: 0.1]
    cfg.SOLVER.PLATEAU.FACTOR = 0.1
    # Evaluations in a row without a gain that are put up with. [LM: 3]
    cfg.SOLVER.PLATEAU.PATIENCE = 3
    # Smallest share of the best figure that counts as a gain. [PyTorch: 0.0001]
    cfg.SOLVER.PLATEAU.THRESHOLD = 0.0001
    # The learning rate is not lowered below this. [PyTorch: 0]
    cfg.SOLVER.PLATEAU.MIN_LR = 0.0

    cfg.STAGES = CN()
    # Order of `--stage all`. [paper]
    cfg.STAGES.ORDER = ["keypoint", "person", "assembly"]
    # Each stage overlays the config with any keys (STAGES.PERSON.SOLVER.BASE_LR ...).
    for name, parts in (
        ("KEYPOINT", ["keypoint"]),
        ("PERSON", ["person"]),
        ("ASSEMBLY", ["assembly"]),
        ("JOINT", ["keypoint", "person", "assembly"]),
        # META_ARCHITECTURE ScoredMultiPoseNet: what ranks its poses, when all else is trained.
        ("SCORING", ["scoring"]),
    ):
        stage = CN(new_allowed=True)
        # MODEL.TRAIN_PARTS of the stage.
        stage.MODEL = CN({"TRAIN_PARTS": parts}, new_allowed=True)
        cfg.STAGES[name] = stage
