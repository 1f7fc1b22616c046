"""Resizing of images in tensor operations, equal to Pillow's bilinear one to the byte.

What the networks were trained on is resized by Pillow (Detectron2's ResizeShortestEdge), whose
filter grows with the reduction; OpenCV's and ONNX's own give other pictures. Letters: H x W the
image, h x w the network input.
"""

from __future__ import annotations

from typing import Any

import PIL
import torch

from mpn_d2.export.compiled import compiled

# From 13 on, Pillow begins with the rows where the height shrinks by more than twice what the width
# does (found by trying sizes: tests/export/test_resize.py); before, always with the columns.
_PILLOW_CHOOSES = int(PIL.__version__.split(".")[0]) >= 13
# Pillow's weights are whole numbers, in units of 2^-22 (Resample.c: PRECISION_BITS).
_UNIT = 2.0**22


def shorter_side_size(
    height: torch.Tensor, width: torch.Tensor, min_size: int, max_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Detectron2's ResizeShortestEdge.get_output_shape on scalar tensors, at least one pixel.

    Args:
        height, width: (), int64, of the image.
        min_size: of the shorter side, over 0.
        max_size: of the longer side.

    Returns:
        (), int64 height and width.
    """
    high, wide = _double(height), _double(width)
    # Not `number / tensor`, which is a product with the reciprocal and may round otherwise.
    scale = torch.full_like(high, min_size) / torch.minimum(high, wide)
    lies = high < wide
    high, wide = (
        torch.where(lies, torch.full_like(high, min_size), scale * high),
        torch.where(lies, scale * wide, torch.full_like(wide, min_size)),
    )
    longest = torch.maximum(high, wide)
    most = torch.full_like(longest, max_size)
    reduction = torch.where(longest > most, most / longest, torch.ones_like(longest))
    return _rounded(high * reduction), _rounded(wide * reduction)


def resize_as_pillow(
    image: torch.Tensor, height: torch.Tensor, width: torch.Tensor
) -> torch.Tensor:
    """(C, H, W) values 0 to 255 to (C, height, width) float32 whole numbers 0 to 255.

    Both passes are products with a matrix in float64, which holds Pillow's sums exactly; a
    side that stays gets the unit matrix.
    """
    high, wide = (torch.as_tensor(side) for side in image.shape[1:])
    across, down = _weights(wide, width), _weights(high, height)
    lost = high - height
    least = 2 * (wide - width) if _PILLOW_CHOOSES else high
    rows_first = (lost > 0) & (lost > least)
    # Compiled: a trace would keep the branch of one image.
    return compiled(_two_passes)(image.double(), down, across.T, rows_first).float()


def _two_passes(
    image: torch.Tensor, down: torch.Tensor, across: torch.Tensor, rows_first: torch.Tensor
) -> torch.Tensor:
    """down @ image @ across, rounded to whole numbers after each of the two products."""
    if bool(rows_first):
        return _whole(_whole(down @ image) @ across)
    return _whole(down @ _whole(image @ across))


def _rounded(side: torch.Tensor) -> torch.Tensor:
    return torch.floor(side + 0.5).clamp(min=1).long()[0]


def _double(side: torch.Tensor) -> torch.Tensor:
    """() int64 to (1,) float64: the exporter makes float32 of float64 without any dimension."""
    return side.view(1).double()


def _indices(count: Any) -> torch.Tensor:
    """0 ... count - 1, of a () tensor, which stays one in the exported file."""
    return torch.arange(count).double()


def _weights(length: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(wanted, length) weights of Pillow's triangle filter."""
    step = _double(length) / _double(wanted)
    reach = step.clamp(min=1.0)
    centre = (_indices(wanted) + 0.5) * step
    distance = (_indices(length) - centre[:, None] + 0.5) * (1.0 / reach)
    triangle = (1.0 - distance.abs()).clamp(min=0.0)
    shares = triangle * (1.0 / triangle.sum(dim=1, keepdim=True))
    return torch.floor(shares * _UNIT + 0.5) / _UNIT


def _whole(sums: torch.Tensor) -> torch.Tensor:
    return torch.floor(sums + 0.5).clamp(0.0, 255.0)
