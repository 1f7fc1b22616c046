"""Heatmaps over boxes, read at learned offsets: targets (encode) and joints (decode).

Letters: R boxes (regions), K keypoint types, S x S cells over a box whatever its size. Cell (row y,
column x) covers the share [x, x + 1) / S of the box's width and [y, y + 1) / S of its height;
offsets are in cells, x before y. Report of Ye and Ma, spec multitask_rcnn sections 4 and 5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.structures import Keypoints
from detectron2.structures.keypoints import heatmaps_to_keypoints

from mpn_d2.codecs.heatmap import LEAST_SCORE

# Logits lower than the highest by more have a share of exp(-100), nothing in float32.
_MOST_RANGE = 100.0


def encode_box_heatmaps(
    keypoints: torch.Tensor,
    boxes: torch.Tensor,
    side: int,
    sigma: float,
    min_visibility: int = 1,
) -> torch.Tensor:
    """One Gaussian per joint, 1 at the cell that Detectron2's `to_heatmap` gives the joint.

    Args:
        keypoints: (R, K, 3) x, y, v in the frame of the boxes.
        boxes: (R, 4) x1, y1, x2, y2.
        side: S.
        sigma: standard deviation, cells.
        min_visibility: joints with v below it have none (1: unlabelled ones; 2: hidden ones too).

    Returns:
        (R, K, S, S) float32; all 0 for joints outside the box or under `min_visibility`.
    """
    if len(boxes) == 0:
        return boxes.new_zeros((0, keypoints.shape[1], side, side), dtype=torch.float32)
    cells, valid = Keypoints(keypoints).to_heatmap(boxes, side)
    valid = valid.bool() & (keypoints[..., 2] >= min_visibility)
    axis = torch.arange(side, device=boxes.device)

    def along(cell: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(axis - cell[..., None]).square() / (2 * sigma**2))

    rows = along(torch.div(cells, side, rounding_mode="floor"))
    columns = along(cells % side)
    return rows[..., :, None] * columns[..., None, :] * valid[..., None, None]


def read_at_offsets(maps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """`y(p) = x(p + dp(p))`, bilinear, 0 outside the map (report eq. 6, with eq. 2-3).

    Offsets of 0 give the map itself to the last bit. Gradients reach maps and offsets.

    Args:
        maps: (R, K, S, S).
        offsets: (R, 2K, S, S) cells: x, y of type 0, x, y of type 1 ...

    Returns:
        (R, K, S, S).
    """
    height, width = maps.shape[-2:]
    dx, dy = offsets.unflatten(1, (-1, 2)).unbind(dim=2)
    # A place farther off reads 0 as well; larger numbers would lose the fraction, or be no index.
    columns = (torch.arange(width, device=maps.device) + dx).clamp(-2, width + 1)
    rows = (torch.arange(height, device=maps.device)[:, None] + dy).clamp(-2, height + 1)
    left, top = columns.detach().floor(), rows.detach().floor()
    right_share, bottom_share = columns - left, rows - top
    # With a border of zeros, every cell that is read is there.
    padded = F.pad(maps, (2, 3, 2, 3))
    step = padded.shape[-1]
    # Where an offset is NaN, as in a training that diverges, the shares are NaN too.
    first = ((top + 2) * step + left + 2).nan_to_num(0.0).long().flatten(2)
    flat = padded.flatten(2)

    def corner(down: int, right: int) -> torch.Tensor:
        return flat.gather(2, first + (down * step + right)).view_as(rows)

    upper = corner(0, 0) * (1 - right_share) + corner(0, 1) * right_share
    lower = corner(1, 0) * (1 - right_share) + corner(1, 1) * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


def read_at_offsets_fast(maps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """`read_at_offsets` by PyTorch's grid_sample, in a third of the time on a CPU; places are
    rounded to 1e-5 cells, whole ones are exact. Arguments and result as there."""
    height, width = maps.shape[-2:]
    if maps.numel() == 0 or not offsets.any():
        return maps
    dx, dy = offsets.unflatten(1, (-1, 2)).unbind(dim=2)
    # A power of two: the frame of grid_sample, in which the map spans -1 to 1, is then exact.
    side = 2 ** max(height - 1, width - 1).bit_length()
    padded = F.pad(maps, (0, side - width, 0, side - height))
    # The centre of cell 0 is half a cell from the edge.
    x = (dx + (torch.arange(width, device=maps.device) + 0.5)) * (2 / side) - 1
    y = (dy + (torch.arange(height, device=maps.device)[:, None] + 0.5)) * (2 / side) - 1
    places = torch.stack([x, y], dim=-1).flatten(0, 1)
    read = F.grid_sample(padded.flatten(0, 1)[:, None], places, align_corners=False)
    return read.view_as(maps)


def decode_box_heatmaps(maps: torch.Tensor, boxes: torch.Tensor, softmax: bool) -> torch.Tensor:
    """The highest place of each map once it is resized (bicubic) to its box, by Detectron2.

    Args:
        maps: (R, K, S, S), not modified: logits with `softmax`, else probabilities.
        boxes: (R, 4) x1, y1, x2, y2.
        softmax: the score is Detectron2's: the place's share of the softmax over the map. Else it
            is the map's highest value (boxes smaller than the map may lose it in resizing).

    Returns:
        (R, K, 3) float32 x, y in the frame of the boxes and score in (0, 1].
    """
    maps = maps.detach().float()
    if softmax and maps.numel():
        # Where the cubic overshoots all cells by hundreds, Detectron2 would divide 0 by 0.
        maps = torch.maximum(maps, maps.amax(dim=(2, 3), keepdim=True) - _MOST_RANGE)
    # x, y, height, share
    found = heatmaps_to_keypoints(maps, boxes.detach().float())
    score = found[..., 3] if softmax else maps.flatten(2).amax(dim=2)
    return torch.cat([found[..., :2], score.clamp(LEAST_SCORE, 1)[..., None]], dim=-1)
