"""Boxes and areas of people after an image was transformed."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T

from mpn_d2.data.person_masks import mask_area, mask_points
from mpn_d2.structures.oks import AREA_OF_BOX

# A mask belongs to the box if its own box differs by no more: pixels, share of the longer side.
_SAME_BOX = (2.0, 0.05)
_ELLIPSE_ANGLES = np.linspace(0, 2 * np.pi, 64, endpoint=False)


def move_boxes(
    annotations: list[dict],
    boxes: np.ndarray,
    transforms: T.Transform,
    image_size: tuple[int, int],
) -> np.ndarray:
    """Where the boxes are after the transform, not clipped.

    Upright boxes of turned corners are far too large for the person inside. Where the transform
    turns, a box is therefore that of

    - the person's mask, where there is one that fills the annotated box;
    - else the ellipse that touches the four sides of the annotated box, and the labelled joints
      inside it;

    and never larger than that of the corners, which crowds keep.

    Args:
        annotations: N of Detectron2's annotations.
        boxes: (N, 4) x1, y1, x2, y2 of these, pixels of the annotated image.
        transforms: from the annotated image to the output.
        image_size: (H, W) of the annotated image.

    Returns:
        (N, 4) x1, y1, x2, y2 float64, pixels of the output.
    """
    corners = transforms.apply_box(boxes.copy())
    if _keeps_axes(transforms):
        return corners
    moved = corners.copy()
    for i, annotation in enumerate(annotations):
        if annotation.get("iscrowd", 0):
            continue
        points = transforms.apply_coords(_outline(annotation, boxes[i], image_size))
        moved[i, :2] = np.maximum(points.min(axis=0), corners[i, :2])
        moved[i, 2:] = np.minimum(points.max(axis=0), corners[i, 2:])
    return moved


def moved_areas(
    annotations: list[dict],
    boxes: np.ndarray,
    transforms: T.Transform,
    image_size: tuple[int, int],
) -> np.ndarray:
    """(N,) areas of the people after the transform, whatever of them is still in the image.

    That of the annotation (`area`), else of its mask, else AREA_OF_BOX of its box, times the factor
    by which the transform (affine) enlarges areas (design 7.9). Arguments as for `move_boxes`.
    """
    origin, right, down = transforms.apply_coords(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    factor = abs(np.linalg.det(np.stack([right - origin, down - origin])))
    areas = []
    for annotation, (x1, y1, x2, y2) in zip(annotations, boxes, strict=True):
        area = annotation.get("area")
        area = mask_area(annotation, image_size) if area is None else area
        areas.append(AREA_OF_BOX * (x2 - x1) * (y2 - y1) if area is None else area)
    return factor * np.array(areas, dtype=np.float64)


def _keeps_axes(transforms: T.Transform) -> bool:
    """Whether upright boxes stay upright boxes."""
    corners = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    origin, right, down = transforms.apply_coords(corners)
    return bool(abs(right[1] - origin[1]) < 1e-6 and abs(down[0] - origin[0]) < 1e-6)


def _outline(annotation: dict, box: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """(n, 2) points that the moved box must hold, n > 0."""
    points = mask_points(annotation, image_size)
    if len(points):
        own = np.concatenate([points.min(axis=0), points.max(axis=0)])
        pixels, share = _SAME_BOX
        if np.abs(own - box).max() <= max(pixels, share * (box[2:] - box[:2]).max()):
            return points
    radii, middle = (box[2:] - box[:2]) / 2, (box[2:] + box[:2]) / 2
    ellipse = middle + radii * np.column_stack([np.cos(_ELLIPSE_ANGLES), np.sin(_ELLIPSE_ANGLES)])
    keypoints = annotation.get("keypoints")
    joints = np.asarray([] if keypoints is None else keypoints, dtype=np.float64).reshape(-1, 3)
    labelled = joints[joints[:, 2] > 0, :2]
    inside = ((labelled >= box[:2]) & (labelled <= box[2:])).all(axis=1)
    return np.concatenate([ellipse, labelled[inside]])
