"""Keypoint heatmaps: Gaussian targets (encode) and peaks with sub-cell position (decode).

Letters: N images, K keypoint types, P people, J labelled joints, H x W cells of side `stride`.
Cell (row y, column x) has its centre at ((x + 0.5) * stride, (y + 0.5) * stride) in continuous
network-input pixels (design 4.1). MultiPoseNet paper section 3.1; spec sections 6 and 10.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from mpn_d2.structures.outputs import Candidates

MERGES = ("max", "add")
# Logarithm of the height of a Gaussian whose standard deviation is one cell over its value half a
# cell away.
_MOST_RISE = 0.125
# Score of a joint that no map shows, which is to be placed all the same.
LEAST_SCORE = 1e-4


def encode_heatmaps(
    keypoints: list[torch.Tensor],
    num_keypoints: int,
    size: tuple[int, int],
    stride: int,
    sigma: float,
    cut: float = 0.01,
    merge: str = "max",
) -> torch.Tensor:
    """Draws one Gaussian `exp(-d^2 / (2 sigma^2))` per labelled joint (v > 0).

    Args:
        keypoints: per image (P, K, 3) x, y, v in network-input pixels; P may be 0.
        num_keypoints: K.
        size: (H, W) of the maps in cells.
        stride: cell side, pixels.
        sigma: standard deviation, pixels (not cells).
        cut: values below it are set to 0 (spec section 6).
        merge: where two Gaussians of one type meet: their "max", or "add" clipped at 1.

    Returns:
        (N, K, H, W) float32 in [0, 1] on the device of the keypoints.

    Raises:
        ValueError: unknown `merge`, no image, or keypoints of another number than
            `num_keypoints`.
    """
    if merge not in MERGES:
        raise ValueError(f"MODEL.TARGET.MERGE is {merge!r}; choose one of {', '.join(MERGES)}")
    for points in keypoints:
        if points.ndim != 3 or points.shape[1:] != (num_keypoints, 3):
            raise ValueError(
                f"keypoints have shape {tuple(points.shape)}, expected (people, {num_keypoints}, 3)"
            )
    if not keypoints:
        raise ValueError("encode_heatmaps needs at least one image")
    height, width = size
    device = keypoints[0].device
    maps = torch.zeros(len(keypoints) * num_keypoints * height * width, device=device)
    x, y, channel = _labelled_joints(keypoints, num_keypoints)
    # Only the cells within reach of a joint are touched: a small window around each.
    reach = sigma * math.sqrt(2 * math.log(1 / cut)) / stride
    span = torch.arange(2 * math.ceil(reach) + 2, device=device)
    columns = (x / stride - reach).floor().long()[:, None] + span
    rows = (y / stride - reach).floor().long()[:, None] + span
    dx = ((columns + 0.5) * stride - x[:, None]).square()
    dy = ((rows + 0.5) * stride - y[:, None]).square()
    values = torch.exp(-(dy[:, :, None] + dx[:, None, :]) / (2 * sigma**2))
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    keep = inside & (values >= cut)
    index = (channel[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    reduce = "amax" if merge == "max" else "sum"
    maps = maps.scatter_reduce(0, index[keep], values[keep], reduce)
    return maps.clamp_(max=1).view(len(keypoints), num_keypoints, height, width)


def encode_joint_cells(
    keypoints: list[torch.Tensor], num_keypoints: int, size: tuple[int, int], stride: int
) -> torch.Tensor:
    """Marks the one cell that every labelled joint (v > 0) lies in: hard targets, no Gaussians.

    Pose regression's auxiliary heatmaps (spec section 6). A cell belongs to one type: where joints
    of several types share it, to the last of them (people in their order, then types) [ref:SMPR].
    Joints beyond the maps go to the outermost cells.

    Args:
        keypoints: per image (P, K, 3) x, y, v in network-input pixels; P may be 0.
        num_keypoints: K.
        size: (H, W) of the maps in cells.
        stride: cell side, pixels.

    Returns:
        (N, K, H, W) float32 of 0 and 1.
    """
    height, width = size
    maps = keypoints[0].new_zeros(len(keypoints), num_keypoints, height * width).float()
    for targets, points in zip(maps, keypoints, strict=True):
        person, joint = torch.nonzero(points[:, :, 2] > 0, as_tuple=True)
        if len(joint) == 0:
            continue
        cells = (points[person, joint, :2] / stride).floor().long()
        index = cells[:, 1].clamp(0, height - 1) * width + cells[:, 0].clamp(0, width - 1)
        # Of the joints in a cell the last: written in any order, the greatest place stays.
        last = torch.full((height * width,), -1, dtype=torch.int64, device=points.device)
        places = torch.arange(len(joint), device=points.device)
        last = last.scatter_reduce(0, index, places, "amax")
        taken = last >= 0
        targets[joint[last[taken]], taken.nonzero()[:, 0]] = 1.0
    return maps.view(len(keypoints), num_keypoints, height, width)


def _labelled_joints(
    keypoints: list[torch.Tensor], num_keypoints: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y (J,) float32 and flat map index n * K + k (J,) of every joint with v > 0."""
    xs, ys, channels = [], [], []
    for n, points in enumerate(keypoints):
        person, joint = torch.nonzero(points[:, :, 2] > 0, as_tuple=True)
        xs.append(points[person, joint, 0].float())
        ys.append(points[person, joint, 1].float())
        channels.append(n * num_keypoints + joint)
    return torch.cat(xs), torch.cat(ys), torch.cat(channels)


def decode_heatmaps(
    maps: torch.Tensor,
    stride: int,
    thresh: float,
    max_per_type: int,
    image_sizes: list[tuple[int, int]] | None = None,
) -> list[Candidates]:
    """Finds the peaks of heatmaps: 4-neighbour maxima above a threshold, refined below a cell.

    The position inside the cell comes from a parabola through the logarithms of the peak and its
    two neighbours, per axis: exact for a Gaussian of any width (the reference resizes a 5 x 5
    patch cubically instead, spec section 10). On the outermost cells the three cells next to the
    border serve.

    Args:
        maps: (N, K, H, W) heatmaps, not modified.
        stride: cell side, network-input pixels.
        thresh: a peak's value must exceed it.
        max_per_type: most peaks per image and type, the highest first.
        image_sizes: per image (height, width) in pixels; peaks in cells that lie wholly in the
            padding outside are left out, points are clipped to the image.

    Returns:
        Per image its candidates, ordered by type, then by descending score; points in
        network-input pixels; scores in (0, 1]: the height of that parabola's top, so that a joint
        scores the same wherever in its cell it lies (up to 8 % less between cells at sigma 7,
        stride 4), clipped at 1 as a linear output may exceed its target.
    """
    limits = None
    if image_sizes is not None:
        limits = torch.tensor([tuple(s) for s in image_sizes], device=maps.device)
    points, scores = peak_table(maps, stride, thresh, max_per_type, limits)
    found = scores > 0
    types = torch.arange(maps.shape[1], device=maps.device)[:, None].expand(found.shape[1:])
    return [
        Candidates(of_image[there], types[there], values[there])
        for of_image, values, there in zip(points, scores, found, strict=True)
    ]


def peak_table(
    maps: torch.Tensor,
    stride: int,
    thresh: float,
    max_per_type: int,
    limits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The peaks of `decode_heatmaps` as tensors of fixed shape, M = max_per_type of each type.

    Args:
        maps, stride, thresh, max_per_type: as there.
        limits: (N, 2) height and width of the images in pixels, None for none.

    Returns:
        (N, K, M, 2) points and (N, K, M) scores, the highest first; 0 where there is no peak.
    """
    num_images, num_types, _, width = maps.shape
    maps = maps.float()
    is_peak = (maps > thresh) & _is_local_maximum(maps)
    if limits is not None:
        is_peak = is_peak & _cells_inside(limits, maps, stride)[:, None]
    flat = torch.where(is_peak, maps, -math.inf).flatten(2)
    # M further places, so that there are always M to take.
    flat = torch.cat([flat, flat.new_full((num_images, num_types, max_per_type), -math.inf)], dim=2)
    values, cells = flat.topk(max_per_type, dim=2)
    found = values > -math.inf
    cells = torch.where(found, cells, 0)
    rows, columns = cells // width, cells % width
    image = torch.arange(num_images, device=maps.device)[:, None, None]
    types = torch.arange(num_types, device=maps.device)[:, None]
    offset_x, rise_x = _log_parabola(maps, image, types, rows, columns, axis=1)
    offset_y, rise_y = _log_parabola(maps, image, types, rows, columns, axis=0)
    points = torch.stack([columns + 0.5 + offset_x, rows + 0.5 + offset_y], dim=3) * stride
    if limits is not None:
        points = torch.minimum(points, limits.flip(1)[:, None, None].to(points))
    scores = (values * (rise_x + rise_y).exp()).clamp(max=1)
    scores, order = torch.where(found, scores, 0.0).sort(dim=2, descending=True, stable=True)
    points = points.gather(2, order[..., None].expand(-1, -1, -1, 2))
    return torch.where((scores > 0)[..., None], points, 0.0), scores


def _is_local_maximum(maps: torch.Tensor) -> torch.Tensor:
    """Not below its four neighbours; of equal ones the first in row-major order counts."""
    padded = F.pad(maps, (1, 1, 1, 1), value=-math.inf)
    left, right = padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:]
    above, below = padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1]
    return (maps > left) & (maps > above) & (maps >= right) & (maps >= below)


def decode_highest(
    maps: torch.Tensor, stride: int, image_sizes: list[tuple[int, int]] | None = None
) -> torch.Tensor:
    """The highest place of each map, for maps that hold one joint each.

    Place and score are those of `decode_heatmaps`, without a threshold: the score tells.

    Args:
        maps: (N, K, H, W) heatmaps, not modified.
        stride: cell side, network-input pixels.
        image_sizes: per image (height, width) in pixels; cells that lie wholly in the padding
            outside are left aside, points are clipped to the image.

    Returns:
        (N, K, 3) float32 x, y in network-input pixels and score in (0, 1]; a map that is nowhere
        above 0 has the least score.
    """
    num_images, num_types, _, width = maps.shape
    if num_images == 0:
        return maps.new_zeros((0, num_types, 3), dtype=torch.float32)
    maps = maps.float()
    shown = maps
    if image_sizes is not None:
        limits = torch.tensor([tuple(s) for s in image_sizes], device=maps.device)
        inside = _cells_inside(limits, maps, stride)[:, None]
        shown = torch.where(inside, maps, -math.inf)
    values, cells = shown.flatten(2).max(dim=2)
    grid = torch.meshgrid(
        torch.arange(num_images, device=maps.device),
        torch.arange(num_types, device=maps.device),
        indexing="ij",
    )
    image, types, cells = (x.flatten() for x in (*grid, cells))
    rows, columns = cells // width, cells % width
    x, rise_x = _log_parabola(maps, image, types, rows, columns, axis=1)
    y, rise_y = _log_parabola(maps, image, types, rows, columns, axis=0)
    points = torch.stack([columns + 0.5 + x, rows + 0.5 + y], dim=1) * stride
    points = points.view(num_images, num_types, 2)
    if image_sizes is not None:
        points = torch.minimum(points, limits.flip(1)[:, None].to(points))
    scores = values * (rise_x + rise_y).exp().view_as(values)
    scores = scores.clamp(LEAST_SCORE, 1)
    return torch.cat([points, scores[..., None]], dim=2)


def _cells_inside(limits: torch.Tensor, maps: torch.Tensor, stride: int) -> torch.Tensor:
    """(N, H, W) bool: part of the cell of maps (N, K, H, W) lies inside the image; limits (N, 2)
    are its height and width."""
    rows = torch.arange(maps.shape[2], device=maps.device) * stride
    columns = torch.arange(maps.shape[3], device=maps.device) * stride
    return (rows < limits[:, :1])[:, :, None] & (columns < limits[:, 1:])[:, None, :]


def _log_parabola(
    maps: torch.Tensor,
    image: torch.Tensor,
    types: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    axis: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of peaks along an axis (0 rows, 1 columns): the offset in [-0.5, 0.5] cells of the parabola's
    top, and how much higher (log, at least 0) it is there than at the cell's centre. The indices
    are of any shapes that go together."""
    index = rows if axis == 0 else columns
    last = maps.shape[2 + axis] - 1
    if last < 2:
        flat = torch.zeros_like(index, dtype=maps.dtype)
        return flat, flat
    middle = index.clamp(1, last - 1)

    def log_value(shift: int) -> torch.Tensor:
        at = (middle + shift, columns) if axis == 0 else (rows, middle + shift)
        # Linear outputs may be negative next to a peak.
        return maps[image, types, at[0], at[1]].clamp(min=1e-6).log()

    before, centre, after = log_value(-1), log_value(0), log_value(1)
    curvature = (before - 2 * centre + after).clamp(max=-1e-6)
    top = 0.5 * (before - after) / curvature
    shift = (middle - index).to(top)
    offset = (top + shift).clamp(-0.5, 0.5)
    # From the cell's centre to the offset, below the top at `gap`. At most what a Gaussian of one
    # cell rises within half a cell: sharper peaks are noise.
    gap = top + shift
    # gap^2 - (gap - offset)^2, in which the squares of a flat top, far away, would cancel out.
    rise = -0.5 * curvature * offset * (2 * gap - offset)
    rise = rise.clamp(max=_MOST_RISE)
    return offset, rise
