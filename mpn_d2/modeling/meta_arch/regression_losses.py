"""The losses of pose regression (spec sections 8 to 10).

Letters: N images, R locations of all levels, M positive ones, m of one image, P people of one
image, K keypoint types.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from mpn_d2.codecs.heatmap import encode_joint_cells
from mpn_d2.codecs.offsets import Locations, centerness, decode_offsets, encode_offsets
from mpn_d2.modeling.heads.location_targets import LocationTargets, Positives
from mpn_d2.modeling.heads.pose_scoring import OKSFilter, oks_with_people, scoring_loss
from mpn_d2.modeling.losses import focal_loss_sum, offset_loss
from mpn_d2.modeling.meta_arch.common import mean_over_processes
from mpn_d2.structures.outputs import LocationOutputs
from mpn_d2.structures.skeleton import get_skeleton

SCORE_TARGETS = ("refined", "init")
# Sum of OKS weights that a loss is divided by at least.
_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True, kw_only=True)
class PoseRegressionLosses:
    """Losses of all outputs of a batch.

    Attributes:
        sigmas: K OKS constants of the skeleton.
        weights: of "cls", "heatmap", "init", "refine", "psm", "centerness".
        oks_filter: of the first poses; None lets all train the second stage.
        relabel_dropped: locations whose pose it drops are background for the classification.
        weigh_by_oks: the OKS of a pose weighs its regression losses.
        score_target: "refined" or "init": the pose whose OKS the PSM learns.
        smooth_l1_beta: see `offset_loss`.
        focal_alpha, focal_gamma: see `focal_loss_sum`.

    Raises:
        ValueError: an unknown score_target, a weight or beta below 0.
    """

    sigmas: tuple[float, ...]
    weights: dict[str, float]
    oks_filter: OKSFilter | None = None
    relabel_dropped: bool = True
    weigh_by_oks: bool = True
    score_target: str = "refined"
    smooth_l1_beta: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.score_target not in SCORE_TARGETS:
            raise ValueError(
                f"MODEL.POSE_REGRESSION.PSM.TARGET is {self.score_target!r}; choose one of "
                + ", ".join(SCORE_TARGETS)
            )
        values = {f"{name.upper()}_WEIGHT": weight for name, weight in self.weights.items()}
        for key, value in {**values, "SMOOTH_L1_BETA": self.smooth_l1_beta}.items():
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"MODEL.POSE_REGRESSION.LOSS.{key} is {value}: 0 or more is needed"
                )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PoseRegressionLosses:
        """Those that MODEL.POSE_REGRESSION and MODEL.RETINANET.FOCAL_LOSS_* mean."""
        keys = cfg.MODEL.POSE_REGRESSION
        weights = cfg.MODEL.POSE_REGRESSION.LOSS
        oks_filter = None
        if keys.FILTER.ENABLED:
            oks_filter = OKSFilter(keys.FILTER.THRESH, keys.FILTER.KEEP_BEST)
        return cls(
            sigmas=tuple(get_skeleton(cfg.MODEL.SKELETON).sigmas),
            weights={
                "cls": weights.CLS_WEIGHT,
                "heatmap": weights.HEATMAP_WEIGHT,
                "init": weights.INIT_WEIGHT,
                "refine": weights.REFINE_WEIGHT,
                "psm": weights.PSM_WEIGHT,
                "centerness": weights.CENTERNESS_WEIGHT,
            },
            oks_filter=oks_filter,
            relabel_dropped=keys.FILTER.RELABEL_NEG,
            weigh_by_oks=keys.PSM.WEIGHT_REGRESSION,
            score_target=keys.PSM.TARGET,
            smooth_l1_beta=weights.SMOOTH_L1_BETA,
            focal_alpha=cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA,
            focal_gamma=cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA,
        )

    def __call__(
        self, outputs: LocationOutputs, locations: Locations, targets: LocationTargets
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Weighted losses by name, and numbers a batch: positive locations and those kept by the
        filter, per image."""
        positives = targets.positives(locations)
        first = by_location(outputs.first_offsets)[positives.image, positives.place]
        first_oks = self._oks(first, positives, targets)
        kept = self._filter(first_oks, positives)
        losses = {"cls": self._cls_loss(outputs, positives, targets, kept)}
        losses["init"] = self._offset_loss(first, positives, _best(first_oks))
        score_oks = first_oks
        if outputs.final_offsets is not None:
            final = by_location(outputs.final_offsets)[positives.image, positives.place]
            final_oks = self._oks(final, positives, targets)
            losses["refine"] = self._offset_loss(final, positives, _best(final_oks), kept)
            score_oks = final_oks if self.score_target == "refined" else first_oks
        if outputs.score_logits is not None:
            logits = by_location(outputs.score_logits)[positives.image, positives.place, 0]
            total = scoring_loss(logits[kept], _best(score_oks)[kept])
            losses["psm"] = total / mean_over_processes(int(kept.sum()), logits.device)
        if outputs.centerness_logits is not None:
            losses["centerness"] = self._centerness_loss(outputs.centerness_logits, positives)
        if outputs.joint_logits is not None:
            losses["heatmap"] = self._heatmap_loss(outputs.joint_logits, locations, targets)
        count = len(targets.keypoints)
        numbers = {"positives": len(kept) / count, "kept": int(kept.sum()) / count}
        return {name: self.weights[name] * loss for name, loss in losses.items()}, numbers

    @torch.no_grad()
    def _oks(
        self, offsets: torch.Tensor, positives: Positives, targets: LocationTargets
    ) -> list[torch.Tensor]:
        """Per image (m, P) OKS of the poses (M, 2K) of its positive locations with its people."""
        poses = decode_offsets(offsets.float(), positives.points, positives.strides)
        by_image = poses.split(positives.counts)
        sigmas = torch.tensor(self.sigmas, device=poses.device)
        return [
            oks_with_people(found, keypoints, areas, sigmas)
            for found, keypoints, areas in zip(
                by_image, targets.keypoints, targets.areas, strict=True
            )
        ]

    def _filter(self, oks: list[torch.Tensor], positives: Positives) -> torch.Tensor:
        """(M,) bool: poses that train the second stage."""
        if self.oks_filter is None:
            return torch.ones_like(positives.owners, dtype=torch.bool)
        owners = positives.owners.split(positives.counts)
        return torch.cat([self.oks_filter(*pair) for pair in zip(oks, owners, strict=True)])

    def _cls_loss(
        self,
        outputs: LocationOutputs,
        positives: Positives,
        targets: LocationTargets,
        kept: torch.Tensor,
    ) -> torch.Tensor:
        """Focal loss per positive location and image (spec section 10)."""
        logits = by_location(outputs.cls_logits)[..., 0]
        labels = torch.zeros_like(logits, dtype=torch.float32)
        ones = kept if self.relabel_dropped else torch.ones_like(kept)
        labels[positives.image, positives.place] = ones.float()
        valid = ~targets.ignored | (targets.owners >= 0)
        total = self._focal_loss(logits, labels, valid)
        return total / mean_over_processes(int(ones.sum()) + len(logits), logits.device)

    def _heatmap_loss(
        self, logits: torch.Tensor, locations: Locations, targets: LocationTargets
    ) -> torch.Tensor:
        """Focal loss of the joints' cells on the finest level, per joint cell and image."""
        count, num_keypoints, height, width = logits.shape
        stride = int(locations.strides[0])
        cells = encode_joint_cells(targets.keypoints, num_keypoints, (height, width), stride)
        ignored = targets.ignored[:, : height * width].view(count, 1, height, width)
        total = self._focal_loss(logits, cells, ~ignored | (cells > 0))
        return total / mean_over_processes(int(cells.sum()) + count, logits.device)

    def _focal_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        return focal_loss_sum(logits, labels, valid, alpha=self.focal_alpha, gamma=self.focal_gamma)

    def _offset_loss(
        self,
        offsets: torch.Tensor,
        positives: Positives,
        oks: torch.Tensor,
        chosen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Smooth L1 of (M, 2K) offsets, a mean over the `chosen` poses weighted by their OKS."""
        goals, labelled = encode_offsets(positives.keypoints, positives.points, positives.strides)
        weights = oks if self.weigh_by_oks else torch.ones_like(oks)
        if chosen is not None:
            weights = weights * chosen
        total = offset_loss(offsets, goals, labelled, weights, beta=self.smooth_l1_beta)
        return total / mean_over_processes(
            float(weights.sum()), offsets.device, least=_LEAST_WEIGHT
        )

    def _centerness_loss(self, levels: list[torch.Tensor], positives: Positives) -> torch.Tensor:
        """Cross entropy per positive location with the centre-ness in the box that it is of."""
        logits = by_location(levels)[positives.image, positives.place, 0]
        total = scoring_loss(logits, centerness(positives.points, positives.boxes))
        return total / mean_over_processes(len(logits), logits.device)


def by_location(levels: list[torch.Tensor]) -> torch.Tensor:
    """Levels (N, C, H_l, W_l) -> (N, R, C)."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def _best(oks: list[torch.Tensor]) -> torch.Tensor:
    """Per image (m, P) -> (M,) OKS with the person whom each pose resembles most."""
    return torch.cat([x.amax(dim=1) if x.shape[1] else x.new_zeros(len(x)) for x in oks])
