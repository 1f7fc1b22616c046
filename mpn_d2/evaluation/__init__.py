"""Evaluators of boxes, poses and person masks, and their builder."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators

from mpn_d2.data.datasets import check_dataset
from mpn_d2.data.voc import VOC_PERSON
from mpn_d2.evaluation.crowded_people import check_edges
from mpn_d2.evaluation.pose_evaluator import PoseEvaluator, export_instances, write_json
from mpn_d2.evaluation.segmentation import PersonSegEvaluator
from mpn_d2.evaluation.submission import check_algorithm_name
from mpn_d2.evaluation.voc_segmentation import VocPersonEvaluator, check_competition
from mpn_d2.structures.skeleton import get_skeleton

__all__ = [
    "PersonSegEvaluator",
    "PoseEvaluator",
    "VocPersonEvaluator",
    "build_evaluator",
    "check_evaluation_config",
    "drop_missing",
    "export_instances",
    "write_json",
]

_TASKS = ("bbox", "segm", "keypoints", "sem_seg")


def check_evaluation_config(cfg: CfgNode) -> None:
    """Raises a ValueError that names a key of EVAL which no evaluator can be built with, whatever
    the dataset; no task at all is fine where nothing is evaluated."""
    if set(cfg.EVAL.TASKS) - set(_TASKS):
        raise ValueError(_unknown_tasks(cfg))
    check_competition(cfg.EVAL.VOC_COMPETITION)
    check_algorithm_name(cfg.EVAL.ALGORITHM_NAME)
    check_edges(cfg.EVAL.OKS_OVERLAP)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluators:
    """The evaluators of EVAL.TASKS on one dataset, results written to `output_dir`.

    Raises:
        ValueError: as `check_evaluation_config`, no task, an unknown dataset, or a task that the
            dataset has no truth for by its kind.
        FileNotFoundError: the dataset's files are missing.
    """
    check_evaluation_config(cfg)
    tasks = list(cfg.EVAL.TASKS)
    if not tasks:
        raise ValueError(_unknown_tasks(cfg))
    check_dataset(dataset_name)
    coco_tasks = [task for task in _TASKS if task in tasks and task != "sem_seg"]
    common: dict[str, Any] = {"output_dir": output_dir}
    if MetadataCatalog.get(dataset_name).get("evaluator_type") == VOC_PERSON:
        if coco_tasks:
            raise ValueError(
                f"dataset {dataset_name!r} has masks of people alone, but EVAL.TASKS is {tasks}: "
                "set EVAL.TASKS \"['sem_seg']\""
            )
        common |= {"threshold": cfg.EVAL.MASK_THRESH, "competition": cfg.EVAL.VOC_COMPETITION}
        return DatasetEvaluators([VocPersonEvaluator(dataset_name, **common)])
    evaluators = []
    if coco_tasks:
        sigmas = get_skeleton(cfg.MODEL.SKELETON).sigmas
        algorithm = cfg.EVAL.ALGORITHM_NAME
        evaluators.append(
            PoseEvaluator(
                dataset_name,
                tasks=coco_tasks,
                sigmas=sigmas,
                algorithm=algorithm,
                overlap_edges=cfg.EVAL.OKS_OVERLAP,
                count_score=cfg.EVAL.COUNT_SCORE,
                **common,
            )
        )
    if "sem_seg" in tasks:
        evaluators.append(
            PersonSegEvaluator(dataset_name, threshold=cfg.EVAL.MASK_THRESH, **common)
        )
    return DatasetEvaluators(evaluators)


def _unknown_tasks(cfg: CfgNode) -> str:
    return f"EVAL.TASKS {list(cfg.EVAL.TASKS)}: give one or more of {', '.join(_TASKS)}"


def drop_missing(results: dict) -> dict:
    """`results` (task -> metric -> value) without the metrics that are None.

    Detectron2's EvalHook and print_csv_format want numbers only.
    """
    return {
        task: {name: value for name, value in metrics.items() if value is not None}
        for task, metrics in results.items()
    }
