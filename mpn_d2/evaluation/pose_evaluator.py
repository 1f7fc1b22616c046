"""COCO metrics of boxes and poses with a score each (design 4.9, 7.3, 7.16)."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpn_d2.data.annotation_cache import read_json
from mpn_d2.data.coco_file import check_coco_file, people_only, person_class
from mpn_d2.evaluation.crowded_people import (
    COUNT,
    check_edges,
    ignore_poses_of_others,
    share_of_right_counts,
    truths_by_overlap,
)
from mpn_d2.evaluation.crowding import average_precision, images_by_crowding
from mpn_d2.evaluation.curves import Curves, curves_of, write_curves
from mpn_d2.evaluation.mask_results import export_masks, truth_of_masks
from mpn_d2.evaluation.submission import check_algorithm_name, test_set_name, write_submission
from mpn_d2.utils.files import write_text_atomically

PERSON_CLASS = 0  # of the model
RESULT_FILES = {
    "bbox": "coco_instances_results.json",
    "segm": "segm_results.json",
    "keypoints": "keypoints_results.json",
}
CURVE_FILES = {task: f"{task}_curves.png" for task in RESULT_FILES}
_OF_AREAS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
# pycocotools' figures in its order; the precisions are called as in Detectron2.
_METRICS = {
    "bbox": _OF_AREAS,
    "segm": _OF_AREAS,
    "keypoints": (
        *("AP", "AP50", "AP75", "APm", "APl"),
        *("AR", "AR50", "AR75", "ARm", "ARl"),
    ),
}


class PoseEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for models that score a box and its pose separately.

    Every instance counts as a box, rated by `scores`; those with at least one keypoint count as
    poses too, rated by `pose_scores` (by `scores` where that field is missing), and as a mask where
    "segm" is a task, rated by `scores`; people without an annotated mask are neither right nor
    wrong there. People alone are
    scored: class 0 of the model against the dataset's category of people (see
    `mpn_d2.data.coco_file`), whatever other categories it has. The official pycocotools metrics
    alone are used. What the model returned is left as it was (Detectron2's
    exporter shifts keypoints in place).

    `evaluate()` returns {"bbox": {...}, "keypoints": {...}} with Detectron2's metric names and
    COCO's recalls (AR ...), 0 to 100. All images of the dataset count, those without people too:
    whoever is found there is wrong. Where images have a `crowdIndex` (CrowdPose), "keypoints" also
    holds AP_easy, AP_medium and AP_hard (see `mpn_d2.evaluation.crowding`). A metric for which the
    dataset holds no ground truth is None; with ground truth and no predictions it is 0; never NaN.
    Processes other than the main one get {}. People without `area` have 0.53 of their box's
    (design 7.9).

    Files in `output_dir`, in COCO's result format: coco_instances_results.json (boxes) and
    keypoints_results.json (poses; joints that were not assigned are 0, 0, 0; each pose carries its
    box, whose area pycocotools takes for the size of a pose). With truth, also its recall-precision
    curves, bbox_curves.png and keypoints_curves.png, with their numbers in JSON. Where the file of
    the dataset has no "annotations" (COCO's image_info_test-dev2017.json), metrics are None and
    the files for COCO's server are written (see `mpn_d2.evaluation.submission`).

    Attributes:
        scorers: pycocotools' evaluations of the last `score_rows()`, by task.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        tasks: Sequence[str],
        sigmas: Sequence[float],
        output_dir: str | None = None,
        distributed: bool = True,
        algorithm: str = "mpn_d2",
        overlap_edges: Sequence[float] = (),
        count_score: float = -1.0,
    ) -> None:
        """
        Args:
            dataset_name: registered; one that is not in COCO format is written to `output_dir` so.
            tasks: of "bbox", "segm" and "keypoints".
            sigmas: (K,) OKS constants of the dataset's skeleton.
            output_dir: where results are written; None writes none.
            distributed: gather the predictions of all processes.
            algorithm: EVAL.ALGORITHM_NAME, in the names of files for COCO's server.
            overlap_edges: EVAL.OKS_OVERLAP: "keypoints" also holds the AP of people by how much
                their pose overlaps another's (see `truths_by_overlap`); () for none.
            count_score: EVAL.COUNT_SCORE: "keypoints" also holds the share of images with the right
                number of people of at least that score; below 0: it does not.

        Raises:
            ValueError: an unknown task, annotated keypoints that are not K, or a faulty
                annotation file (see `check_coco_file`).
            FileNotFoundError: the annotation file is missing.
        """
        unknown = sorted(set(tasks) - set(RESULT_FILES))
        if unknown:
            raise ValueError(f"EVAL.TASKS: {unknown[0]!r} is none of {sorted(RESULT_FILES)}")
        # Not super().__init__: it reads the metadata's file, not its completed copy.
        self._logger = logging.getLogger(__name__)
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._tasks = tuple(tasks)
        self._distributed = distributed
        self._output_dir = output_dir
        self._algorithm = check_algorithm_name(algorithm)
        if overlap_edges:
            check_edges(overlap_edges)
        self._overlap_edges, self._count_score = tuple(overlap_edges), count_score
        content = _annotations_of(dataset_name, output_dir)
        self._has_truth = content.get("annotations") is not None
        self._dataset_name = dataset_name
        self._sigmas = np.array(sigmas, dtype=np.float64)
        self._coco_api, self._person_id = truth_of_people(content, dataset_name)
        self._complete_annotations()
        self.scorers: dict[str, COCOeval] = {}
        self.reset()

    @property
    def truth(self) -> COCO:
        """The annotated people, alone."""
        return self._coco_api

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes `inputs` with `image_id` and `outputs` with `instances` (image frame).

        Raises:
            ValueError: poses of another number of keypoints than the skeleton; no masks for task
                "segm".
        """
        for given, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(self._cpu_device)
            if instances.has("pred_keypoints"):
                count = instances.pred_keypoints.shape[1]
                if count != len(self._sigmas):
                    raise ValueError(f"poses of {count} keypoints, {len(self._sigmas)} sigmas")
            boxes, poses = export_instances(instances, given["image_id"])
            rows = {"bbox": boxes, "keypoints": poses}
            if "segm" in self._tasks:
                if not instances.has("pred_masks"):
                    raise ValueError(
                        "EVAL.TASKS has segm, but the model gives no masks: set EVAL.TASKS without "
                        "it, or MODEL.MASK_ON True for an R-CNN"
                    )
                rows["segm"] = export_masks(instances, given["image_id"])
            self._predictions.append(rows)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, dict]:
        """Metrics by task; `img_ids` restricts them to these images."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return {}

        rows = {}
        for task in self._tasks:
            rows[task] = [
                {**r, "category_id": self._person_id}
                for of_image in predictions
                for r in of_image[task]
                if r["category_id"] == PERSON_CLASS
            ]
            if self._output_dir:
                write_json(os.path.join(self._output_dir, RESULT_FILES[task]), rows[task])
        if self._has_truth:
            self._results = OrderedDict(self.score_rows(rows, img_ids))
            if self._output_dir:
                self._write_curves()
        else:
            self._results = OrderedDict((t, dict.fromkeys(_METRICS[t])) for t in self._tasks)
            self._write_for_server(rows)
        return dict(self._results)

    def score_rows(
        self, rows: Mapping[str, list[dict]], img_ids: Sequence[int] | None = None
    ) -> dict[str, dict]:
        """Metrics by task of people who are COCO results already, see `evaluate`; prints the table.

        Args:
            rows: by task, of this dataset's images and category of people. Left as they are.
            img_ids: restricts the images.
        """
        self.scorers = {}
        return {task: self._metrics(task, found, img_ids) for task, found in rows.items()}

    def _metrics(self, task: str, results: list[dict], img_ids: Sequence[int] | None) -> dict:
        truth = truth_of_masks(self._coco_api) if task == "segm" else self._coco_api
        people = sum(not a.get("iscrowd", 0) for a in truth.anns.values())
        print(
            f"\n{task} on {self._dataset_name}: {len(truth.imgs)} images, {people} annotated, "
            f"{len(results)} predicted"
        )
        wanted = sorted(truth.imgs if img_ids is None else img_ids)
        scorer = self._scorer(task, _load_results(truth, results), wanted, truth)
        self.scorers[task] = scorer
        scorer.summarize()
        # pycocotools says -1 where there is nobody to find.
        stats = [100 * value if value >= 0 else math.nan for value in scorer.stats.tolist()]
        figures = dict(zip(_METRICS[task], stats, strict=True))
        if task == "keypoints":
            for name, ids in images_by_crowding(truth.dataset["images"]).items():
                ids = sorted(set(ids).intersection(wanted))
                part = self._scorer(task, scorer.cocoDt, ids, truth)
                figures[name] = average_precision(part)
            figures |= self._crowded_figures(scorer.cocoDt, results, wanted)
        self._logger.info("%s on %s:\n%s", task, self._dataset_name, create_small_table(figures))
        return {name: value if math.isfinite(value) else None for name, value in figures.items()}

    def _crowded_figures(
        self, found: COCO, results: list[dict], img_ids: Sequence[int]
    ) -> dict[str, float]:
        """By overlap of poses, and of counts, as the options ask."""
        figures = {}
        if self._overlap_edges:
            groups = truths_by_overlap(self._coco_api, self._sigmas, self._overlap_edges)
            for name, truth in groups.items():
                part = self._scorer("keypoints", found, img_ids, truth, ignore_poses_of_others)
                figures[name] = average_precision(part)
        if self._count_score >= 0:
            figures[COUNT] = share_of_right_counts(
                self._coco_api, results, img_ids, self._count_score
            )
        return figures

    def curves(self) -> dict[str, Curves]:
        """Recall-precision curves of the last `score_rows()`, of tasks that there is truth for."""
        found = {task: curves_of(scorer) for task, scorer in self.scorers.items()}
        return {task: curves for task, curves in found.items() if curves is not None}

    def _write_curves(self) -> None:
        for task, curves in self.curves().items():
            write_curves(os.path.join(self._output_dir, CURVE_FILES[task]), {task: curves})

    def _write_for_server(self, rows: Mapping[str, list[dict]]) -> None:
        files = []
        if self._output_dir:
            test_set = test_set_name(self._metadata.json_file)
            for task, found in rows.items():
                path = write_submission(self._output_dir, task, found, test_set, self._algorithm)
                files.append(path)
        self._logger.info(
            "%s has no annotations, so no metrics; for COCO's server: %s",
            self._dataset_name,
            ", ".join(files) or "nothing, without an output folder",
        )

    def _scorer(
        self,
        task: str,
        results: COCO,
        img_ids: Sequence[int],
        truth: COCO | None = None,
        before: Callable[[COCOeval], None] | None = None,
    ) -> COCOeval:
        """pycocotools' evaluation of `results` on these images; `before` it is accumulated."""
        with contextlib.redirect_stdout(io.StringIO()):
            scorer = COCOeval(truth or self._coco_api, results, task)
            scorer.params.imgIds = list(img_ids)
            if task == "keypoints":
                scorer.params.kpt_oks_sigmas = self._sigmas
            scorer.evaluate()
            if before:
                before(scorer)
            scorer.accumulate()
        return scorer

    def _complete_annotations(self) -> None:
        """Fills in what pycocotools wants to find, in memory: no crowd, keypoints all zero."""
        for annotation in self._coco_api.anns.values():
            annotation.setdefault("iscrowd", 0)
        if "keypoints" not in self._tasks:
            return
        length = 3 * len(self._sigmas)
        for annotation in self._coco_api.anns.values():
            keypoints = annotation.get("keypoints") or [0] * length
            if len(keypoints) != length:
                raise ValueError(
                    f"dataset {self._dataset_name!r}: annotations have {len(keypoints) / 3:g} "
                    f"keypoints, MODEL.SKELETON {len(self._sigmas)}: set it to the dataset's"
                )
            annotation["keypoints"] = keypoints
            annotation.setdefault("num_keypoints", sum(v > 0 for v in keypoints[2::3]))


def _annotations_of(dataset_name: str, output_dir: str | None) -> dict:
    """COCO content of a dataset; one without a JSON file is written to `output_dir` as such."""
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("json_file") is None:
        if output_dir is None:
            raise ValueError(
                f"dataset {dataset_name!r} is not in COCO format: give output_dir, where its "
                "annotations are written so"
            )
        file = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
        convert_to_coco_json(dataset_name, file, allow_cached=False)
        metadata.json_file = file
    return read_json(check_coco_file(metadata.json_file).file)[0]


def truth_of_people(content: dict, dataset_name: str) -> tuple[COCO, int]:
    """The annotated people of COCO `content`, which is left as it was, and their category id."""
    names = [category["name"] for category in content["categories"]]
    place = person_class(names, f"dataset {dataset_name!r}")
    person_id = content["categories"][place]["id"]
    truth = COCO()
    truth.dataset = people_only(content, person_id)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, person_id


def export_instances(instances: Instances, image_id: int | str) -> tuple[list[dict], list[dict]]:
    """Predicted people of one image as COCO results: (boxes, poses).

    Args:
        instances: on the CPU, image frame: `pred_boxes`, `scores`, `pred_classes` and, for poses,
            `pred_keypoints` (P, K, 3) and perhaps `pose_scores` (P,). Left unchanged.
        image_id: of the image.

    Returns:
        One dict a box and one a pose; instances without any keypoint are no poses. `category_id`
        is still the model's class. Keypoints are pixel indices (-0.5, design 4.1).
    """
    copy = Instances(instances.image_size, **instances.get_fields())
    if copy.has("pred_masks"):
        copy.remove("pred_masks")
    has_poses = copy.has("pred_keypoints")
    if has_poses:
        copy.pred_keypoints = copy.pred_keypoints.clone()
    rows = instances_to_coco_json(copy, image_id)
    boxes = [{k: v for k, v in row.items() if k != "keypoints"} for row in rows]
    if not has_poses or not rows:
        return boxes, []

    given = (instances.pred_keypoints != 0).any(dim=-1)
    scores = instances.pose_scores if instances.has("pose_scores") else instances.scores
    poses = []
    for row, joints, score in zip(rows, given.tolist(), scores.tolist(), strict=True):
        if not any(joints):
            continue
        keypoints = [v if joints[i // 3] else 0.0 for i, v in enumerate(row["keypoints"])]
        poses.append({**row, "keypoints": keypoints, "score": score})
    return boxes, poses


def write_json(path: str, content: object) -> None:
    """Writes JSON without NaN, so that a reader never sees half of it."""
    write_text_atomically(path, json.dumps(content, allow_nan=False))


def _load_results(truth: COCO, results: list[dict]) -> COCO:
    """`truth.loadRes`, which fails on an empty list."""
    if results:
        with contextlib.redirect_stdout(io.StringIO()):
            return truth.loadRes([dict(r) for r in results])
    empty = COCO()
    empty.dataset = {
        "images": truth.dataset["images"],
        "categories": truth.dataset.get("categories", []),
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        empty.createIndex()
    return empty
