"""Which regressed poses train the second stage (OKSFilter), and how good a pose is (PSM).

Multi-Person Pose Regression via Pose Filtering and Scoring; spec sections 7 to 9. Letters: M poses,
P people of one image, K keypoint types.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mpn_d2.structures.oks import pairwise_oks

# Square pixels; a smaller person counts as one of this area (spec section 7).
LEAST_AREA = 1.0


@torch.no_grad()
def oks_with_people(
    poses: torch.Tensor, keypoints: torch.Tensor, areas: torch.Tensor, sigmas: torch.Tensor
) -> torch.Tensor:
    """(M, P) OKS of every pose with every annotated person of its image, in [0, 1], detached.

    Args:
        poses: (M, K, 2) x, y.
        keypoints: (P, K, 3) x, y, v; people without labelled joints have OKS 0.
        areas: (P,) of the people, square pixels of the same frame.
        sigmas: (K,).
    """
    return pairwise_oks(
        keypoints.float(), poses.float(), areas.float().clamp(min=LEAST_AREA), sigmas
    ).T


@dataclass(frozen=True)
class OKSFilter:
    """Keeps poses that resemble anybody enough. Training alone: it needs the annotated people.

    Attributes:
        threshold: least OKS with any person. [paper: 0.5]
        keep_best: of those who answer for a person, the one most like her is kept in any case;
            without that the second stage has nothing to learn from at first. [ref:SMPR]

    Raises:
        ValueError: a threshold outside [0, 1].
    """

    threshold: float = 0.5
    keep_best: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"MODEL.POSE_REGRESSION.FILTER.THRESH is {self.threshold}: an OKS from 0 to 1 is "
                "needed"
            )

    @torch.no_grad()
    def __call__(self, oks: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """(M,) bool: kept.

        Args:
            oks: (M, P) of the poses of one image with its people.
            owners: (M,) int64, the person that each pose answers for.
        """
        if oks.numel() == 0:
            return torch.zeros(len(oks), dtype=torch.bool, device=oks.device)
        keep = oks.amax(dim=1) >= self.threshold
        if self.keep_best:
            own = oks.gather(1, owners[:, None])[:, 0]
            people = torch.arange(oks.shape[1], device=oks.device)
            theirs = torch.where(owners[:, None] == people, own[:, None], -1.0)
            best, first = theirs.max(dim=0)
            keep[first[best >= 0]] = True
        return keep


class PoseScorer(nn.Module):
    """The PSM: one logit a location, whose sigmoid estimates the OKS of the location's pose."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 1, kernel_size=3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, 1, H, W) logits."""
        return self.conv(features)


def scoring_loss(logits: torch.Tensor, oks: torch.Tensor) -> torch.Tensor:
    """Sum of the binary cross entropies with the OKS as soft targets (spec section 9).

    Args:
        logits: (M,).
        oks: (M,) in [0, 1]; no gradient flows into them.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), oks.detach(), reduction="sum")
