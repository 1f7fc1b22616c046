"""Poses as displacements from grid locations: encode, decode, and which location answers for whom.

Multi-Person Pose Regression via Pose Filtering and Scoring, eq. 1-4 and its sampling section; spec
sections 2 and 6. Letters: R locations of all pyramid levels, P people of one image, M poses, K
keypoint types. Frame: network input, continuous pixels (design 4.1); the location of cell (row y,
column x) of stride s is its centre ((x + 0.5) s, (y + 0.5) s), the paper's x s + floor(s / 2).
Offsets are x, y by joint (channels x_1, y_1, x_2, ...) in units of the location's stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# A level answers for people whose farthest side is 4 to 8 of its strides away: 64, 128, 256 and 512
# pixels between levels of stride 8 to 128. [ref:SMPR]
_NEAREST, _FARTHEST = 4.0, 8.0


@dataclass(frozen=True)
class Locations:
    """The grid points of all levels, one behind the other, rows of a level one behind the other.

    Attributes:
        points: (R, 2) x, y.
        strides: (R,) of their levels, pixels.
        counts: locations of each level, fine to coarse; they sum up to R.
    """

    points: torch.Tensor
    strides: torch.Tensor
    counts: tuple[int, ...]

    @classmethod
    def of_grids(
        cls, sizes: list[tuple[int, int]], strides: list[int], device: torch.device | str = "cpu"
    ) -> Locations:
        """Those of levels of (height, width) cells, fine to coarse."""
        points, spacing = [], []
        for (height, width), stride in zip(sizes, strides, strict=True):
            y, x = torch.meshgrid(
                torch.arange(height, device=device, dtype=torch.float32),
                torch.arange(width, device=device, dtype=torch.float32),
                indexing="ij",
            )
            points.append((torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * stride)
            spacing.append(points[-1].new_full((height * width,), float(stride)))
        counts = tuple(height * width for height, width in sizes)
        return cls(torch.cat(points), torch.cat(spacing), counts)

    def size_bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(R,) least (included) and (R,) greatest (not included) distance of the farthest side of
        the boxes that a location answers for; together the levels leave nothing out."""
        least, most = _NEAREST * self.strides, _FARTHEST * self.strides
        least[: self.counts[0]] = 0.0
        most[len(most) - self.counts[-1] :] = torch.inf
        return least, most


def encode_offsets(
    keypoints: torch.Tensor, points: torch.Tensor, strides: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a location of each pose is to predict.

    Args:
        keypoints: (M, K, 3) x, y, v.
        points: (M, 2), the location of each pose.
        strides: (M,).

    Returns:
        (M, 2K) offsets in strides, 0 for joints that are not labelled, and (M, K) bool: labelled.
    """
    labelled = keypoints[..., 2] > 0
    offsets = (keypoints[..., :2] - points[:, None]) / strides[:, None, None]
    return (offsets * labelled[..., None]).flatten(1), labelled


def decode_offsets(
    offsets: torch.Tensor, points: torch.Tensor, strides: torch.Tensor
) -> torch.Tensor:
    """Offsets (M, 2K) in strides at points (M, 2) of strides (M,) -> joints (M, K, 2), pixels."""
    return points[:, None] + offsets.unflatten(1, (-1, 2)) * strides[:, None, None]


def joint_boxes(keypoints: torch.Tensor) -> torch.Tensor:
    """The smallest box around the labelled joints of each pose (the paper's pseudo box).

    Args:
        keypoints: (P, K, 3) x, y, v; or (P, K, 2), all joints labelled.

    Returns:
        (P, 4) x1, y1, x2, y2; zeros for people without labelled joints.
    """
    if keypoints.shape[-1] == 2:
        return torch.cat([keypoints.amin(dim=1), keypoints.amax(dim=1)], dim=1)
    missing = (keypoints[..., 2] <= 0)[..., None]
    low = keypoints[..., :2].masked_fill(missing, torch.inf).amin(dim=1)
    high = keypoints[..., :2].masked_fill(missing, -torch.inf).amax(dim=1)
    boxes = torch.cat([low, high], dim=1)
    return boxes.masked_fill(missing.all(dim=1), 0.0)


@torch.no_grad()
def assign_locations(
    boxes: torch.Tensor, locations: Locations, radius: float | None
) -> torch.Tensor:
    """The person whom each location answers for.

    A location in the region of several people is the one's with the smallest box. A region is never
    smaller than one cell of the level, so that people smaller than a cell have a location too
    (spec: clipped to the box, which leaves them none).

    Args:
        boxes: (P, 4) x1, y1, x2, y2.
        locations: R of one image.
        radius: half the side of the square region in the middle of a box, in strides, cut off at
            the box (centre sampling); None: the region is the box.

    Returns:
        (R,) int64 index of the person, -1 for background.
    """
    points, strides = locations.points, locations.strides
    if len(boxes) == 0:
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    boxes = boxes.to(points)
    middles, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    reach = halves[:, None].expand(-1, len(points), -1)
    if radius is not None:
        reach = torch.minimum(reach, radius * strides[:, None])
    reach = torch.maximum(reach, 0.5 * strides[:, None])
    shift = points - middles[:, None]
    inside = ((shift >= -reach) & (shift < reach)).all(dim=2)
    farthest = (shift.abs() + halves[:, None]).amax(dim=2)
    least, most = locations.size_bounds()
    candidates = inside & (farthest >= least) & (farthest < most)
    areas = (4 * halves.prod(dim=1))[:, None].expand_as(farthest)
    smallest, owner = areas.masked_fill(~candidates, torch.inf).min(dim=0)
    return owner.masked_fill(smallest.isinf(), -1)


def centerness(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """FCOS's centre-ness: 1 in the middle of a box, falling to 0 at its sides and beyond.

    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), l, r, t, b the distances to the sides; a
    box without width counts as one whose middle the point is level with.

    Args:
        points: (M, 2).
        boxes: (M, 4), one for each point.

    Returns:
        (M,) in [0, 1].
    """
    to_low, to_high = points - boxes[:, :2], boxes[:, 2:] - points
    near, far = torch.minimum(to_low, to_high).clamp(min=0), torch.maximum(to_low, to_high)
    flat = boxes[:, 2:] <= boxes[:, :2]
    share = torch.where(flat, 1.0, near / far.clamp(min=1e-9))
    return share.prod(dim=1).sqrt()
