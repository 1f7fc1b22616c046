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

from mpn_d2.data.datasets import has_keypoints
from mpn_d2.data.person_masks import box_mask, has_mask, reduce_to_cells, union_mask
from mpn_d2.structures.skeleton import Skeleton, get_skeleton

# Pixels a side of the cells of `person_mask` and `ignore_mask` (spec 1: heatmaps at stride 4).
MASK_STRIDE = 4
# Values of `ignore_mask`, see PoseDatasetMapper.
IGNORED, IGNORED_FOR_MASK = 1, 2


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Resize of the shorter edge (INPUT.MIN_SIZE_*, MAX_SIZE_*); while training a random flip."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    resize = T.ResizeShortestEdge(
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    )
    return [resize, T.RandomFlip(prob=cfg.INPUT.FLIP_PROB, horizontal=True)]


class PoseDatasetMapper:
    """Reads an image and moves its annotations into the network-input frame.

    `mapper(dataset_dict)` leaves the dict as it is and returns

    - `image`: (3, H, W) uint8 in INPUT.FORMAT; `height`, `width` (of the file), `file_name`,
      `image_id`;
    - with annotations: `instances` (people that are no crowds and whose clipped box is not empty:
      `gt_boxes` clipped, `gt_classes`, `gt_keypoints` (P, K, 3) x, y, v with (0, 0, 0) where
      unlabelled or outside the image) and `crowd_boxes` (M, 4) x1, y1, x2, y2, clipped;
    - while training: `person_mask` and `ignore_mask`, uint8
      (ceil(H / MASK_STRIDE), ceil(W / MASK_STRIDE)). The first is the union of everybody's masks,
      crowds included. The second says what no loss may look at:

      - 1, neither heatmaps nor person mask: crowds and people without labelled keypoints, by
        their mask, or box where there is none, minus the masks of people with labelled keypoints
        (spec 6);
      - 2, the person mask alone: the rest of the boxes of people with labelled keypoints but no
        mask. Their joints are known, which of the pixels are theirs is not;
      - 0: all else.

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
    ) -> None:
        """
        Args:
            is_train: also render the two masks; implies annotations.
            augmentations: any of Detectron2's; a left-right flip must be an HFlipTransform, which
                is what exchanges left and right keypoints.
            image_format: INPUT.FORMAT.
            skeleton: of the annotations.
            with_annotations: return people at test time too.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.skeleton = skeleton
        self.with_annotations = with_annotations or is_train

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "skeleton": get_skeleton(cfg.MODEL.SKELETON),
            "with_annotations": "gt" in (cfg.EVAL.KEYPOINT_SOURCE, cfg.EVAL.BOX_SOURCE),
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
        # The boxes are for augmentations that choose their crop by people.
        aug_input = T.AugInput(image, boxes=boxes.copy())
        transforms = self.augmentations(aug_input)
        moved = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        record["image"] = torch.from_numpy(moved)
        if not self.with_annotations:
            return record

        size = aug_input.image.shape[:2]
        boxes = transforms.apply_box(boxes)
        self._add_people(record, annotations, boxes, transforms, size)
        if self.is_train:
            try:
                masks = _render_masks(annotations, boxes, image.shape[:2], transforms, size)
            except ValueError as error:
                raise ValueError(f"{record['file_name']}: {error}") from error
            record["person_mask"], record["ignore_mask"] = map(torch.from_numpy, masks)
        return record

    def _read(self, record: dict) -> np.ndarray:
        """The image (H, W, 3); fills in height and width where the record has none."""
        file_name = record["file_name"]
        try:
            image = utils.read_image(file_name, format=self.image_format)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"image {file_name} not found") from error
        except (OSError, SyntaxError) as error:  # what Pillow raises for broken files
            raise ValueError(f"image {file_name} cannot be read: {error}") from error
        utils.check_image_size(record, image)
        return image

    def _add_people(
        self,
        record: dict,
        annotations: list[dict],
        boxes: np.ndarray,
        transforms: T.TransformList,
        size: tuple[int, int],
    ) -> None:
        crowd = np.array([_is_crowd(a) for a in annotations], dtype=bool)
        people = [a for a in annotations if not _is_crowd(a)]
        instances = Instances(size)
        instances.gt_boxes = _clipped(boxes[~crowd], size)
        instances.gt_classes = torch.tensor([a["category_id"] for a in people], dtype=torch.int64)
        keypoints = [self._keypoints(a, transforms, size, record["file_name"]) for a in people]
        instances.gt_keypoints = Keypoints(
            np.array(keypoints, dtype=np.float32).reshape(-1, self.skeleton.num_keypoints, 3)
        )
        record["instances"] = utils.filter_empty_instances(instances, by_mask=False)
        crowds = _clipped(boxes[crowd], size)
        record["crowd_boxes"] = crowds[crowds.nonempty()].tensor

    def _keypoints(
        self, annotation: dict, transforms: T.TransformList, size: tuple[int, int], file_name: str
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
                f"{file_name}: a person with {keypoints.size / 3:g} keypoints, but skeleton "
                f"{self.skeleton.name!r} has {count}: set MODEL.SKELETON to the dataset's"
            )
        return utils.transform_keypoint_annotations(
            keypoints, transforms, size, self.skeleton.flip_indices
        )


def _render_masks(
    annotations: list[dict],
    boxes: np.ndarray,
    image_size: tuple[int, int],
    transforms: T.TransformList,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """`person_mask` and `ignore_mask` in cells; `boxes` (N, 4) are moved like `annotations`."""
    known = np.array([not _is_crowd(a) and has_keypoints(a) for a in annotations], dtype=bool)
    no_mask = np.array([not has_mask(a) for a in annotations], dtype=bool)
    labelled = [a for a, is_known in zip(annotations, known, strict=True) if is_known]
    others = [a for a, is_known in zip(annotations, known, strict=True) if not is_known]

    labelled_mask = union_mask(labelled, image_size, transforms, size)
    others_mask = union_mask(others, image_size, transforms, size)
    person = labelled_mask | others_mask
    for_all = (others_mask | box_mask(boxes[no_mask & ~known], size)) & (1 - labelled_mask)
    for_mask = for_all | (box_mask(boxes[no_mask & known], size) & (1 - labelled_mask))
    # for_mask holds for_all: the sum is 0, 1 (for the mask alone) or 2 (for all).
    count = reduce_to_cells(for_all, MASK_STRIDE) + reduce_to_cells(for_mask, MASK_STRIDE)
    ignore = np.array([0, IGNORED_FOR_MASK, IGNORED], dtype=np.uint8)[count]
    return reduce_to_cells(person, MASK_STRIDE), ignore


def _is_crowd(annotation: dict) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _xyxy(annotation: dict) -> Sequence[float]:
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _clipped(boxes: np.ndarray, size: tuple[int, int]) -> Boxes:
    clipped = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    clipped.clip(size)
    return clipped
