"""Repeated poses of one image: dropped or rated lower by OKS (paper section 4: OKS-NMS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torchvision.ops import box_iou

from mpn_d2.structures.oks import AREA_OF_BOX, oks_nms, soft_oks_nms

MODES = ("none", "hard", "soft")
# From this IoU on a box without a pose repeats a better one.
_SAME_BOX = 0.5


class PoseSuppression:
    """Takes repeats out of an image's people.

    A pose's size is that of its box, times COCO's share (`AREA_OF_BOX`). People without any
    keypoint are compared by their boxes instead. Soft suppression lowers both scores of a person.
    """

    def __init__(self, mode: str, threshold: float, sigmas: Sequence[float]) -> None:
        """
        Args:
            mode: "none", "hard" or "soft", see `mpn_d2.structures.oks`.
            threshold: hard: the OKS above which a pose repeats a better one; soft: the width of
                the penalty; over 0, at most 1.
            sigmas: (K,) of the skeleton.

        Raises:
            ValueError: an unknown mode or a threshold out of range.
        """
        if mode not in MODES:
            raise ValueError(f"OKS_NMS.MODE is {mode!r}; choose one of {', '.join(MODES)}")
        if not 0 < threshold <= 1:
            raise ValueError(f"OKS_NMS.THRESH is {threshold}: over 0 and at most 1 is needed")
        self.mode, self.threshold = mode, threshold
        self.sigmas = torch.tensor(tuple(sigmas), dtype=torch.float32)

    def __call__(self, people: Instances) -> Instances:
        """Who stays, best pose first, then people without a pose, best box first.

        Args:
            people: `pred_boxes`, `scores`, `pose_scores` and `pred_keypoints` (P, K, 3) x, y,
                score, any frame; left as they are.
        """
        if self.mode == "none" or not len(people):
            return people
        # Joints of score 0 are missing or guesses.
        has_pose = (people.pred_keypoints[..., 2] > 0).any(dim=-1)
        poses, others = people[has_pose], people[~has_pose]
        areas = poses.pred_boxes.area() * AREA_OF_BOX
        given = (
            poses.pred_keypoints,
            poses.pose_scores,
            areas,
            self.sigmas.to(areas),
            self.threshold,
        )
        if self.mode == "hard":
            poses = poses[oks_nms(*given)]
        else:
            kept, scores = soft_oks_nms(*given)
            poses = poses[kept]
            # A repeated pose has a repeated box.
            poses.scores = poses.scores * (scores / poses.pose_scores.clamp(min=1e-12)).clamp(max=1)
            poses.pose_scores = scores
        others = others[others.scores.argsort(descending=True, stable=True)]
        others = others[_unrepeated(others.pred_boxes.tensor, poses.pred_boxes.tensor)]
        return Instances.cat([poses, others])


def _unrepeated(boxes: torch.Tensor, better: torch.Tensor) -> torch.Tensor:
    """(N,) bool of boxes (N, 4), best first: they overlap none of `better` (M, 4) or those kept."""
    everybody = torch.cat([better, boxes])
    repeats = (box_iou(boxes, everybody) > _SAME_BOX).cpu()
    keeps = torch.zeros(len(everybody), dtype=torch.bool)
    keeps[: len(better)] = True
    for i, row in enumerate(repeats):
        keeps[len(better) + i] = not bool((row & keeps).any())
    return keeps[len(better) :].to(boxes.device)
