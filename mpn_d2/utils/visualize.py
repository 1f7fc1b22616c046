"""Pictures of people: boxes, skeletons and the person mask, by Detectron2's Visualizer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import VisImage, Visualizer
from PIL import Image

from mpn_d2.structures.skeleton import Skeleton
from mpn_d2.utils.files import replaced_when_done

# RGB (0..1) and opacity of the person mask: unlike the edges' blue, orange and green.
_MASK_COLOR = (0.75, 0.2, 0.85)
_MASK_OPACITY = 0.3
# Joints that score up to this are left out, as always in Detectron2.
KEYPOINT_THRESHOLD = 0.05
# Larger pictures are drawn in windows of this side, pixels: 16 MB of canvas at a time.
_WINDOW = 2048


def draw_people(
    image_rgb: np.ndarray,
    instances: Instances,
    skeleton: Skeleton,
    sem_seg: torch.Tensor | None = None,
    score_threshold: float = 0.5,
    mask_threshold: float = 0.5,
    *,
    boxes: bool = True,
    masks: bool = True,
    keypoint_threshold: float = KEYPOINT_THRESHOLD,
    track_ids: Sequence[int] | None = None,
) -> np.ndarray:
    """Draws predicted people on a copy of the image.

    Joints that were not assigned (0, 0, 0) are left out. The same input gives the same picture.

    Args:
        image_rgb: (H, W, 3) uint8, of any size.
        instances: `pred_boxes`, `scores` and perhaps `pred_keypoints` (P, K, 3) x, y, score, and
            `pred_masks` (P, H, W) bool, in pixels of this image, on any device.
        skeleton: of the keypoints.
        sem_seg: (2, H, W) probabilities [1 - p, p] of a person; where p is over
            `mask_threshold` the image is tinted.
        score_threshold: people whose box scores less are left out.
        mask_threshold: see `sem_seg`.
        boxes: whether boxes and their labels are drawn.
        masks: whether `pred_masks` are drawn, in the colours of the boxes.
        keypoint_threshold: joints that score up to this are left out.
        track_ids: (P,) number of each person in a video, written on the box. Box and skeleton have
            the number's colour; without numbers a box has its place's and edges have their side's.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the image, mask, keypoints or numbers have another shape.
    """
    _check_image(image_rgb)
    if sem_seg is not None:
        if tuple(sem_seg.shape) != (2, *image_rgb.shape[:2]):
            raise ValueError(
                f"sem_seg is {tuple(sem_seg.shape)} on an image of {image_rgb.shape[:2]}: "
                "(2, H, W) of the same image is needed"
            )
        image_rgb = _tinted(image_rgb, sem_seg[1], mask_threshold)
    if track_ids is not None and len(track_ids) != len(instances):
        raise ValueError(f"{len(track_ids)} track_ids for {len(instances)} people")
    shown = (instances.scores >= score_threshold).cpu()
    instances = instances.to("cpu")[shown]
    numbers = None if track_ids is None else torch.as_tensor(track_ids)[shown].tolist()
    keypoints = instances.pred_keypoints if instances.has("pred_keypoints") else None
    labels = [f"{score:.0%}" for score in instances.scores.tolist()]
    if numbers is not None:
        labels = [f"{number}: {label}" for number, label in zip(numbers, labels, strict=True)]
    canvas = _Canvas(image_rgb, keypoint_threshold)
    if masks and instances.has("pred_masks"):
        _check_masks(instances.pred_masks, image_rgb)
        # Below the boxes, labels and skeletons.
        canvas.draw_masks(instances.pred_masks, numbers)
    if boxes:
        canvas.draw_boxes(instances.pred_boxes.tensor, labels, numbers)
    if keypoints is not None:
        canvas.draw_poses(keypoints, instances.pred_boxes.area(), skeleton, numbers)
    return canvas.output.get_image()


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
    _check_image(image_rgb)
    instances = instances.to("cpu")
    canvas = _Canvas(image_rgb, KEYPOINT_THRESHOLD)
    canvas.draw_boxes(instances.gt_boxes.tensor, None, None)
    if instances.has("gt_keypoints"):
        areas = instances.gt_boxes.area()
        canvas.draw_poses(instances.gt_keypoints.tensor, areas, skeleton, None)
    return canvas.output.get_image()


def track_color(number: int) -> tuple[float, float, float]:
    """RGB (0..1) of a person's number, the same in every frame."""
    colors = colormap(rgb=True, maximum=1)
    return tuple(colors[number % len(colors)].tolist())


class _Overlay(VisImage):
    """Detectron2's canvas, transparent over the picture and rendered window by window.

    Detectron2 makes the picture itself a part of the plot, which takes 0.3 seconds and 130 MB a
    megapixel; this blends only what is drawn on it.
    """

    def __init__(self, img: np.ndarray) -> None:
        super().__init__(img)
        self._window = (min(self.height, _WINDOW), min(self.width, _WINDOW))
        # See VisImage for the 1e-2.
        self.fig.set_size_inches(*((side + 1e-2) / self.dpi for side in self._window[::-1]))

    def reset_image(self, img: np.ndarray) -> None:
        """Takes the picture that is drawn over; (H, W, 3) uint8, never changed."""
        self.img = img

    def get_image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the picture under what was drawn."""
        picture = self.img.copy()
        for rows, columns in self._windows():
            self.ax.set_xlim(columns.start, columns.start + self._window[1])
            self.ax.set_ylim(rows.start + self._window[0], rows.start)
            self.canvas.draw()
            under = picture[rows, columns]
            drawn = np.asarray(self.canvas.buffer_rgba())[: under.shape[0], : under.shape[1]]
            at = np.nonzero(drawn[..., 3])
            opacity = drawn[at][:, 3:] / np.float32(255)
            under[at] = np.rint(under[at] * (1 - opacity) + drawn[at][:, :3] * opacity)
        return picture

    def _windows(self) -> Iterator[tuple[slice, slice]]:
        if not self.ax.patches and not self.ax.lines and not self.ax.texts:
            return
        for y in range(0, self.height, _WINDOW):
            for x in range(0, self.width, _WINDOW):
                yield slice(y, y + _WINDOW), slice(x, x + _WINDOW)


class _Canvas(Visualizer):
    """Detectron2's Visualizer on an `_Overlay`, with colours of our choice (its own are random)."""

    def __init__(self, image_rgb: np.ndarray, keypoint_threshold: float) -> None:
        height, width = image_rgb.shape[:2]
        # The Visualizer would copy the picture several times; it needs its size for this alone.
        font_size = max(np.sqrt(height * width) // 90, 10)
        super().__init__(np.zeros((1, 1, 3), np.uint8), Metadata(), font_size_scale=font_size / 10)
        self.output = _Overlay(image_rgb)
        self.keypoint_threshold = keypoint_threshold

    def draw_boxes(
        self, boxes: torch.Tensor, labels: list[str] | None, numbers: list[int] | None
    ) -> None:
        """Boxes (P, 4) on the CPU in the colours of `numbers` (P,), or of their places."""
        colors = _colors(len(boxes), numbers)
        self.overlay_instances(boxes=boxes.detach().numpy(), labels=labels, assigned_colors=colors)

    def draw_masks(self, masks: torch.Tensor, numbers: list[int] | None) -> None:
        """Masks (P, H, W) bool on the CPU in the colours of their boxes."""
        colors = _colors(len(masks), numbers)
        self.overlay_instances(masks=masks.numpy(), assigned_colors=colors, alpha=_MASK_OPACITY)

    def draw_poses(
        self,
        keypoints: torch.Tensor,
        areas: torch.Tensor,
        skeleton: Skeleton,
        numbers: list[int] | None,
    ) -> None:
        """Skeletons (P, K, 3) on the CPU, edges in the colours of `numbers` or of their sides.

        The largest comes first, as with boxes: small people stay visible.
        """
        if keypoints.shape[1:] != (skeleton.num_keypoints, 3):
            raise ValueError(
                f"keypoints are {tuple(keypoints.shape)}, skeleton {skeleton.name!r} has "
                f"{skeleton.num_keypoints}: draw them with their own skeleton"
            )
        for i in areas.argsort(descending=True, stable=True).tolist():
            rules: list = skeleton.keypoint_connection_rules
            if numbers is not None:
                red, green, blue = (255 * c for c in track_color(numbers[i]))
                color = (red, green, blue)
                rules = [(a, b, color) for a, b, _ in rules]
            self.metadata = Metadata(
                keypoint_names=list(skeleton.keypoint_names), keypoint_connection_rules=rules
            )
            self.draw_and_connect_keypoints(keypoints[i].detach().numpy())


def _colors(count: int, numbers: list[int] | None) -> list[tuple[float, float, float]]:
    """Of people with `numbers`, or of so many places."""
    return [track_color(n) for n in (range(count) if numbers is None else numbers)]


def _check_masks(masks: torch.Tensor, image_rgb: np.ndarray) -> None:
    if tuple(masks.shape[1:]) != image_rgb.shape[:2]:
        raise ValueError(
            f"pred_masks are {tuple(masks.shape)} on an image of {image_rgb.shape[:2]}: (P, H, W) "
            "of the same image is needed"
        )


def _tinted(image_rgb: np.ndarray, person: torch.Tensor, threshold: float) -> np.ndarray:
    """A copy of the image with the mask's colour over it where (H, W) `person` is over it."""
    over = (person > threshold).cpu().numpy()
    picture = image_rgb.copy()
    values = np.arange(256)[:, None]
    color = 255 * np.array(_MASK_COLOR)
    table = np.rint((1 - _MASK_OPACITY) * values + _MASK_OPACITY * color).astype(np.uint8)
    for channel in range(3):
        np.copyto(picture[..., channel], table[:, channel][image_rgb[..., channel]], where=over)
    return picture


def _check_image(image_rgb: np.ndarray) -> None:
    if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
        raise ValueError(
            f"cannot draw on {image_rgb.dtype} {image_rgb.shape}: uint8 (H, W, 3) RGB is needed"
        )


def write_png(path: str | os.PathLike, image_rgb: np.ndarray) -> None:
    """Writes a picture through a temporary file, so that a reader never sees half of it."""
    with replaced_when_done(path) as partial:
        Image.fromarray(image_rgb).save(partial, format="PNG")
