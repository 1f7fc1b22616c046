"""Places of joints below a cell: the quarter shift of associative embedding, or the parabola.

Cell (row y, column x) has its centre at ((x + 0.5) * stride, (y + 0.5) * stride) in continuous
network-input pixels (design 4.1). Letters: P people, K keypoint types, J joints, H x W cells.
"""

from __future__ import annotations

import torch

from mpn_d2.codecs.heatmap import decode_highest

SUBCELLS = ("quarter", "parabola")


def quarter_shift(
    maps: torch.Tensor, types: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """(J, 2) x, y in cells: a quarter of a cell from the centre towards the higher neighbour.

    Along each axis; at the border the cell itself takes the place of the missing neighbour. Equal
    neighbours shift towards the smaller index (princeton-vl/pose-ae-train).

    Args:
        maps: (C, H, W).
        types: (J,) channel of each joint.
        rows, columns: (J,) its cell.
    """
    height, width = maps.shape[-2:]
    right = maps[types, rows, (columns + 1).clamp(max=width - 1)]
    left = maps[types, rows, (columns - 1).clamp(min=0)]
    below = maps[types, (rows + 1).clamp(max=height - 1), columns]
    above = maps[types, (rows - 1).clamp(min=0), columns]
    x = columns + torch.where(right > left, 0.75, 0.25)
    y = rows + torch.where(below > above, 0.75, 0.25)
    return torch.stack([x, y], dim=-1)


def read_highest(
    maps: torch.Tensor, stride: int, image_size: tuple[int, int], subcell: str = "quarter"
) -> torch.Tensor:
    """The highest place of each map, for maps that hold one joint of one person each.

    Args:
        maps: (P, K, H, W), not modified.
        stride: cell side, network-input pixels.
        image_size: (height, width) in pixels; cells that lie wholly in the padding outside are
            left aside, points are clipped to the image.
        subcell: "quarter", or "parabola" (see `decode_highest`).

    Returns:
        (P, K, 3) float32 x, y in network-input pixels and the value of the map there, which may be
        0 or less.
    """
    people, count = maps.shape[:2]
    if people == 0:
        return maps.new_zeros((0, count, 3), dtype=torch.float32)
    maps = maps.float()
    # Whole or in part inside the image.
    rows_inside = min(-(-image_size[0] // stride), maps.shape[2])
    columns_inside = min(-(-image_size[1] // stride), maps.shape[3])
    shown = maps[:, :, :rows_inside, :columns_inside]
    values, cells = shown.flatten(2).max(dim=2)
    if subcell == "parabola":
        points = decode_highest(maps, stride, [image_size] * people)[..., :2]
        return torch.cat([points, values[..., None]], dim=-1)
    rows, columns = cells.flatten() // columns_inside, cells.flatten() % columns_inside
    channels = torch.arange(people * count, device=maps.device)
    # Neighbours in the padding count: the network saw them, too.
    points = quarter_shift(maps.flatten(0, 1), channels, rows, columns) * stride
    limits = points.new_tensor([image_size[1], image_size[0]])
    points = torch.minimum(points, limits).view(people, count, 2)
    return torch.cat([points, values[..., None]], dim=-1)
