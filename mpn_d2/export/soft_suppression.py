"""Soft suppression for exported files: one loop of tensor operations that a trace keeps.

Letters: N boxes of one image.
"""

from __future__ import annotations

import torch

from mpn_d2.export.compiled import compiled
from mpn_d2.structures.nms import BoxSuppression


class TracedSuppression:
    """What a BoxSuppression keeps, as operations that an exported file can have."""

    def __init__(self, plain: BoxSuppression) -> None:
        self.plain = plain
        self._soft = compiled(_suppress_softly)

    def __call__(
        self, boxes: torch.Tensor, scores: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See BoxSuppression."""
        if self.plain.method == "hard":
            return self.plain(boxes, scores, most)
        sigma = self.plain.sigma if self.plain.method == "soft_gaussian" else 0.0
        kept, values = self._soft(
            boxes, scores, most, self.plain.threshold, sigma, self.plain.min_score
        )
        found = (kept >= 0).nonzero()[:, 0]
        return kept[found], values[found]


def _suppress_softly(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    most: int,
    threshold: float,
    sigma: float,
    min_score: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(most,) int64 indices of the boxes that stay, best first, then -1; and (most,) scores.

    A sigma of 0 stands for the linear method.
    """
    # A box that is never good enough: there is something to look at where there are none.
    places = torch.cat([boxes, boxes.new_zeros((1, 4))])
    current = torch.cat([scores, scores.new_full((1,), -1.0)])
    areas = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1])
    numbers = torch.arange(places.size(0), device=boxes.device)
    slots = torch.arange(most, device=boxes.device)
    waiting = current >= min_score
    kept = torch.full_like(slots, -1)
    values = torch.zeros_like(slots, dtype=scores.dtype)
    turn = 0
    going = bool(waiting.any())
    while going and turn < most:
        value, best = current.max(dim=0)
        kept = torch.where(slots == turn, best, kept)
        values = torch.where(slots == turn, value, values)
        own = places[best]
        corner = torch.maximum(places[:, :2], own[:2])
        common = (torch.minimum(places[:, 2:], own[2:]) - corner).clamp(min=0.0)
        shared = common[:, 0] * common[:, 1]
        union = areas + areas[best] - shared
        overlap = torch.where(union > 0, shared / union, torch.zeros_like(union))
        if sigma > 0.0:
            factor = torch.exp(-overlap * overlap / sigma)
        else:
            factor = torch.where(overlap > threshold, 1.0 - overlap, torch.ones_like(overlap))
        current = current * factor
        waiting = waiting & (numbers != best) & (current >= min_score)
        current = torch.where(waiting, current, torch.full_like(current, -1.0))
        going = bool(waiting.any())
        turn += 1
    return kept, values
