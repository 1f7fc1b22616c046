"""Samples of one person each: a crop of fixed size around her box, her joints in it.

For a network that sees one person at a time. Frames: image; crop, continuous pixels of the network
input (design 4.1). Crops of training and test, and those of detected boxes, all come from
`crop_matrix`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from mpn_d2.data.augmentations import AffineTransform, check_bounds
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.structures.skeleton import Skeleton, get_skeleton


def crop_matrix(box: np.ndarray, size: tuple[int, int], margin: float) -> np.ndarray:
    """From the image to the crop of a box: the box with its margin as large as fits, in the middle.

    Both axes are scaled alike, so the crop also shows what lies beside a box of another shape.

    Args:
        box: (4,) x1, y1, x2, y2 with an area.
        size: (H, W) of the crop.
        margin: share of the box's width and height that it reaches further on each side.

    Returns:
        (2, 3): crop point = matrix @ (x, y, 1).
    """
    box = np.asarray(box, dtype=np.float64)
    sides = (box[2:] - box[:2]) * (1 + 2 * margin)
    middle = np.array([size[1], size[0]]) / 2
    scale = (2 * middle / sides).min()
    return np.column_stack([scale * np.eye(2), middle - scale * (box[:2] + box[2:]) / 2])


def has_area(boxes: np.ndarray) -> np.ndarray:
    """(N,) bool of (N, 4) x1, y1, x2, y2: boxes that a crop can be made of; False for NaN."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    # The reciprocal of a side is a scale: it must be a number.
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.all(np.isfinite(boxes), axis=1) & np.all(sides > 1e-6, axis=1)


def check_crop(size: Sequence[int], margin: float) -> None:
    """ValueError for a SINGLE_PERSON.SIZE or MARGIN that is not possible."""
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(
            f"SINGLE_PERSON.SIZE is {tuple(size)}: a height and a width in pixels are needed"
        )
    if not 0 <= margin < math.inf:
        raise ValueError(f"SINGLE_PERSON.MARGIN is {margin}: 0 or more is needed")


class CropTransform(AffineTransform):
    """An AffineTransform that reads only the part of the image that it shows."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        height, width = self.size
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=np.float64)
        linear = self.matrix[:, :2]
        seen = (corners - self.matrix[:, 2]) @ np.linalg.inv(linear).T
        # Pixels that the interpolation averages may lie a step further; whole blocks of them.
        step = max(int(1 / math.sqrt(abs(np.linalg.det(linear)))), 1)
        limits = np.array(img.shape[1::-1])
        low = np.clip(np.floor(seen.min(axis=0) / step) - 2, 0, limits // step).astype(int) * step
        high = np.clip(np.ceil(seen.max(axis=0)) + 2 * step, low, limits).astype(int)
        part = img[low[1] : high[1], low[0] : high[0]]
        if part.size == 0:
            # One pixel of it says which type and how many channels.
            part, low = img[:1, :1], np.zeros(2)
        offset = self.matrix[:, 2] + linear @ low
        moved = AffineTransform(np.column_stack([linear, offset]), self.size)
        return moved.apply_image(np.ascontiguousarray(part))


class PersonCrop(T.Augmentation):
    """The crop of the first box of the AugInput; while training moved, scaled and turned.

    The sides of the box move at random, as those of detected boxes do, then the crop is scaled and
    turned about its middle.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        margin: float,
        jitter: float = 0.0,
        scale_factor: Sequence[float] = (1.0, 1.0),
        rotation: float = 0.0,
    ) -> None:
        """
        Args:
            size: (H, W) of the crop.
            margin: see `crop_matrix`.
            jitter: most that a side of the box moves, as a share of its width or height.
            scale_factor: least and largest factor on the scale.
            rotation: largest angle to each side, degrees.

        Raises:
            ValueError: a value that is not possible; names the key.
        """
        super().__init__()
        check_crop(size, margin)
        if not 0 <= jitter < 0.5:
            raise ValueError(f"SINGLE_PERSON.BOX_JITTER is {jitter}: 0 to below 0.5 is needed")
        if not rotation >= 0:
            raise ValueError(f"INPUT.ROTATION is {rotation}: 0 or more is needed")
        self.size = (size[0], size[1])
        self.margin = margin
        self.jitter = jitter
        self.low, self.high = check_bounds(scale_factor)
        self.rotation = rotation

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> CropTransform:
        box = np.asarray(boxes, dtype=np.float64)[0]
        sides = np.tile(box[2:] - box[:2], 2)
        box = box + sides * self._rand_range(-self.jitter, self.jitter, 4)
        matrix = crop_matrix(box, self.size, self.margin)
        scale = self._rand_range(self.low, self.high)
        angle = math.radians(self._rand_range(-self.rotation, self.rotation))
        cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        middle = np.array([self.size[1], self.size[0]]) / 2
        linear = turn @ matrix[:, :2]
        offset = turn @ (matrix[:, 2] - middle) + middle
        return CropTransform(np.column_stack([linear, offset]), self.size)


def people_samples(dicts: list[dict], *, min_keypoints: int, everybody: bool = False) -> list[dict]:
    """One dataset dict a person, each with her annotation alone, in the order of the annotations.

    Args:
        dicts: Detectron2's dataset dicts, one an image.
        min_keypoints: people with fewer labelled keypoints are left out, and crowds.
        everybody: leave nobody out who has a box with an area.

    Returns:
        Dicts of `file_name`, `height`, `width`, `image_id`, `annotations` (one, without mask) and
        `owner`, her place among the annotations of the image.
    """
    samples = []
    for record in dicts:
        shared = {key: value for key, value in record.items() if key != "annotations"}
        for owner, annotation in enumerate(record.get("annotations", ())):
            labelled = sum(v > 0 for v in annotation.get("keypoints", [])[2::3])
            wanted = not annotation.get("iscrowd", 0) and labelled >= min_keypoints
            if (everybody or wanted) and has_area(_box(annotation))[0]:
                # Masks say nothing that is used, and are most of the memory.
                own = {key: value for key, value in annotation.items() if key != "segmentation"}
                samples.append({**shared, "annotations": [own], "owner": owner})
    return samples


def training_people(cfg: CfgNode, dicts: list[dict]) -> list[dict]:
    """People with SINGLE_PERSON.MIN_KEYPOINTS; a ValueError if there are none."""
    samples = people_samples(dicts, min_keypoints=cfg.SINGLE_PERSON.MIN_KEYPOINTS)
    if not samples:
        raise ValueError(
            "no person to train on: nobody has as many labelled keypoints as "
            "SINGLE_PERSON.MIN_KEYPOINTS asks for; lower it or name other datasets"
        )
    return samples


def people_to_evaluate(cfg: CfgNode, dicts: list[dict]) -> list[dict]:
    """Everybody's box, or with EVAL.GT_BOX_FILTER that of people with labelled keypoints.

    Raises:
        ValueError: there is nobody.
    """
    samples = people_samples(dicts, min_keypoints=1, everybody=not cfg.EVAL.GT_BOX_FILTER)
    if not samples:
        raise ValueError(
            "no annotated person in DATASETS.TEST: a single-person network is evaluated in given "
            "boxes; evaluate the whole network whose poses it refines (REFINE) instead"
        )
    return samples


class SinglePersonMapper:
    """Reads an image and cuts out one person.

    `mapper(sample)` of `people_samples` leaves the sample as it is and returns

    - `image`: (3, H, W) uint8 in INPUT.FORMAT, the crop; `height`, `width` (of the file),
      `file_name`, `image_id`, `owner`;
    - `instances`: the person alone, in the frame of the crop, as PoseDatasetMapper makes her:
      joints outside the crop are (0, 0, 0). Nobody, for a crowd or a box that left the crop;
    - at test time `box` (4,) x1, y1, x2, y2 in the image, float32, and `to_crop` (2, 3) float64,
      from the image to the crop.

    Raises (on call): as PoseDatasetMapper.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        crop: PersonCrop,
        flip_prob: float,
        image_format: str,
        skeleton: Skeleton,
    ) -> None:
        """
        Args:
            is_train: flip crops, and leave out what leads back to the image.
            crop: cuts the person out; does nothing at random at test time.
            flip_prob: of a left-right flip.
            image_format: INPUT.FORMAT.
            skeleton: of the annotations.
        """
        flip = [T.RandomFlip(prob=flip_prob, horizontal=True)] if is_train else []
        self.is_train = is_train
        self.crop = crop
        self.mapper = PoseDatasetMapper(
            is_train=False,
            augmentations=[crop, *flip],
            image_format=image_format,
            skeleton=skeleton,
            with_annotations=True,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        single = cfg.SINGLE_PERSON
        changes = {
            "jitter": single.BOX_JITTER,
            "scale_factor": cfg.INPUT.SCALE_FACTOR,
            "rotation": cfg.INPUT.ROTATION,
        }
        return {
            "is_train": is_train,
            "crop": PersonCrop(
                size=single.SIZE, margin=single.MARGIN, **(changes if is_train else {})
            ),
            "flip_prob": cfg.INPUT.FLIP_PROB,
            "image_format": cfg.INPUT.FORMAT,
            "skeleton": get_skeleton(cfg.MODEL.SKELETON),
        }

    def __call__(self, sample: dict) -> dict:
        record = self.mapper(sample)
        del record["crowd_boxes"]
        record["owner"] = sample["owner"]
        if not self.is_train:
            box = _box(sample["annotations"][0])
            matrix = crop_matrix(box, self.crop.size, self.crop.margin)
            record["box"] = torch.from_numpy(box.astype(np.float32))
            record["to_crop"] = torch.from_numpy(matrix)
        return record


def _box(annotation: dict) -> np.ndarray:
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return np.array(box, dtype=np.float64)
