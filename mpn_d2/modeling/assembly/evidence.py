"""Evidence: how well each keypoint candidate of an image fits each of its boxes.

Letters: B boxes that take part, K keypoint types, M candidates of one type in the fullest image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mpn_d2.modeling.assembly.mirrored import Mirror
from mpn_d2.modeling.assembly.people_batch import PeopleBatch
from mpn_d2.structures.outputs import HeatmapOutputs


@dataclass
class Rating:
    """What evidence says of a batch.

    Attributes:
        pair_scores: (B, K, M) how well candidate and box fit; 0 where they may not match.
        peaks: (B, K, 3) x, y where the evidence alone would put each joint, frame of the boxes,
            and how much speaks for it, over 0 where it would put it anywhere; None unless asked
            for.
        pose_oks: (B,) expected quality of each box's pose, 0 to 1; None unless asked for.
    """

    pair_scores: torch.Tensor
    peaks: torch.Tensor | None = None
    pose_oks: torch.Tensor | None = None


class Evidence(nn.Module):
    """Base of all evidence (EVIDENCE_REGISTRY).

    Attributes:
        loss_name: key of the loss in the training's dict.
        by_image: samples of the training are images with all their people, not single people
            (data/association.py).
        expects_oks: `rate` can say how good each pose will be.
        differentiable: `loss_on_predictions` passes gradients to the maps.
    """

    loss_name = "loss_assembly"
    by_image = False
    expects_oks = False
    differentiable = False

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.parameters()).device

    def rate(
        self,
        batch: PeopleBatch,
        maps: HeatmapOutputs | None = None,
        *,
        peaks: bool = False,
        oks: bool = False,
    ) -> Rating:
        """Rates all pairs of a batch.

        Args:
            batch: boxes and candidates.
            maps: raw heatmaps of the images, in the frame of the boxes, where there are any.
            peaks: also say where each joint lies.
            oks: also say how good each pose will be (`expects_oks`).
        """
        raise NotImplementedError

    def rate_both_ways(
        self,
        batch: PeopleBatch,
        mirror: Mirror,
        maps: HeatmapOutputs | None = None,
        *,
        peaks: bool = False,
        oks: bool = False,
    ) -> Rating:
        """What it says of a batch and of its mirror image: mean scores, the surer peaks.

        Args:
            maps: without padding, whose mirror image would begin with it.
            batch, mirror, peaks, oks: see `rate`.
        """
        plain = self.rate(batch, maps, peaks=peaks, oks=oks)
        turned_maps = None if maps is None else mirror.maps(maps)
        turned = self.rate(mirror.batch(batch), turned_maps, peaks=peaks, oks=oks)
        flip = list(mirror.flip_indices)
        both = Rating((plain.pair_scores + turned.pair_scores[:, flip]) / 2)
        if plain.peaks is not None:
            a, b = plain.peaks, mirror.peaks(turned.peaks, batch)
            # Of a left and a right one that are equally sure, neither is preferred.
            share = 0.5 + 0.5 * torch.sign(a[..., 2:] - b[..., 2:])
            both.peaks = share * a + (1 - share) * b
        if plain.pose_oks is not None:
            both.pose_oks = (plain.pose_oks + turned.pose_oks) / 2
        return both

    def loss(self, samples: list[dict]) -> torch.Tensor:
        """Scalar training loss of samples of data/association.py; zero gradients for none."""
        raise NotImplementedError

    def loss_on_predictions(
        self, batch: PeopleBatch, owners: torch.Tensor, maps: HeatmapOutputs
    ) -> torch.Tensor:
        """Scalar training loss of predicted keypoints in predicted boxes (review notes 4.2).

        Args:
            batch: at least one box; all of them take part.
            owners: (B, K, 3) x, y, v, the annotated person of each box.
            maps: see `rate`.
        """
        raise NotImplementedError
