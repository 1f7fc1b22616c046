"""Assembler: keypoint candidates and person boxes to one pose per box.

Letters: N images, B boxes that take part (all images together), P boxes of the fullest image,
K keypoint types, M candidates of one type in the fullest image. All boxes of all images pass
through at once. MultiPoseNet section 3.3; spec section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from mpn_d2.modeling.assembly.build import (
    POSE_ASSEMBLER_REGISTRY,
    build_evidence,
    build_matching,
)
from mpn_d2.modeling.assembly.evidence import Evidence, Rating
from mpn_d2.modeling.assembly.matching import Matching, MatchingProblem
from mpn_d2.modeling.assembly.mirrored import Mirror
from mpn_d2.modeling.assembly.people_batch import PeopleBatch, collate_people
from mpn_d2.structures.outputs import AssembledPoses, Candidates, HeatmapOutputs
from mpn_d2.structures.skeleton import get_skeleton

FALLBACKS = ("none", "argmax")
# Box score (1 without one) | mean score of the keypoints, missing ones 0 | mean pair score of the
# keypoints that were found | expected OKS (evidence that knows it).
POSE_SCORES = ("box", "keypoints", "evidence", "oks")


@POSE_ASSEMBLER_REGISTRY.register()
class PoseAssembler(nn.Module):
    """Rates (box, candidate) pairs by evidence, then matches candidates to boxes.

    Args:
        evidence: boxes and candidates to pair scores.
        matching: pair scores to choices.
        num_keypoints: K.
        fallback: "none" leaves a joint without candidate out; "argmax" puts it at the largest
            evidence with score 0 (every unassigned joint; the authors' code does so only in
            images where some type has no candidate at all).
        least_evidence: pairs with a lower score do not match.
        box_score_thresh: boxes with a lower score claim nothing.
        pose_score: what the score of a pose is the product of, of POSE_SCORES.
    """

    @configurable
    def __init__(
        self,
        *,
        evidence: Evidence,
        matching: Matching,
        num_keypoints: int,
        fallback: str = "none",
        least_evidence: float = 0.0,
        box_score_thresh: float = 0.0,
        pose_score: Sequence[str] = ("keypoints",),
    ) -> None:
        super().__init__()
        if fallback not in FALLBACKS:
            raise ValueError(
                f"MODEL.ASSEMBLER.FALLBACK is {fallback!r}; choose one of {', '.join(FALLBACKS)}"
            )
        self.evidence = evidence
        self.matching = matching
        self.num_keypoints = num_keypoints
        self.fallback = fallback
        self.least_evidence = least_evidence
        self.box_score_thresh = box_score_thresh
        self.pose_score = tuple(pose_score)
        unknown = sorted(set(self.pose_score) - set(POSE_SCORES))
        if unknown or not self.pose_score:
            raise ValueError(
                f"MODEL.ASSEMBLER.POSE_SCORE is {list(pose_score)}: it needs one or more of "
                f"{', '.join(POSE_SCORES)}"
            )
        if "oks" in self.pose_score and not evidence.expects_oks:
            raise ValueError(
                f"MODEL.ASSEMBLER.POSE_SCORE is {list(pose_score)}, but this evidence does not "
                "say how good a pose is: leave oks out, or set MODEL.ASSEMBLER.EVIDENCE to learned"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {
            "evidence": build_evidence(cfg),
            "matching": build_matching(cfg),
            "num_keypoints": get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
            "fallback": cfg.MODEL.ASSEMBLER.FALLBACK,
            "least_evidence": cfg.MODEL.ASSEMBLER.LEAST_EVIDENCE,
            "box_score_thresh": cfg.MODEL.ASSEMBLER.BOX_SCORE_THRESH,
            "pose_score": cfg.MODEL.ASSEMBLER.POSE_SCORE,
        }

    @property
    def differentiable(self) -> bool:
        """Whether the loss on predictions passes gradients to the maps."""
        return self.evidence.differentiable

    @property
    def needs_peaks(self) -> bool:
        """Whether joints may lie where the evidence says, not at a candidate."""
        return self.matching.joints_at_peaks or self.fallback == "argmax"

    def losses(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """Training loss of samples made from annotations alone.

        Args:
            samples: of data/association.py: images if the evidence is `by_image`, else people.

        Returns:
            {name: scalar}, with zero gradients for an empty list.
        """
        return {self.evidence.loss_name: self.evidence.loss(samples)}

    def losses_on_predictions(
        self,
        candidates: list[Candidates],
        boxes: list[torch.Tensor],
        owners: list[torch.Tensor],
        maps: HeatmapOutputs,
    ) -> dict[str, torch.Tensor]:
        """Training loss of predicted keypoints in predicted boxes (review notes, section 4.2).

        Args:
            candidates, boxes, maps: as for `inference`; gradients reach the maps if the evidence
                is differentiable.
            owners: per image (P, K, 3) x, y, v, the annotated person of each box.

        Returns:
            As `losses`.
        """
        if sum(len(box) for box in boxes) == 0:
            return self.losses([])
        batch = self.collate(candidates, boxes)
        loss = self.evidence.loss_on_predictions(batch, torch.cat(owners), maps)
        return {self.evidence.loss_name: loss}

    @torch.no_grad()
    def inference(
        self,
        candidates: list[Candidates],
        boxes: list[torch.Tensor],
        box_scores: list[torch.Tensor] | None = None,
        maps: HeatmapOutputs | None = None,
        mirror: Mirror | None = None,
    ) -> list[AssembledPoses]:
        """Poses of all boxes of all images.

        Args:
            candidates: per image, in the frame of its boxes.
            boxes: per image (P, 4) x1, y1, x2, y2; P may be 0.
            box_scores: per image (P,); without them every box takes part and counts as 1.
            maps: raw heatmaps of the batch, needed by grid input "heatmap" only; their frame is
                that of the boxes.
            mirror: rate the mirrored image, too, and take the mean; None for one sight.

        Returns:
            One entry per image, one pose per box, in the order of the boxes. Joints of one type
            in different boxes never share a candidate, except with matching "argmax" or
            MODEL.ASSEMBLER.ONE_TO_ONE off.

        Raises:
            ValueError: lists of unequal length, a keypoint type out of range, missing maps.
        """
        if not boxes and not candidates:
            return []
        batch = self.collate(candidates, boxes, box_scores)
        return self.assemble(batch, self.rate(batch, maps, mirror))

    def rate(
        self,
        batch: PeopleBatch,
        maps: HeatmapOutputs | None = None,
        mirror: Mirror | None = None,
    ) -> Rating:
        """What the evidence says of a batch, as much of it as `assemble` needs."""
        needs = {"peaks": self.needs_peaks, "oks": "oks" in self.pose_score}
        if mirror is None:
            return self.evidence.rate(batch, maps, **needs)
        return self.evidence.rate_both_ways(batch, mirror, maps, **needs)

    def collate(
        self,
        candidates: list[Candidates],
        boxes: list[torch.Tensor],
        box_scores: list[torch.Tensor] | None = None,
    ) -> PeopleBatch:
        """Padded tensors of a batch; arguments as for `inference`, at least one image."""
        return collate_people(
            candidates,
            boxes,
            box_scores,
            num_keypoints=self.num_keypoints,
            box_score_thresh=self.box_score_thresh,
        )

    def assemble(self, batch: PeopleBatch, rating: Rating) -> list[AssembledPoses]:
        """Matches the candidates of a batch by their rating; see `inference`.

        Where the rating says nothing of the poses, "oks" of the pose score counts as 1.
        """
        allowed = rating.pair_scores >= self.least_evidence
        pair_scores = batch.spread(torch.where(allowed, rating.pair_scores, 0.0))
        peaks = batch.spread(rating.peaks) if self.needs_peaks else None
        distances = None
        if self.matching.joints_at_peaks:
            gaps = peaks[..., None, :2] - batch.points[:, :, None]
            distances = gaps.norm(dim=-1).flatten(0, 1)
        problem = MatchingProblem(pair_scores.flatten(0, 1), distances)
        chosen = self.matching(problem).view(pair_scores.shape[:3])
        oks: float | torch.Tensor = 1.0
        if "oks" in self.pose_score and rating.pose_oks is not None:
            oks = batch.spread(rating.pose_oks[:, None])[:, 0]
        return self._poses(batch, chosen, pair_scores, peaks, oks)

    def _poses(
        self,
        batch: PeopleBatch,
        chosen: torch.Tensor,
        pair_scores: torch.Tensor,
        peaks: torch.Tensor | None,
        oks: torch.Tensor | float,
    ) -> list[AssembledPoses]:
        """(N, K, P) chosen candidates, -1 for none, and (N, K, P, M) scores to poses per image."""
        found = chosen >= 0
        index = chosen.clamp(min=0)
        ids = torch.where(found, batch.ids.gather(2, index), -1)
        scores = torch.where(found, batch.scores.gather(2, index), 0.0)
        points = batch.points.gather(2, index[..., None].expand(-1, -1, -1, 2))
        points = torch.where(found[..., None], points, 0.0)
        if peaks is not None:
            at_peak = peaks[..., 2] > 0
            if self.matching.joints_at_peaks:
                points = torch.where(found[..., None], peaks[..., :2], points)
            if self.fallback == "argmax":
                points = torch.where((~found & at_peak)[..., None], peaks[..., :2], points)
        keypoints = torch.cat([points, scores[..., None]], dim=-1).transpose(1, 2)
        ids = ids.transpose(1, 2)
        pose_scores = self._pose_scores(batch, chosen, scores, pair_scores, oks)
        return [
            AssembledPoses(keypoints[n, :count], pose_scores[n, :count], ids[n, :count])
            for n, count in enumerate(batch.num_boxes)
        ]

    def _pose_scores(
        self,
        batch: PeopleBatch,
        chosen: torch.Tensor,
        scores: torch.Tensor,
        pair_scores: torch.Tensor,
        oks: torch.Tensor | float,
    ) -> torch.Tensor:
        """(N, P) scores of poses from (N, K, P) choices and scores of their candidates."""
        found = chosen >= 0
        evidence = pair_scores.gather(3, chosen.clamp(min=0)[..., None])[..., 0]
        factors = {
            "box": batch.box_scores if batch.box_scores.shape[1] else 1.0,
            "keypoints": scores.mean(dim=1),
            "evidence": (evidence * found).sum(dim=1) / found.sum(dim=1).clamp(min=1),
            "oks": oks,
        }
        product = math.prod(factors[name] for name in self.pose_score)
        # Without a keypoint there is no pose.
        return torch.where(found.any(dim=1), product, 0.0)
