"""MultiPoseNet whose poses are ranked by the OKS that is expected of them, too (PSM).

Issue of pose regression: its pose score offered to the other system. The network itself is the same
and is trained before; the part "scoring" alone is trained on the poses that it then assembles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import nn
from torchvision.ops import box_iou

from mpn_d2.modeling.heads.assembled_scoring import AssembledPoseScorer
from mpn_d2.modeling.heads.pose_scoring import oks_with_people, scoring_loss
from mpn_d2.modeling.meta_arch.common import (
    mean_over_processes,
    mostly_inside,
    require_training_fields,
)
from mpn_d2.modeling.meta_arch.multiposenet import PARTS, MultiPoseNet
from mpn_d2.structures.oks import AREA_OF_BOX
from mpn_d2.structures.outputs import ImageEvidence
from mpn_d2.structures.skeleton import get_skeleton

PART = "scoring"
# A pose belongs to somebody without annotated keypoints where their boxes overlap by this IoU.
_SAME_PERSON = 0.5


@META_ARCH_REGISTRY.register()
class ScoredMultiPoseNet(MultiPoseNet):
    """Its pose scores times the expected OKS; everything else is the base's.

    MODEL.TRAIN_PARTS [scoring] trains the scorer, alone: all other parts are frozen and must come
    with MODEL.WEIGHTS. In the other stages the scorer is left as it is.
    """

    @configurable
    def __init__(
        self,
        *,
        pose_scorer: AssembledPoseScorer,
        sigmas: Sequence[float],
        train_parts: list[str],
        **network: object,
    ) -> None:
        """
        Args:
            pose_scorer: of poses and maps.
            sigmas: K OKS constants of the skeleton.
            train_parts: of the base, or "scoring" alone.
            network: arguments of the base.
        """
        scores = PART in train_parts
        if scores and list(train_parts) != [PART]:
            raise ValueError(
                f"MODEL.TRAIN_PARTS is {list(train_parts)}: {PART} learns from what the trained "
                "parts predict: train it alone (--stage scoring)"
            )
        super().__init__(train_parts=[] if scores else train_parts, **network)
        self.pose_scorer = pose_scorer.requires_grad_(scores)
        self.sigmas = tuple(sigmas)
        if scores:
            self.train_parts = (PART,)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        skeleton = get_skeleton(cfg.MODEL.SKELETON)
        scorer = AssembledPoseScorer(
            num_keypoints=skeleton.num_keypoints, width=cfg.MODEL.POSE_SCORER.WIDTH
        )
        return {**super().from_config(cfg), "pose_scorer": scorer, "sigmas": skeleton.sigmas}

    @property
    def needed_parts(self) -> tuple[str, ...]:
        """Frozen parts without which what trains has nothing to learn from."""
        return PARTS if self.train_parts == (PART,) else ()

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """See the base."""
        # While the base is built there is no scorer yet.
        scorer = getattr(self, "pose_scorer", None)
        return {**super().part_modules(), PART: [] if scorer is None else [scorer]}

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """See the base; "loss_scoring_oks" while the scorer trains."""
        if self.training and self.train_parts == (PART,):
            return self.scoring_losses(batched_inputs)
        return super().forward(batched_inputs)

    def scoring_losses(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Cross entropy with the OKS of what is assembled now, per pose of the batch.

        Poses in crowds and of people without annotated keypoints teach nothing.
        """
        require_training_fields(batched_inputs)
        evidence = self.look(batched_inputs)
        frames = [x.people.image_size for x in evidence]
        results = super().assemble_people(evidence, frames)
        total, count = self._zero(), 0
        for x, seen, result in zip(batched_inputs, evidence, results, strict=True):
            people = result["instances"]
            people = people[people.pose_scores > 0]
            truth = x["instances"].to(self.device)
            people = people[~_unknown(people, truth, x["crowd_boxes"].to(self.device))]
            goals = self._best_oks(people, truth)
            logits = self.pose_scorer(*self.pose_scorer.describe(seen.maps, seen.stride, people))
            total, count = total + scoring_loss(logits, goals), count + len(goals)
        get_event_storage().put_scalar(f"{PART}/poses", count / len(batched_inputs))
        return {f"loss_{PART}_oks": total / mean_over_processes(count, self.device)}

    def assemble_people(
        self,
        evidence: list[ImageEvidence],
        sizes: list[tuple[int, int]],
        flip_indices: Sequence[int] | None = None,
        **further: Any,
    ) -> list[dict]:
        """See the base."""

        def expected(seen: ImageEvidence, people: Instances) -> torch.Tensor:
            return self.pose_scorer.expected_oks(seen.maps, seen.stride, people, flip_indices)

        return super().assemble_people(
            evidence, sizes, flip_indices, pose_factor=expected, **further
        )

    def _best_oks(self, people: Instances, truth: Instances) -> torch.Tensor:
        """(P,) OKS of each pose with the annotated person whom it resembles most."""
        areas = AREA_OF_BOX * truth.gt_boxes.area()
        if truth.has("gt_areas"):
            areas = truth.gt_areas
        sigmas = torch.tensor(self.sigmas, device=self.device)
        poses, known = people.pred_keypoints[..., :2], truth.gt_keypoints.tensor
        oks = oks_with_people(poses, known, areas, sigmas)
        return oks.amax(dim=1) if oks.shape[1] else oks.new_zeros(len(oks))

    def _zero(self) -> torch.Tensor:
        """0 that depends on the scorer, for batches without a pose."""
        return torch.stack([p.sum() for p in self.pose_scorer.parameters()]).sum() * 0


def _unknown(people: Instances, truth: Instances, crowds: torch.Tensor) -> torch.Tensor:
    """(P,) bool: nobody knows how good the pose is."""
    boxes = people.pred_boxes.tensor
    unlabelled = ~(truth.gt_keypoints.tensor[..., 2] > 0).any(dim=1)
    same = box_iou(boxes, truth.gt_boxes.tensor[unlabelled]) > _SAME_PERSON
    return mostly_inside(boxes, crowds) | same.any(dim=1)
