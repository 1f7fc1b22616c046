"""Views of an image for test-time augmentation: sizes, mirrored ones, overlapping parts.

Frame of a view's box: the image, whole pixels. Spec section 10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import nn

FORMATS = ("RGB", "BGR")


@dataclass(frozen=True)
class View:
    """One look at an image.

    Attributes:
        box: x1, y1, x2, y2 of the part that is seen, whole pixels of the image.
        scale: factor on INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST.
        mirrored: seen mirrored, left and right exchanged.
    """

    box: tuple[int, int, int, int]
    scale: float = 1.0
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the part, pixels of the image."""
        return self.box[3] - self.box[1], self.box[2] - self.box[0]

    def is_whole(self, size: tuple[int, int]) -> bool:
        """Whether it shows all of an image of (height, width)."""
        return self.box == (0, 0, size[1], size[0])


@dataclass(frozen=True)
class ViewPlan:
    """Which views of every image are taken: TTA's keys.

    Attributes:
        scales: of the whole image; the first is the base.
        flip: each view once more, mirrored.
        crops: parts per side, below 2 for none.
        overlap: share of a part's side that it has in common with its neighbour.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    crops: int = 0
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < s < math.inf for s in self.scales):
            raise ValueError(
                f"TTA.SCALES is {list(self.scales)}: one or more factors over 0 are needed"
            )
        if self.crops < 0:
            raise ValueError(f"TTA.CROPS is {self.crops}: 0 (none), or 2 or more a side")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"TTA.CROP_OVERLAP is {self.overlap}: 0 to below 1 is needed")

    def views(self, size: tuple[int, int]) -> list[list[View]]:
        """Views of an image of (height, width), the base first; a view and its mirrored twin,
        which have one size, stand together."""
        height, width = size
        views = [View((0, 0, width, height), scale) for scale in dict.fromkeys(self.scales)]
        if self.crops > 1:
            parts = [
                View((left, top, right, bottom), self.scales[0])
                for top, bottom in _parts(height, self.crops, self.overlap)
                for left, right in _parts(width, self.crops, self.overlap)
            ]
            views += [part for part in dict.fromkeys(parts) if not part.is_whole(size)]
        if not self.flip:
            return [[view] for view in views]
        return [[view, View(view.box, view.scale, mirrored=True)] for view in views]


def build_view_plan(cfg: CfgNode) -> ViewPlan:
    """The plan of the TTA keys; the single view where TTA.ENABLED is off.

    Raises:
        ValueError: a key has no possible value.
    """
    if not cfg.TTA.ENABLED:
        return ViewPlan()
    if not all(type(scale) in (int, float) for scale in cfg.TTA.SCALES):
        raise ValueError(f"TTA.SCALES is {list(cfg.TTA.SCALES)}: numbers are needed")
    return ViewPlan(
        scales=tuple(float(s) for s in cfg.TTA.SCALES),
        flip=cfg.TTA.FLIP,
        crops=cfg.TTA.CROPS,
        overlap=cfg.TTA.CROP_OVERLAP,
    )


def _parts(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Start and end of `count` equal parts that cover 0..length and overlap by that share."""
    # count parts less (count - 1) overlaps are the whole.
    side = min(length, math.ceil(length / (count - (count - 1) * overlap)))
    # Of an odd number of parts one lies in the very middle, and each has its mirrored twin.
    if count % 2 and (length - side) % 2:
        side += 1
    starts = [round(i * (length - side) / (count - 1)) for i in range((count + 1) // 2)]
    starts += [length - side - start for start in reversed(starts[: count // 2])]
    return [(start, start + side) for start in starts]


class Viewer:
    """A model with the sizes and the colour order that it wants its images in."""

    def __init__(
        self, model: nn.Module, *, min_size: int, max_size: int, image_format: str
    ) -> None:
        """
        Args:
            model: takes {"image", "height", "width"}.
            min_size, max_size: shorter and longer side of a network input at scale 1, see
                INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST; a min_size of 0 keeps an image's own size.
            image_format: RGB or BGR.
        """
        self.model = model
        self.min_size, self.max_size = min_size, max_size
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> Viewer:
        """With the INPUT keys of the model's config.

        Raises:
            ValueError: INPUT.FORMAT is neither RGB nor BGR.
        """
        if cfg.INPUT.FORMAT not in FORMATS:
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; choose RGB or BGR")
        return cls(
            model,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            image_format=cfg.INPUT.FORMAT,
        )

    def network_input(self, image: torch.Tensor, image_format: str, view: View) -> dict:
        """What the model is given to see a view.

        Args:
            image: (3, H, W) uint8, the whole image.
            image_format: RGB or BGR, of `image`.
            view: of that image.

        Returns:
            {"image": (3, h, w) uint8, "height", "width": of the part in the image}. At scale 1 a
            whole image is what the data mapper makes of it at test time, to the byte.
        """
        x1, y1, x2, y2 = view.box
        part = image[:, y1:y2, x1:x2].permute(1, 2, 0).numpy()
        resized = self._resize(part, view.scale)
        if view.mirrored:
            resized = resized[:, ::-1]
        if image_format != self.image_format:
            resized = resized[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor, "height": view.size[0], "width": view.size[1]}

    def input_size(self, size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
        """(height, width) of the network input for a part of (height, width) image pixels."""
        if self.min_size > 0:
            size = T.ResizeShortestEdge.get_output_shape(
                *size, max(round(self.min_size * scale), 1), max(round(self.max_size * scale), 1)
            )
        elif scale != 1:
            size = round(size[0] * scale), round(size[1] * scale)
        # A very long, thin image would be rounded to no pixels.
        return max(size[0], 1), max(size[1], 1)

    def _resize(self, part: np.ndarray, scale: float) -> np.ndarray:
        size = self.input_size(part.shape[:2], scale)
        if size == part.shape[:2]:
            return part
        return T.ResizeTransform(*part.shape[:2], *size).apply_image(np.ascontiguousarray(part))
