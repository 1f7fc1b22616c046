"""Boxes and keypoint candidates of a batch of images as padded tensors: what evidence rates.

Letters: N images, B boxes that take part (all images together), P boxes of the fullest image,
K keypoint types, M candidates of one type in the fullest image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from mpn_d2.structures.outputs import Candidates


@dataclass
class PeopleBatch:
    """Boxes and candidates of a batch of images as padded tensors.

    Attributes:
        boxes: (B, 4) boxes that may claim keypoints, image by image.
        image: (B,) int64 image of each of them.
        slot: (B,) int64 its row among all boxes of its image.
        box_scores: (N, P) of all boxes, 1 where none were given, 0 as padding.
        num_boxes: per image, how many boxes came in.
        points: (N, K, M, 2) candidates by type.
        scores: (N, K, M), 0 as padding.
        ids: (N, K, M) int64 index among the image's candidates, -1 as padding.
    """

    boxes: torch.Tensor
    image: torch.Tensor
    slot: torch.Tensor
    box_scores: torch.Tensor
    num_boxes: list[int]
    points: torch.Tensor
    scores: torch.Tensor
    ids: torch.Tensor

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """(B, K, ...) values of boxes to (N, K, P, ...) by image, 0 for all other boxes."""
        num_images, num_slots = self.box_scores.shape
        spread = values.new_zeros(num_images, max(num_slots, 1), *values.shape[1:])
        spread[self.image, self.slot] = values
        return spread.transpose(1, 2)


def collate_people(
    candidates: list[Candidates],
    boxes: list[torch.Tensor],
    box_scores: list[torch.Tensor] | None = None,
    *,
    num_keypoints: int,
    box_score_thresh: float = 0.0,
) -> PeopleBatch:
    """Padded tensors of a batch of at least one image.

    Args:
        candidates: per image, in the frame of its boxes.
        boxes: per image (P, 4) x1, y1, x2, y2; P may be 0.
        box_scores: per image (P,); without them every box takes part and counts as 1.
        num_keypoints: K.
        box_score_thresh: boxes with a lower score take no part.

    Raises:
        ValueError: lists of unequal length, a keypoint type out of range.
    """
    lengths = [len(part) for part in (candidates, boxes, box_scores) if part is not None]
    if len(set(lengths)) > 1:
        raise ValueError(
            "candidates, boxes and box scores must come as one entry per image, "
            f"but the lists have lengths {lengths}"
        )
    if box_scores is None:
        scores = [box.new_ones(len(box)) for box in boxes]
        takes_part = [score > 0 for score in scores]
    else:
        scores = box_scores
        takes_part = [score >= box_score_thresh for score in scores]
    num_boxes = [len(box) for box in boxes]
    device = boxes[0].device
    rows = torch.cat(takes_part).nonzero()[:, 0]
    images = torch.arange(len(boxes), device=device)
    image = images.repeat_interleave(torch.tensor(num_boxes, device=device))
    slot = torch.cat([torch.arange(count, device=device) for count in num_boxes])
    ids = _ids_by_type(candidates, num_keypoints)
    point_rows = pad_sequence([c.points for c in candidates], batch_first=True)
    score_rows = pad_sequence([c.scores for c in candidates], batch_first=True)
    return PeopleBatch(
        boxes=torch.cat(boxes).view(-1, 4)[rows],
        image=image[rows],
        slot=slot[rows],
        box_scores=pad_sequence(scores, batch_first=True),
        num_boxes=num_boxes,
        points=_pick(point_rows, ids),
        scores=_pick(score_rows[..., None], ids)[..., 0],
        ids=ids,
    )


def _ids_by_type(candidates: list[Candidates], num_keypoints: int) -> torch.Tensor:
    """(N, K, M) int64 index of the candidates of each image and type in their order, -1 beyond."""
    device = candidates[0].types.device
    types = torch.cat([c.types for c in candidates]).long()
    if len(types) and (int(types.min()) < 0 or int(types.max()) >= num_keypoints):
        raise ValueError(
            f"keypoint types {int(types.min())}..{int(types.max())} do not fit a skeleton of "
            f"{num_keypoints} keypoints"
        )
    counts = torch.tensor([len(c) for c in candidates], device=device)
    image = torch.arange(len(candidates), device=device).repeat_interleave(counts)
    group = image * num_keypoints + types
    order = torch.argsort(group, stable=True)
    sizes = torch.bincount(group, minlength=len(candidates) * num_keypoints)
    firsts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(types), device=device) - firsts[group[order]]
    # At least one column, so that maxima over candidates exist in a batch without any.
    width = max(int(sizes.max()), 1)
    ids = torch.full((len(sizes), width), -1, dtype=torch.int64, device=device)
    ids[group[order], rank] = order - (counts.cumsum(0) - counts)[image[order]]
    return ids.view(len(candidates), num_keypoints, width)


def _pick(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """rows (N, C, D) and ids (N, K, M) to (N, K, M, D), zeros where the id is -1."""
    if rows.shape[1] == 0:
        return rows.new_zeros(*ids.shape, rows.shape[2])
    index = ids.clamp(min=0).flatten(1)[..., None].expand(-1, -1, rows.shape[2])
    picked = rows.gather(1, index).view(*ids.shape, -1)
    return torch.where((ids >= 0)[..., None], picked, 0.0)
