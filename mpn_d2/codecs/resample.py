"""Maps of one view of an image, read on the grid of another.

Letters: C channels, H x W cells. Frames: a view's network input, continuous pixels (design 4.1);
a grid of h x w cells that spans exactly the image, or a part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Window:
    """A rectangle of a view's network input, perhaps seen mirrored.

    Attributes:
        x1, y1, x2, y2: its sides, pixels; it may reach beyond the view.
        mirrored: columns run from x2 to x1.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    mirrored: bool = False

    @classmethod
    def whole(cls, size: tuple[int, int], *, mirrored: bool = False) -> Window:
        """All of a view of (height, width) pixels."""
        return cls(0.0, 0.0, float(size[1]), float(size[0]), mirrored)


def grid_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Cells (rows, columns) that cover (height, width) pixels."""
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def resample_maps(
    maps: torch.Tensor, stride: int, window: Window, grid: tuple[int, int]
) -> torch.Tensor:
    """Reads maps at the centres of a grid's cells, bicubically; cells that coincide are copied.

    Args:
        maps: (C, H, W), cell i spans [i * stride, (i + 1) * stride) of the view.
        stride: cell side, pixels of the view.
        window: the part of the view that the grid spans.
        grid: (h, w) its cells.

    Returns:
        (C, h, w). Beyond the outermost cells' centres their values hold.
    """
    height, width = maps.shape[-2:]
    rows, columns = grid
    if window == Window.whole((rows * stride, columns * stride), mirrored=window.mirrored):
        if rows <= height and columns <= width:
            # The same cells: no interpolation, not even its rounding.
            same = maps[:, :rows, :columns]
            return same.flip(-1) if window.mirrored else same
    x = _centres(window.x1, window.x2, columns, maps) * (2 / (width * stride)) - 1
    y = _centres(window.y1, window.y2, rows, maps) * (2 / (height * stride)) - 1
    if window.mirrored:
        x = x.flip(0)
    places = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1)
    # Bilinear values would flatten peaks between cells, and move them.
    return F.grid_sample(
        maps[None],
        places[None].to(maps),
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )[0]


def _centres(start: float, end: float, count: int, like: torch.Tensor) -> torch.Tensor:
    """(count,) centres of equal cells between two points."""
    steps = torch.arange(count, device=like.device, dtype=torch.float32) + 0.5
    return start + steps * ((end - start) / count)
