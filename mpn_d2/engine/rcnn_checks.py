"""What an R-CNN of Detectron2's cannot do of what our other systems can, in one line each."""

from __future__ import annotations

from detectron2.config import CfgNode

RCNN = "GeneralizedRCNN"
# MODEL.TRAIN_PARTS: boxes, masks and keypoints train together.
PARTS = {"person", "keypoint"}


def check_rcnn_parts(cfg: CfgNode) -> None:
    """Raises a ValueError where a stage means to train a part of an R-CNN."""
    parts = list(cfg.MODEL.TRAIN_PARTS)
    if cfg.MODEL.META_ARCHITECTURE == RCNN and set(parts) != PARTS:
        raise ValueError(
            f"MODEL.TRAIN_PARTS is {parts}, but {RCNN} trains as a whole: give --stage joint and "
            f"MODEL.TRAIN_PARTS {sorted(PARTS)}"
        )


def gives_masks(cfg: CfgNode) -> bool:
    """Whether a model of this config finds a mask of each person."""
    return cfg.MODEL.META_ARCHITECTURE == RCNN and cfg.MODEL.MASK_ON


def check_rcnn_inference(cfg: CfgNode) -> None:
    """Raises a ValueError that names a key of evaluation that an R-CNN has nothing for, or masks
    that are wanted of a model without."""
    tasks = list(cfg.EVAL.TASKS)
    if "segm" in tasks and not gives_masks(cfg):
        raise ValueError(
            f"EVAL.TASKS is {tasks}, but masks of people one by one (segm) come from {RCNN} with "
            "MODEL.MASK_ON True alone: leave segm out, or switch them on"
        )
    if cfg.MODEL.META_ARCHITECTURE != RCNN:
        return
    if "sem_seg" in tasks:
        raise ValueError(
            f"EVAL.TASKS is {tasks}, but {RCNN} has no mask of all people together (sem_seg): set "
            "EVAL.TASKS \"['bbox', 'segm', 'keypoints']\""
        )
    if "keypoints" in tasks and not cfg.MODEL.KEYPOINT_ON:
        raise ValueError(f"EVAL.TASKS is {tasks}, but MODEL.KEYPOINT_ON is False: set it to True")
    for key in ("KEYPOINT_SOURCE", "BOX_SOURCE"):
        if cfg.EVAL[key] != "pred":
            raise ValueError(
                f"EVAL.{key} is {cfg.EVAL[key]!r}, but {RCNN} finds boxes and keypoints by itself: "
                "set it to pred"
            )
    if cfg.SPEED.MODE != "plain":
        raise ValueError(
            f"SPEED.MODE is {cfg.SPEED.MODE!r}, but its steps do not know {RCNN}: set it to plain"
        )
    for key in ("HEATMAPS", "ERROR_BUDGET"):
        if cfg.EVAL[key]:
            raise ValueError(
                f"EVAL.{key} is True, but {RCNN} has no maps of the whole image: set it to False"
            )
