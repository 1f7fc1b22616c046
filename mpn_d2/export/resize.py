"""Resizing of images in tensor operations, equal to Pillow's bilinear one to the byte.

What the networks were trained on is resized by Pillow (Detectron2's ResizeShortestEdge), whose
filter grows with the reduction; OpenCV's and ONNX's own give other pictures. Letters: H x W the
image, h x w the network input.
"""

from __future__ import annotations

import torch

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
    scale = min_size / torch.minimum(high, wide)
    lies = high < wide
    high, wide = (
        torch.where(lies, torch.full_like(high, min_size), scale * high),
        torch.where(lies, scale * wide, torch.full_like(wide, min_size)),
    )
    longest = torch.maximum(high, wide)
    reduction = torch.where(longest > max_size, max_size / longest, torch.ones_like(longest))
    return _rounded(high * reduction), _rounded(wide * reduction)


def resize_as_pillow(
    image: torch.Tensor, height: torch.Tensor, width: torch.Tensor
) -> torch.Tensor:
    """(C, H, W) values 0 to 255 to (C, height, width) float32 whole numbers 0 to 255.

    Both passes, columns first, are products with a matrix in float64, which holds Pillow's
    integers exactly; a side that stays gets the unit matrix.
    """
    across = _weights(torch.as_tensor(image.shape[2]), width)
    down = _weights(torch.as_tensor(image.shape[1]), height)
    rows = _whole(image.double() @ across.T)
    return _whole(down @ rows).float()


def _rounded(side: torch.Tensor) -> torch.Tensor:
    return torch.floor(side + 0.5).clamp(min=1).long()[0]


def _double(side: torch.Tensor) -> torch.Tensor:
    """() int64 to (1,) float64: the exporter makes float32 of float64 without any dimension."""
    return side.view(1).double()


def _weights(length: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(wanted, length) weights of Pillow's triangle filter, in `_UNIT`s."""
    step = _double(length) / _double(wanted)
    reach = step.clamp(min=1.0)
    centre = (torch.arange(wanted).double() + 0.5) * step
    distance = (torch.arange(length).double() - centre[:, None] + 0.5) * (1.0 / reach)
    triangle = (1.0 - distance.abs()).clamp(min=0.0)
    shares = triangle * (1.0 / triangle.sum(dim=1, keepdim=True))
    return torch.floor(shares * _UNIT + 0.5)


def _whole(sums: torch.Tensor) -> torch.Tensor:
    return torch.floor(sums / _UNIT + 0.5).clamp(0.0, 255.0)
