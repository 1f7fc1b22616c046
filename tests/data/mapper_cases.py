"""Drawn cases and slow references that several tests of the mapper use."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from mpn_d2.data import PoseDatasetMapper
from mpn_d2.data.augmentations import AffineTransform
from mpn_d2.structures.skeleton import get_skeleton

COCO = get_skeleton("coco")


def make_mapper(*augmentations: T.Augmentation, skeleton: str = "coco") -> PoseDatasetMapper:
    return PoseDatasetMapper(
        is_train=True,
        augmentations=augmentations,
        image_format="BGR",
        skeleton=get_skeleton(skeleton),
        with_annotations=True,
    )


def drawn(tmp_path: Path, *annotations: dict, size: tuple[int, int] = (24, 32)) -> dict:
    file = tmp_path / "drawn.png"
    pixels = np.arange(size[0] * size[1] * 3) % 251
    Image.fromarray(pixels.reshape(*size, 3).astype(np.uint8)).save(file)
    record = {"file_name": str(file), "height": size[0], "width": size[1], "image_id": 3}
    return {**record, "annotations": list(annotations)}


def square(x1: float, y1: float, x2: float, y2: float, joints: int = 1, **changes: object) -> dict:
    """A person who is a rectangle, with `joints` labelled keypoints in its middle."""
    joint = [(x1 + x2) / 2, (y1 + y2) / 2, 2]
    person = {
        "bbox": [x1, y1, x2, y2],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "iscrowd": 0,
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        "keypoints": joint * joints + [0.5, 0.5, 0] * (COCO.num_keypoints - joints),
    }
    return {**person, **changes}


def without_mask(x1: float, y1: float, x2: float, y2: float, **changes: object) -> dict:
    """The same person, whose mask nobody drew."""
    person = square(x1, y1, x2, y2, **changes)
    return {k: v for k, v in person.items() if k != "segmentation"}


def cells(mask: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(y), int(x)) for y, x in mask.nonzero()}


def block(y1: int, x1: int, y2: int, x2: int) -> set[tuple[int, int]]:
    return {(y, x) for y in range(y1, y2) for x in range(x1, x2)}


def turn(
    angle: float, scale: float, center: tuple, to: tuple, size: tuple[int, int]
) -> AffineTransform:
    """Turns by degrees about `center`, which goes to `to`."""
    c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    linear = np.array([[c, -s], [s, c]])
    return AffineTransform(np.column_stack([linear, np.array(to) - linear @ center]), size)


def decoded(annotations: list[dict], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool union of the annotations' masks, by pycocotools."""
    mask = np.zeros(size, bool)
    for a in annotations:
        rle = a["segmentation"]
        if isinstance(rle, list):
            rle = mask_util.merge(mask_util.frPyObjects(rle, *size))
        mask |= mask_util.decode(rle).astype(bool)
    return mask
