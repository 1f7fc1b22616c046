"""Evaluation of an assembler from annotations alone: true keypoints into true boxes."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

from mpn_d2.data.datasets import check_dataset, load_pose_dicts
from mpn_d2.evaluation.assembly import assemble_scenes, evaluate_poses
from mpn_d2.evaluation.error_budget import promises_one_to_one
from mpn_d2.evaluation.scenes import annotated_scenes
from mpn_d2.structures.skeleton import get_skeleton

logger = logging.getLogger(__name__)


def evaluates_annotations(model: nn.Module, dataset_name: str) -> bool:
    """Whether there are no images to evaluate on: the model takes none, or the dataset has none.

    Raises:
        ValueError, FileNotFoundError: the dataset is unknown or its annotations are missing.
    """
    if not getattr(model, "reads_images", True):
        return True
    check_dataset(dataset_name, need_images=False)
    return MetadataCatalog.get(dataset_name).get("image_root") == ""


def evaluate_annotations(
    cfg: CfgNode, model: nn.Module, dataset_name: str, output_dir: str | None = None
) -> dict[str, dict]:
    """{"keypoints": COCO's metrics and owner_share, 0 to 100}; {} on all processes but the main.

    Every annotated box takes part, crowds and people without keypoints included, unless
    EVAL.GT_BOX_FILTER. The model's mode and random generators stay as they are.

    Args:
        cfg: of one stage.
        model: with an `assembler`.
        dataset_name: of DATASETS.TEST; its images need not be there.
        output_dir: where keypoints_results.json is written; None writes none.

    Raises:
        ValueError: a dataset of another skeleton, or an assembler that is not one-to-one although
            the config promises it.
    """
    if not comm.is_main_process():
        return {}
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    dicts = load_pose_dicts([dataset_name], is_train=False, need_images=False)
    scenes = annotated_scenes(dicts, skeleton.num_keypoints, filter_boxes=cfg.EVAL.GT_BOX_FILTER)
    logger.info(
        "%s: annotated keypoints are assembled in annotated boxes, no image is read", dataset_name
    )
    one_to_one = promises_one_to_one(model.assembler)
    poses = assemble_scenes(model.assembler, scenes, one_to_one=one_to_one)
    return {"keypoints": evaluate_poses(dataset_name, scenes, poses, skeleton.sigmas, output_dir)}
