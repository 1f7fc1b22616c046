"""People's keypoints in the frame of their box: a fixed grid of cells (PRN input and output).

Letters: B boxes, K keypoint types, M points of one type, h x w cells (56 x 36 in the paper).
Points and boxes share one frame of continuous pixels (design 4.1); boxes are x1, y1, x2, y2.
A point falls into cell `int((point - corner) * s)` with `s_x = w / ceil(box width)` and
`s_y = h / ceil(box height)`, clamped to the grid on both axes (the references forget the second
axis when the first is out of range). MultiPoseNet section 3.3; spec section 5.4.
"""

from __future__ import annotations

import torch
from torchvision.ops import roi_align

BORDERS = ("nearest", "constant")
# Boxes pass through float32 as corners, so a width of 50 may read 50.00006: no 51st pixel.
_ROUNDING = 1e-3


def box_scales(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Cells per pixel of each box: (B, 4) boxes to (B, 2) float64 s_x, s_y; size is (h, w).

    The side is rounded up to whole pixels, at least one, so a box without area is no error.
    """
    sides = boxes.double()[:, 2:] - boxes.double()[:, :2]
    height, width = size
    cells = torch.tensor([width, height], dtype=torch.float64, device=boxes.device)
    return cells / torch.ceil(sides - _ROUNDING).nan_to_num(1.0).clamp(min=1.0)


def points_to_cells(
    points: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Cells that points fall into, clamped to the grid on both axes.

    Args:
        points: (B, ..., 2) x, y of the points of each box.
        boxes: (B, 4).
        size: (h, w).

    Returns:
        (B, ..., 2) int64 column, row. Float64 inside: a point on a cell edge stays on its side.
    """
    lead = (boxes.shape[0],) + (1,) * (points.ndim - 2) + (2,)
    corner = boxes.double()[:, :2].view(lead)
    position = (points.double() - corner) * box_scales(boxes, size).view(lead)
    height, width = size
    last = torch.tensor([width - 1, height - 1], dtype=torch.float64, device=boxes.device)
    # Truncated after clamping: negative positions are at cell 0 either way.
    return position.nan_to_num(0.0).clamp(min=0.0).minimum(last).long()


def cells_to_points(
    cells: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Centres of cells: (B, ..., 2) column, row to (B, ..., 2) x, y in the frame of the boxes."""
    lead = (boxes.shape[0],) + (1,) * (cells.ndim - 2) + (2,)
    offset = (cells.double() + 0.5) / box_scales(boxes, size).view(lead)
    return (boxes.double()[:, :2].view(lead) + offset).to(boxes.dtype)


def in_margin(points: torch.Tensor, boxes: torch.Tensor, margin: float) -> torch.Tensor:
    """Whether points lie inside boxes enlarged by `margin` of width and height on each side.

    Args:
        points: (B, ..., 2).
        boxes: (B, 4).
        margin: share of the side, 0.21 in the reference.

    Returns:
        (B, ...) bool; points on the edge are outside, so a box without area holds nothing.
    """
    lead = (boxes.shape[0],) + (1,) * (points.ndim - 2) + (2,)
    slack = (boxes[:, 2:] - boxes[:, :2]) * margin
    low = (boxes[:, :2] - slack).view(lead)
    high = (boxes[:, 2:] + slack).view(lead)
    return ((points > low) & (points < high)).all(dim=-1)


def draw_points(
    points: torch.Tensor,
    valid: torch.Tensor,
    boxes: torch.Tensor,
    size: tuple[int, int],
    sigma: float,
    border: str,
) -> torch.Tensor:
    """Grids with 1 in each cell that holds a point, blurred.

    A lone point is an outer product of two profiles, and points are few beside the cells: their
    sum costs a third of `blur` of the whole grid.

    Args:
        points: (B, K, M, 2) x, y by type.
        valid: (B, K, M) bool, which points count.
        boxes: (B, 4).
        size: (h, w).
        sigma, border: see `blur`.

    Returns:
        (B, K, h, w) float32.
    """
    height, width = size
    column, row = points_to_cells(points, boxes, size).unbind(-1)
    cells = torch.where(valid, row * width + column, -1).sort(dim=2).values
    # -1 sorts first; of a crowd's joints few count in any one box. (The trace of an export cannot
    # depend on how many: there all stay.)
    if not torch.jit.is_tracing():
        most = int((cells >= 0).sum(dim=2).max()) if cells.numel() else 0
        cells = cells[..., cells.shape[2] - most :]
    # Two joints of one type in one cell leave a 1 there, as in the reference.
    is_new = torch.cat([cells[..., :1] >= 0, cells[..., 1:] > cells[..., :-1]], dim=2)
    cells = cells.clamp(min=0)
    down = _blur_matrix(height, sigma, border, points.device).T[cells // width]
    across = _blur_matrix(width, sigma, border, points.device).T[cells % width]
    with torch.autocast(points.device.type, enabled=False):
        return down.transpose(-1, -2) @ (across * is_new[..., None])


def blur(grids: torch.Tensor, sigma: float, border: str) -> torch.Tensor:
    """Gaussian blur, truncated at 4 sigma, weights summing to 1 (not renormalised after).

    Two matrix products, one per axis, with the border rule inside the matrices; equal to
    `scipy.ndimage.gaussian_filter(grid, sigma, mode=border)` per channel.

    Args:
        grids: (..., h, w).
        sigma: cells.
        border: "nearest" (edge cells repeat outside) or "constant" (zero outside).

    Returns:
        (..., h, w) float32.
    """
    height, width = grids.shape[-2:]
    return _separable(
        grids,
        _blur_matrix(height, sigma, border, grids.device),
        _blur_matrix(width, sigma, border, grids.device),
    )


def encode_input(
    points: torch.Tensor,
    valid: torch.Tensor,
    boxes: torch.Tensor,
    size: tuple[int, int],
    margin: float,
    sigma: float,
) -> torch.Tensor:
    """Input grids: every valid point inside the enlarged box, blurred with repeated edges.

    Args:
        points: (B, K, M, 2) keypoints of everybody in the image of each box.
        valid: (B, K, M) bool.
        boxes: (B, 4).
        size: (h, w).
        margin: see `in_margin`.
        sigma: cells (reference: 1, so a lone point peaks at 0.159).

    Returns:
        (B, K, h, w) float32. The edge rule is the default of the reference's blur (skimage).
    """
    inside = valid & in_margin(points, boxes, margin)
    return draw_points(points, inside, boxes, size, sigma, "nearest")


def encode_label(
    keypoints: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], sigma: float
) -> torch.Tensor:
    """Label grids: only the owner's labelled joints, blurred, zero outside the grid.

    Args:
        keypoints: (B, K, 3) x, y, v of each box's owner; v > 0 counts, wherever it lies.
        boxes: (B, 4).
        size: (h, w).
        sigma: cells (reference: 2, so a joint peaks at 0.0398).

    Returns:
        (B, K, h, w) float32.
    """
    points, valid = keypoints[:, :, None, :2], keypoints[:, :, None, 2] > 0
    return draw_points(points, valid, boxes, size, sigma, "constant")


def draw_heatmaps(
    points: torch.Tensor,
    valid: torch.Tensor,
    boxes: torch.Tensor,
    size: tuple[int, int],
    sigma: float,
    cut: float,
) -> torch.Tensor:
    """What a perfect heatmap looks like in each box: one Gaussian per point, the largest wins.

    Evaluated at the centres of the cells that `crop_heatmaps` samples (exact sides, not rounded
    up), so the Gaussian is `sigma * s_x` by `sigma * s_y` cells wide.

    Args:
        points: (B, K, M, 2).
        valid: (B, K, M) bool; points outside the box count with what reaches into it.
        boxes: (B, 4).
        size: (h, w).
        sigma: pixels of the frame of the boxes (MODEL.TARGET.SIGMA).
        cut: values below it are 0 (MODEL.TARGET.CUT).

    Returns:
        (B, K, h, w) float32 in [0, 1].
    """
    height, width = size
    sides = boxes[:, 2:] - boxes[:, :2]
    steps_x = (torch.arange(width, device=boxes.device) + 0.5) / width
    steps_y = (torch.arange(height, device=boxes.device) + 0.5) / height
    centre_x = boxes[:, :1] + steps_x * sides[:, :1]
    centre_y = boxes[:, 1:2] + steps_y * sides[:, 1:]
    falloff_x = _falloff(centre_x, points[..., 0], valid, sigma)
    falloff_y = _falloff(centre_y, points[..., 1], valid, sigma)
    maps = torch.zeros(*points.shape[:2], height, width, device=points.device)
    for index in range(points.shape[2]):
        drawn = falloff_y[:, :, index, :, None] * falloff_x[:, :, index, None, :]
        maps = torch.maximum(maps, drawn)
    return torch.where(maps < cut, torch.zeros_like(maps), maps)


def crop_heatmaps(
    maps: torch.Tensor, stride: int, boxes: list[torch.Tensor], size: tuple[int, int]
) -> torch.Tensor:
    """Crops of heatmaps by boxes, resized to the grid; bilinear sampling at the cell centres.

    Args:
        maps: (N, K, H, W).
        stride: cell side of the maps in pixels of the frame of the boxes.
        boxes: per image (P, 4); P may be 0.
        size: (h, w).

    Returns:
        (sum of P, K, h, w) float32, differentiable with respect to the maps.
    """
    rois = [box.to(maps.device, torch.float32) for box in boxes]
    # `aligned`: a map value sits at the centre of its cell, as everywhere here.
    return roi_align(maps.float(), rois, size, 1.0 / stride, sampling_ratio=1, aligned=True)


def window_sums(grids: torch.Tensor, window: int) -> torch.Tensor:
    """Sum over the window x window cells around each cell, clipped at the borders.

    Args:
        grids: (..., h, w).
        window: odd side in cells (reference: 15).

    Returns:
        (..., h, w) float32.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"MODEL.ASSEMBLER.WINDOW is {window}; it must be odd and positive")
    height, width = grids.shape[-2:]
    reach = window // 2
    return _separable(
        grids, _band_matrix(height, reach, grids.device), _band_matrix(width, reach, grids.device)
    )


def _separable(grids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """rows (h, h) acts on the first axis of each grid, columns (w, w) on the second."""
    with torch.autocast(grids.device.type, enabled=False):
        across = grids.float() @ columns.T
        return (across.transpose(-1, -2) @ rows.T).transpose(-1, -2)


def _blur_matrix(length: int, sigma: float, border: str, device: torch.device) -> torch.Tensor:
    """(length, length) matrix whose row i weighs the cells that make up blurred cell i."""
    if border not in BORDERS:
        raise ValueError(f"blur border is {border!r}; choose one of {', '.join(BORDERS)}")
    reach = int(4.0 * sigma + 0.5)
    steps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    weights = weights / weights.sum()
    sources = torch.arange(length)[:, None] + steps
    outside = (sources < 0) | (sources >= length)
    weights = weights.expand(length, -1)
    if border == "constant":
        weights = weights.masked_fill(outside, 0.0)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    matrix.scatter_add_(1, sources.clamp(0, length - 1), weights.contiguous())
    return matrix.float().to(device)


def _band_matrix(length: int, reach: int, device: torch.device) -> torch.Tensor:
    index = torch.arange(length, device=device)
    return ((index[:, None] - index).abs() <= reach).float()


def _falloff(
    centres: torch.Tensor, positions: torch.Tensor, valid: torch.Tensor, sigma: float
) -> torch.Tensor:
    """(B, cells) centres and (B, K, M) positions to (B, K, M, cells) one-axis Gaussians."""
    distance = centres[:, None, None, :] - positions[..., None]
    return torch.exp(-0.5 * (distance / sigma) ** 2) * valid[..., None]
