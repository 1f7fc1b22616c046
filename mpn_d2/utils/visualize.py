"""Pictures of people: boxes, skeletons and the person mask, by Detectron2's Visualizer."""

from __future__ import annotations

import os

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from mpn_d2.structures.skeleton import Skeleton

# RGB (0..1) and opacity of the person mask: unlike the edges' blue, orange and green.
_MASK_COLOR = (0.75, 0.2, 0.85)
_MASK_OPACITY = 0.3


def draw_people(
    image_rgb: np.ndarray,
    instances: Instances,
    skeleton: Skeleton,
    sem_seg: torch.Tensor | None = None,
    score_threshold: float = 0.5,
    mask_threshold: float = 0.5,
) -> np.ndarray:
    """Draws predicted people on a copy of the image.

    Joints that were not assigned (0, 0, 0) and, as always in Detectron2, those with a score of
    up to 0.05 are left out. The same input gives the same picture.

    Args:
        image_rgb: (H, W, 3) uint8.
        instances: `pred_boxes`, `scores` and perhaps `pred_keypoints` (P, K, 3) x, y, score, in
            pixels of this image, on any device.
        skeleton: of the keypoints.
        sem_seg: (2, H, W) probabilities [1 - p, p] of a person; where p is over
            `mask_threshold` the image is tinted.
        score_threshold: people whose box scores less are left out.
        mask_threshold: see `sem_seg`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the image, mask or keypoints have another shape.
    """
    canvas = _canvas(image_rgb, skeleton)
    if sem_seg is not None:
        if tuple(sem_seg.shape) != (2, *image_rgb.shape[:2]):
            raise ValueError(
                f"sem_seg is {tuple(sem_seg.shape)} on an image of {image_rgb.shape[:2]}: "
                "(2, H, W) of the same image is needed"
            )
        person = (sem_seg[1] > mask_threshold).cpu().numpy()
        canvas.draw_soft_mask(person, color=_MASK_COLOR, alpha=_MASK_OPACITY)
    instances = instances[instances.scores >= score_threshold].to("cpu")
    keypoints = instances.pred_keypoints if instances.has("pred_keypoints") else None
    labels = [f"{score:.0%}" for score in instances.scores.tolist()]
    return _overlay(canvas, instances.pred_boxes.tensor, keypoints, labels, skeleton)


def draw_annotations(image_rgb: np.ndarray, instances: Instances, skeleton: Skeleton) -> np.ndarray:
    """Draws annotated people on a copy of the image: boxes, and keypoints that are labelled.

    Args:
        image_rgb: (H, W, 3) uint8.
        instances: `gt_boxes` and perhaps `gt_keypoints` (P, K, 3) x, y, visibility, in pixels of
            this image, on any device.
        skeleton: of the keypoints.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the image or keypoints have another shape.
    """
    instances = instances.to("cpu")
    keypoints = instances.gt_keypoints.tensor if instances.has("gt_keypoints") else None
    canvas = _canvas(image_rgb, skeleton)
    return _overlay(canvas, instances.gt_boxes.tensor, keypoints, None, skeleton)


def _canvas(image_rgb: np.ndarray, skeleton: Skeleton) -> Visualizer:
    if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
        raise ValueError(
            f"cannot draw on {image_rgb.dtype} {image_rgb.shape}: uint8 (H, W, 3) RGB is needed"
        )
    metadata = Metadata(
        keypoint_names=list(skeleton.keypoint_names),
        keypoint_connection_rules=skeleton.keypoint_connection_rules,
    )
    return Visualizer(image_rgb, metadata)


def _overlay(
    canvas: Visualizer,
    boxes: torch.Tensor,
    keypoints: torch.Tensor | None,
    labels: list[str] | None,
    skeleton: Skeleton,
) -> np.ndarray:
    """The finished picture; boxes (P, 4) and keypoints (P, K, 3) lie on the CPU."""
    if keypoints is not None and keypoints.shape[1:] != (skeleton.num_keypoints, 3):
        raise ValueError(
            f"keypoints are {tuple(keypoints.shape)}, skeleton {skeleton.name!r} has "
            f"{skeleton.num_keypoints}: draw them with their own skeleton"
        )
    colors = colormap(rgb=True, maximum=1)
    canvas.overlay_instances(
        boxes=boxes.detach().numpy(),
        labels=labels,
        keypoints=None if keypoints is None else keypoints.detach().numpy(),
        # The Visualizer's own are random.
        assigned_colors=[colors[i % len(colors)] for i in range(len(boxes))],
    )
    return canvas.output.get_image()


def write_png(path: str | os.PathLike, image_rgb: np.ndarray) -> None:
    """Writes a picture through a temporary file, so that a reader never sees half of it."""
    temporary = f"{path}.tmp{os.getpid()}"
    Image.fromarray(image_rgb).save(temporary, format="PNG")
    os.replace(temporary, path)
