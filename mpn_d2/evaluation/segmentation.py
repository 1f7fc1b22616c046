"""IoU of the person mask against polygons and RLE of a COCO dataset (design 7.6)."""

from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np
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
IGNORED = 255


class PersonSegEvaluator(SemSegEvaluator):
    """Detectron2's SemSegEvaluator for `sem_seg` (2, H, W) = scores of (background, person).

    Ground truth is drawn from the annotations of the dataset's people (other categories are
    background, see `mpn_d2.data.coco_file`): masks of people, with or without
    keypoints, are person; crowds, and boxes of people without a mask, are ignored where no
    person's mask covers them. The dataset's metadata is neither asked for classes nor changed.

    `evaluate()` returns {"sem_seg": {...}} in percent: IoU-background, IoU-person, mIoU, pACC,
    over all pixels of all images. A class without ground truth has None and is left out of mIoU;
    where no image was processed, metrics are 0 if the dataset has people, else None. Never NaN.
    Processes other than the main one get {}. With `output_dir`, the predicted person masks are
    written to sem_seg_predictions.json as RLE.
    """

    def __init__(
        self, dataset_name: str, *, output_dir: str | None = None, distributed: bool = True
    ) -> None:
        """
        Args:
            dataset_name: registered, in COCO format.
            output_dir: where predicted masks are written; None writes none.
            distributed: gather the counts of all processes.

        Raises:
            FileNotFoundError: the annotation file is missing.
            ValueError: it is faulty (see `check_coco_file`).
        """
        # Not super().__init__: it wants mask files and class names in the dataset's metadata.
        summary = check_coco_file(MetadataCatalog.get(dataset_name).json_file)
        content, _ = read_json(summary.file)
        self._coco_api, _ = truth_of_people(content, dataset_name)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self._class_names = CLASS_NAMES
        self._num_classes = len(CLASS_NAMES)
        self._ignore_label = IGNORED
        self._contiguous_id_to_dataset_id = None
        self._compute_boundary_iou = False
        self.sem_seg_loading_fn = self._draw_truth
        self.input_file_to_gt_file: dict[str, int] = {}
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Takes `inputs` with `image_id` and `file_name`, `outputs` with `sem_seg` (2, H, W).

        Raises:
            ValueError: a prediction has another size than its image.
        """
        for given, output in zip(inputs, outputs, strict=True):
            image = self._coco_api.imgs[given["image_id"]]
            wanted = (self._num_classes, image["height"], image["width"])
            if tuple(output["sem_seg"].shape) != wanted:
                raise ValueError(
                    f"sem_seg of {given['file_name']} has shape {tuple(output['sem_seg'].shape)}, "
                    f"wanted {wanted}"
                )
            # The base class asks for the ground truth by this name.
            self.input_file_to_gt_file[given["file_name"]] = given["image_id"]
        super().process(inputs, outputs)

    def evaluate(self) -> dict[str, dict]:
        """Metrics of everything processed since `reset`."""
        counts, predictions = self._conf_matrix, self._predictions
        if self._distributed:
            comm.synchronize()
            counts = np.sum(comm.all_gather(counts), axis=0)
            predictions = [p for part in comm.all_gather(predictions) for p in part]
            if not comm.is_main_process():
                return {}
        if self._output_dir:
            write_json(os.path.join(self._output_dir, "sem_seg_predictions.json"), predictions)
        metrics = self._metrics(counts)
        self._print(metrics)
        return OrderedDict(sem_seg=metrics)

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """RLE of the person mask, for the results file; nothing where none is written."""
        if not self._output_dir:
            return []
        rows = super().encode_json_sem_seg(sem_seg, input_file_name)
        return [row for row in rows if row["category_id"] == CLASS_NAMES.index("person")]

    def _metrics(self, counts: np.ndarray) -> dict[str, float | None]:
        """`counts` (3, 3): pixels by predicted and true class, the last one ignored."""
        names = [*(f"IoU-{name}" for name in CLASS_NAMES), "mIoU", "pACC"]
        if not counts.any():
            has_people = any(not a.get("iscrowd", 0) for a in self._coco_api.anns.values())
            return dict.fromkeys(names, 0.0 if has_people else None)
        valid = counts[:-1, :-1].astype(np.float64)
        hit, true, predicted = valid.diagonal(), valid.sum(axis=0), valid.sum(axis=1)
        ious = [
            float(100 * h / (t + p - h)) if t > 0 else None
            for h, t, p in zip(hit, true, predicted, strict=True)
        ]
        known = [iou for iou in ious if iou is not None]
        mean = sum(known) / len(known) if known else None
        accuracy = float(100 * hit.sum() / true.sum()) if known else None
        return dict(zip(names, [*ious, mean, accuracy], strict=True))

    def _print(self, metrics: dict[str, float | None]) -> None:
        shown = ", ".join(
            f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in metrics.items()
        )
        print(f"\nsem_seg on {self._dataset_name}: {shown}")

    def _draw_truth(self, image_id: int, dtype: type = int) -> np.ndarray:
        """(H, W) of 0 background, 1 person, IGNORED."""
        image = self._coco_api.imgs[image_id]
        size = (image["height"], image["width"])
        annotations = self._coco_api.imgToAnns[image_id]
        crowds = [a for a in annotations if a.get("iscrowd", 0)]
        people = [a for a in annotations if not a.get("iscrowd", 0)]
        boxes = [
            box_outline(BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
            for a in annotations
            if not has_mask(a)
        ]
        ignored = union_mask(crowds + boxes, size)
        truth = np.where(ignored, IGNORED, 0).astype(dtype)
        truth[union_mask(people, size) > 0] = CLASS_NAMES.index("person")
        return truth
