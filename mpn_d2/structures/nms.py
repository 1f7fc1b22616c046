"""Suppression of repeated boxes: hard (torchvision's), and soft, which lowers scores instead.

Soft-NMS: Bodla et al., ICCV 2017. Letters: N boxes of one image and class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision.ops import box_iou, nms

METHODS = ("hard", "soft_linear", "soft_gaussian")


@dataclass(frozen=True)
class BoxSuppression:
    """What becomes of a box that overlaps a better one.

    Attributes:
        method: "hard" drops it where the IoU exceeds `threshold`; "soft_linear" multiplies its
            score by 1 - IoU there; "soft_gaussian" by exp(-IoU^2 / sigma) everywhere.
        threshold: IoU, 0 to 1.
        sigma: width of the Gaussian.
        min_score: boxes that fall below it are dropped (soft methods).

    Raises:
        ValueError: an unknown method, a threshold or sigma that is not possible.
    """

    method: str = "hard"
    threshold: float = 0.5
    sigma: float = 0.5
    min_score: float = 0.001

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"MODEL.RETINANET.NMS is {self.method!r}; choose one of {', '.join(METHODS)}"
            )
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"MODEL.RETINANET.NMS_THRESH_TEST is {self.threshold}: an IoU from 0 to 1 is needed"
            )
        if not self.sigma > 0:
            raise ValueError(
                f"MODEL.RETINANET.SOFT_NMS_SIGMA is {self.sigma}: a number over 0 is needed"
            )

    def __call__(
        self, boxes: torch.Tensor, scores: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What stays, best first.

        Args:
            boxes: (N, 4) x1, y1, x2, y2.
            scores: (N,).
            most: boxes that stay at most.

        Returns:
            (kept,) int64 indices and (kept,) their scores, lowered by the soft methods.
        """
        if self.method == "hard":
            kept = nms(boxes.float(), scores.float(), self.threshold)[:most]
            return kept, scores[kept]
        return self._soft(boxes, scores, most)

    def _soft(
        self, boxes: torch.Tensor, scores: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # On the CPU: each step depends on the one before.
        places, current = boxes.detach().float().cpu(), scores.detach().float().cpu().clone()
        kept: list[int] = []
        values: list[float] = []
        while len(kept) < min(most, len(current)):
            best = int(current.argmax())
            value = float(current[best])
            if not value >= self.min_score:
                break
            kept.append(best)
            values.append(value)
            # NaN between boxes without area.
            overlap = torch.nan_to_num(box_iou(places[best : best + 1], places)[0], nan=0.0)
            if self.method == "soft_linear":
                factor = torch.where(overlap > self.threshold, 1 - overlap, 1.0)
            else:
                factor = torch.exp(-overlap.square() / self.sigma)
            current *= factor
            # All of them: a copy of a kept box multiplies it by 0, too.
            current[kept] = -1.0
        index = torch.tensor(kept, dtype=torch.int64, device=scores.device)
        return index, torch.tensor(values, dtype=scores.dtype, device=scores.device)
