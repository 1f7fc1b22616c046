"""IoU of the person mask: what evaluators share, and COCO's polygons and RLE (design 7.6)."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from mpn_d2.data.annotation_cache import read_json
from mpn_d2.data.coco_file import check_coco_file
from mpn_d2.data.person_masks import box_outline, has_mask, union_mask
from mpn_d2.evaluation.pose_evaluator import truth_of_people, write_json

CLASS_NAMES = ("background", "person")
PERSON = CLASS_NAMES.index("person")
IGNORED = 255


class PersonMaskEvaluator(SemSegEvaluator):
    """Detectron2's SemSegEvaluator for `sem_seg` (2, H, W) = scores of (background, person).

    A pixel is a person's where the second score is over the threshold. The dataset's metadata is
    neither asked for classes nor changed. Subclasses say where the truth is.

    `evaluate()` returns {"sem_seg": {...}} in percent: IoU-background, IoU-person, mIoU, pACC,
    over all pixels of all images. A class without ground truth has None and is left out of mIoU;
    where no image was processed, metrics are 0 if the dataset has people, else None. Without truth
    all are None. Never NaN. Processes other than the main one get {}.
    """

    def __init__(
        self, dataset_name: str, *, output_dir: str | None, distributed: bool, threshold: float
    ) -> None:
        """
        Args:
            dataset_name: registered.
            output_dir: where predicted masks are written; None writes none.
            distributed: gather the counts of all processes.
            threshold: EVAL.MASK_THRESH.

        Raises:
            ValueError: a threshold outside 0 to 1.
        """
        # Not super().__init__: it wants mask files and class names in the dataset's metadata.
        if not (math.isfinite(threshold) and 0 <= threshold <= 1):
            raise ValueError(f"EVAL.MASK_THRESH is {threshold}: a probability, 0 to 1, is needed")
        self._threshold = threshold
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self._class_names = CLASS_NAMES
        self._num_classes = len(CLASS_NAMES)
        self._ignore_label = IGNORED
        self._contiguous_id_to_dataset_id = None
        self._compute_boundary_iou = False
        self.sem_seg_loading_fn = self._load_truth
        # File name of an image to what `_load_truth` is given.
        self.input_file_to_gt_file: dict[str, object] = {}
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes `inputs` with `image_id` and `file_name`, `outputs` with `sem_seg` (2, H, W).

        Raises:
            ValueError: a prediction has another size than its image or its truth.
        """
        for given, output in zip(inputs, outputs, strict=True):
            scores = output["sem_seg"]
            wanted = (self._num_classes, *self._size(given))
            if tuple(scores.shape) != wanted:
                raise ValueError(
                    f"sem_seg of {given['file_name']} has shape {tuple(scores.shape)}, "
                    f"wanted {wanted}"
                )
            person = (scores[PERSON] > self._threshold).cpu()
            if self._has_truth():
                self.input_file_to_gt_file[given["file_name"]] = self._truth_key(given)
                # The base class takes the class with the larger score.
                super().process([given], [{"sem_seg": torch.stack([~person, person]).byte()}])
            self._keep(given, person.numpy())

    def evaluate(self) -> dict[str, dict]:
        """Metrics of everything processed since `reset`."""
        counts, predictions = self._conf_matrix, self._predictions
        if self._distributed:
            comm.synchronize()
            counts = np.sum(comm.all_gather(counts), axis=0)
            predictions = [p for part in comm.all_gather(predictions) for p in part]
            if not comm.is_main_process():
                return {}
        metrics = self._metrics(counts)
        self._finish(predictions)
        if self._has_truth():
            self._print(metrics)
        return OrderedDict(sem_seg=metrics)

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """Nothing: `_keep` has the masks."""
        return []

    # ------------------------------------------------------------- what subclasses tell

    def _has_truth(self) -> bool:
        """Whether predictions can be compared with anything."""
        return True

    def _has_people(self) -> bool:
        """Whether there is anybody in the truth."""
        raise NotImplementedError

    def _size(self, given: dict) -> tuple[int, int]:
        """(H, W) that the mask of an input must have."""
        raise NotImplementedError

    def _truth_key(self, given: dict) -> object:
        """What `_load_truth` finds the truth of an input by."""
        raise NotImplementedError

    def _load_truth(self, key: Any, dtype: type = int) -> np.ndarray:
        """(H, W) of 0 background, 1 person, IGNORED."""
        raise NotImplementedError

    def _keep(self, given: dict, person: np.ndarray) -> None:
        """Writes a predicted mask (H, W) bool, or adds it to `self._predictions`."""

    def _finish(self, predictions: list) -> None:
        """On the main process, with what all processes kept."""

    # ------------------------------------------------------------- figures

    def _metrics(self, counts: np.ndarray) -> dict[str, float | None]:
        """`counts` (3, 3): pixels by predicted and true class, the last one ignored."""
        names = [*(f"IoU-{name}" for name in CLASS_NAMES), "mIoU", "pACC"]
        if not counts.any():
            known = self._has_truth() and self._has_people()
            return dict.fromkeys(names, 0.0 if known else None)
        valid = counts[:-1, :-1].astype(np.float64)
        hit, true, predicted = valid.diagonal(), valid.sum(axis=0), valid.sum(axis=1)
        ious = [
            float(100 * h / (t + p - h)) if t > 0 else None
            for h, t, p in zip(hit, true, predicted, strict=True)
        ]
        there = [iou for iou in ious if iou is not None]
        mean = sum(there) / len(there) if there else None
        accuracy = float(100 * hit.sum() / true.sum()) if there else None
        return dict(zip(names, [*ious, mean, accuracy], strict=True))

    def _print(self, metrics: dict[str, float | None]) -> None:
        shown = ", ".join(
            f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in metrics.items()
        )
        print(f"\nsem_seg on {self._dataset_name}: {shown}")


class PersonSegEvaluator(PersonMaskEvaluator):
    """The person mask against a COCO dataset.

    Ground truth is drawn from the annotations of the dataset's people (other categories are
    background, see `mpn_d2.data.coco_file`): masks of people, with or without keypoints, are
    person; crowds, and boxes of people without a mask, are ignored where no person's mask covers
    them. A file without "annotations" has no truth. With `output_dir`, the predicted person masks
    are written to sem_seg_predictions.json as RLE.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | None = None,
        distributed: bool = True,
        threshold: float = 0.5,
    ) -> None:
        """As PersonMaskEvaluator.

        Raises:
            FileNotFoundError: the annotation file is missing.
            ValueError: it is faulty (see `check_coco_file`), or the threshold is.
        """
        super().__init__(
            dataset_name, output_dir=output_dir, distributed=distributed, threshold=threshold
        )
        summary = check_coco_file(MetadataCatalog.get(dataset_name).json_file)
        content, _ = read_json(summary.file)
        self._is_annotated = content.get("annotations") is not None
        self._coco_api, _ = truth_of_people(content, dataset_name)

    def _has_truth(self) -> bool:
        return self._is_annotated

    def _has_people(self) -> bool:
        return any(not a.get("iscrowd", 0) for a in self._coco_api.anns.values())

    def _size(self, given: dict) -> tuple[int, int]:
        image = self._coco_api.imgs[given["image_id"]]
        return image["height"], image["width"]

    def _truth_key(self, given: dict) -> int | str:
        return given["image_id"]

    def _keep(self, given: dict, person: np.ndarray) -> None:
        if self._output_dir and person.any():
            rle = mask_util.encode(np.asfortranarray(person, dtype=np.uint8))
            self._predictions.append(
                {
                    "file_name": given["file_name"],
                    "category_id": PERSON,
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )

    def _finish(self, predictions: list) -> None:
        if self._output_dir:
            write_json(os.path.join(self._output_dir, "sem_seg_predictions.json"), predictions)

    def _load_truth(self, key: int | str, dtype: type = int) -> np.ndarray:
        """Drawn, of the image with this id."""
        image = self._coco_api.imgs[key]
        size = (image["height"], image["width"])
        annotations = self._coco_api.imgToAnns[key]
        crowds = [a for a in annotations if a.get("iscrowd", 0)]
        people = [a for a in annotations if not a.get("iscrowd", 0)]
        boxes = [
            box_outline(BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
            for a in annotations
            if not has_mask(a)
        ]
        ignored = union_mask(crowds + boxes, size)
        truth: np.ndarray = np.where(ignored, IGNORED, 0).astype(dtype)
        truth[union_mask(people, size) > 0] = PERSON
        return truth
