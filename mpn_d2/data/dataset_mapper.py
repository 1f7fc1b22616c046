"""From a dataset dict to what the model is given: image, people, ignore region.

Letters: P people, M crowds, K keypoint types, (H, W) the network input. Frame: network input,
continuous pixels (design 4.1). Coordinates only; heatmaps and grids are made on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances, Keypoints

from mpn_d2.data.augmentations import build_augmentations
from mpn_d2.data.datasets import has_keypoints
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.data.person_boxes import move_boxes, moved_areas
from mpn_d2.data.person_masks import (
    box_outline,
    has_mask,
    instance_masks,
    reduce_to_cells,
    union_mask,
)
from mpn_d2.structures.skeleton import Skeleton, get_skeleton

# Pixels a side of the cells of `person_mask` and `ignore_mask` (spec 1: heatmaps at stride 4).
MASK_STRIDE = 4
# Values of `ignore_mask`, see PoseDatasetMapper.
IGNORED, IGNORED_FOR_MASK = 1, 2
# Pixels around the joints of people without a box: two sigmas of their peaks (spec 6), in whole
# cells. [ours]
JOINT_MARGIN = 16


class PoseDatasetMapper:
    """Reads an image and moves its annotations into the network-input frame.

    `mapper(dataset_dict)` leaves the dict as it is and returns

    - `image`: (3, H, W) uint8 in INPUT.FORMAT; `height`, `width` (of the file), `file_name`,
      `image_id`;
    - with annotations: `instances` (people that are no crowds and whose clipped box is not empty:
      `gt_boxes` clipped (see `move_boxes` for turned ones), `gt_areas` of whole people (see
      `moved_areas`), `gt_classes`, `gt_keypoints` (P, K, 3) x, y, v with (0, 0, 0) where
      unlabelled or outside the image) and `crowd_boxes` (M, 4)
      x1, y1, x2, y2, clipped;
    - while training a model with masks (MODEL.MASK_ON), also in `instances`: `gt_masks`
      (PolygonMasks, or BitMasks where anybody's is an RLE) and `gt_has_mask` (P,) bool, False for
      people without a mask, whose entry of `gt_masks` is empty;
    - while training: `person_mask` and `ignore_mask`, uint8
      (ceil(H / MASK_STRIDE), ceil(W / MASK_STRIDE)). The first is the union of everybody's masks,
      crowds included. The second says what no loss may look at:

      - 1, neither heatmaps nor person mask: crowds and people without labelled keypoints, by
        their mask, or box where there is none, minus the masks of people with labelled keypoints
        (spec 6). Also people who have joints in the image but no box in it, and so are not in
        `instances`: by their mask, or else the box around these joints;
      - 2, the person mask alone: the rest of the boxes of people with labelled keypoints but no
        mask. Their joints are known, which of the pixels are theirs is not;
      - 0: all else, also outside the image and for people whose joints a crop left out: these are
        known not to be there.

      A cell is in a region where at least half of its pixels inside the image are (for the
      person mask, of 1 and 2 together).

    Raises (on call):
        FileNotFoundError: the image file is missing.
        ValueError: it cannot be read, has another size than annotated, or an annotation does
            not fit the skeleton.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        skeleton: Skeleton,
        with_annotations: bool,
        with_masks: bool = False,
    ) -> None:
        """
        Args:
            is_train: also render the two masks; implies annotations.
            augmentations: any of Detectron2's; a left-right flip must be an HFlipTransform, which
                is what exchanges left and right keypoints.
            image_format: INPUT.FORMAT.
            skeleton: of the annotations.
            with_annotations: return people at test time too.
            with_masks: return the masks of people one by one while training.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.skeleton = skeleton
        self.with_annotations = with_annotations or is_train
        self.with_masks = with_masks and is_train

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "skeleton": get_skeleton(cfg.MODEL.SKELETON),
            "with_annotations": "gt" in (cfg.EVAL.KEYPOINT_SOURCE, cfg.EVAL.BOX_SOURCE),
            "with_masks": cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        record = {
            key: dataset_dict[key]
            for key in ("file_name", "height", "width", "image_id")
            if key in dataset_dict
        }
        image = self._read(record)
        annotations = dataset_dict.get("annotations", []) if self.with_annotations else []
        boxes = np.array([_xyxy(a) for a in annotations], dtype=np.float64).reshape(-1, 4)
        aug_input = T.AugInput(image, boxes=boxes[_worth_looking_at(annotations)])
        transforms = self.augmentations(aug_input)
        moved = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        record["image"] = torch.from_numpy(moved)
        if not self.with_annotations:
            return record

        size = aug_input.image.shape[:2]
        try:
            moved_boxes = move_boxes(annotations, boxes, transforms, image.shape[:2])
            areas = moved_areas(annotations, boxes, transforms, image.shape[:2])
            lost = self._add_people(
                record, annotations, moved_boxes, areas, transforms, image.shape[:2], size
            )
            if self.is_train:
                masks = _render_masks(annotations, boxes, lost, image.shape[:2], transforms, size)
                record["person_mask"], record["ignore_mask"] = map(torch.from_numpy, masks)
        except ValueError as error:
            raise ValueError(f"{_where(record)}: {error}") from error
        return record

    def _read(self, record: dict) -> np.ndarray:
        """The image (H, W, 3); fills in height and width where the record has none."""
        known = "height" in record and "width" in record
        image = read_pose_image(
            record["file_name"],
            self.image_format,
            size=(record["height"], record["width"]) if known else None,
            image_id=record.get("image_id"),
        )
        record["height"], record["width"] = image.shape[:2]
        return image

    def _add_people(
        self,
        record: dict,
        annotations: list[dict],
        boxes: np.ndarray,
        areas: np.ndarray,
        transforms: T.TransformList,
        image_size: tuple[int, int],
        size: tuple[int, int],
    ) -> dict[int, np.ndarray]:
        """Returns the boxes around the joints of those with joints but no box in the image, by
        their places among the annotations."""
        crowd = np.array([_is_crowd(a) for a in annotations], dtype=bool)
        people = [a for a in annotations if not _is_crowd(a)]
        instances = Instances(size)
        instances.gt_boxes = _clipped(boxes[~crowd], size)
        instances.gt_areas = torch.as_tensor(areas[~crowd], dtype=torch.float32)
        instances.gt_classes = torch.tensor([a["category_id"] for a in people], dtype=torch.int64)
        keypoints = [self._keypoints(a, transforms, size) for a in people]
        instances.gt_keypoints = Keypoints(
            np.array(keypoints, dtype=np.float32).reshape(-1, self.skeleton.num_keypoints, 3)
        )
        if self.with_masks:
            instances.gt_masks, instances.gt_has_mask = instance_masks(
                people, image_size, transforms, size
            )
        record["instances"], kept = utils.filter_empty_instances(
            instances, by_mask=False, return_mask=True
        )
        crowds = _clipped(boxes[crowd], size)
        record["crowd_boxes"] = crowds[crowds.nonempty()].tensor
        return {
            int(i): _box_around(joints)
            for i, joints, is_kept in zip(np.flatnonzero(~crowd), keypoints, kept.tolist())
            if not is_kept and joints[:, 2].any()
        }

    def _keypoints(
        self, annotation: dict, transforms: T.TransformList, size: tuple[int, int]
    ) -> np.ndarray:
        """(K, 3) x, y, v of one person; zeros where the annotation has no keypoints."""
        count = self.skeleton.num_keypoints
        keypoints = annotation.get("keypoints")
        if keypoints is None or len(keypoints) == 0:
            return np.zeros((count, 3))
        # A copy: Detectron2 writes into what it is given.
        keypoints = np.array(keypoints, dtype=np.float64)
        if keypoints.size != 3 * count:
            raise ValueError(
                f"a person with {keypoints.size / 3:g} keypoints, but skeleton "
                f"{self.skeleton.name!r} has {count}: set MODEL.SKELETON to the dataset's"
            )
        return utils.transform_keypoint_annotations(
            keypoints, transforms, size, self.skeleton.flip_indices
        )


def _render_masks(
    annotations: list[dict],
    boxes: np.ndarray,
    lost: dict[int, np.ndarray],
    image_size: tuple[int, int],
    transforms: T.TransformList,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """`person_mask` and `ignore_mask` in cells; `boxes` (N, 4) are those of `annotations`, `lost`
    those that `_add_people` returns."""
    known = np.array([not _is_crowd(a) and has_keypoints(a) for a in annotations], dtype=bool)
    known[list(lost)] = False
    no_mask = np.array([not has_mask(a) for a in annotations], dtype=bool)
    labelled = [a for a, is_known in zip(annotations, known, strict=True) if is_known]
    others = [a for a, is_known in zip(annotations, known, strict=True) if not is_known]

    def cover(shapes: list[dict]) -> np.ndarray:
        return union_mask(shapes, image_size, transforms, size)

    labelled_mask, others_mask = cover(labelled), cover(others)
    person = labelled_mask | others_mask
    boxes_for_all = cover([box_outline(box) for box in boxes[no_mask & ~known]])
    boxes_for_mask = cover([box_outline(box) for box in boxes[no_mask & known]])
    around_joints = [box_outline(box) for i, box in lost.items() if no_mask[i]]
    boxes_for_all |= union_mask(around_joints, size)
    for_all = (others_mask | boxes_for_all) & (1 - labelled_mask)
    for_mask = for_all | (boxes_for_mask & (1 - labelled_mask))
    # for_mask holds for_all: the sum is 0, 1 (for the mask alone) or 2 (for all).
    count = reduce_to_cells(for_all, MASK_STRIDE) + reduce_to_cells(for_mask, MASK_STRIDE)
    ignore = np.array([0, IGNORED_FOR_MASK, IGNORED], dtype=np.uint8)[count]
    return reduce_to_cells(person, MASK_STRIDE), ignore


def _worth_looking_at(annotations: list[dict]) -> list[int]:
    """People whom a crop may be about: those with keypoints, else all but crowds, else all."""
    people = [i for i, a in enumerate(annotations) if not _is_crowd(a)]
    labelled = [i for i in people if has_keypoints(annotations[i])]
    return labelled or people or list(range(len(annotations)))


def _where(record: dict) -> str:
    number = f" (image_id {record['image_id']})" if "image_id" in record else ""
    return f"image {record['file_name']}{number}"


def _box_around(joints: np.ndarray) -> np.ndarray:
    """x1, y1, x2, y2 with the surroundings of the labelled ones of the (K, 3) joints."""
    labelled = joints[joints[:, 2] > 0, :2]
    low, high = labelled.min(axis=0) - JOINT_MARGIN, labelled.max(axis=0) + JOINT_MARGIN
    return np.concatenate([low, high])


def _is_crowd(annotation: dict) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _xyxy(annotation: dict) -> Sequence[float]:
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _clipped(boxes: np.ndarray, size: tuple[int, int]) -> Boxes:
    clipped = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    clipped.clip(size)
    return clipped
