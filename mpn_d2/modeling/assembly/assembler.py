"""Grid assembler: keypoint candidates and person boxes to one pose per box.

Letters: N images, B boxes that take part (all images together), P boxes of the fullest image,
K keypoint types, M candidates of one type in the fullest image, h x w cells of a box grid.
All boxes of all images pass through at once. MultiPoseNet section 3.3; spec section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from mpn_d2.codecs import person_grid
from mpn_d2.modeling.assembly.build import (
    POSE_ASSEMBLER_REGISTRY,
    build_evidence,
    build_grid_input,
    build_matching,
)
from mpn_d2.modeling.assembly.evidence import GridEvidence
from mpn_d2.modeling.assembly.grid_input import GridInput
from mpn_d2.modeling.assembly.matching import Matching, MatchingProblem
from mpn_d2.structures.outputs import AssembledPoses, Candidates, HeatmapOutputs
from mpn_d2.structures.skeleton import get_skeleton

FALLBACKS = ("none", "argmax")


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


@POSE_ASSEMBLER_REGISTRY.register()
class GridAssembler(nn.Module):
    """Rates candidates by evidence in the grid of each box, then matches them to boxes.

    The score of a (box, candidate) pair is the candidate's score times the evidence of its type
    summed over a window around its cell; 0 outside the enlarged box (spec 5.6).

    Args:
        grid_input: keypoints of a box to its input grid.
        evidence: input grids to evidence.
        matching: pair scores to choices.
        num_keypoints: K.
        size: (h, w).
        margin: share of its width and height that a box reaches further on each side.
        window: odd side of the window, cells.
        label_sigma: blur of the training label, cells.
        fallback: "none" leaves a joint without candidate out; "argmax" puts it at the largest
            evidence with score 0 (every unassigned joint; the authors' code does so only in
            images where some type has no candidate at all).
        box_score_thresh: boxes with a lower score claim nothing.
        score_times_box: multiply the pose score by the box score, where there is one.
    """

    @configurable
    def __init__(
        self,
        *,
        grid_input: GridInput,
        evidence: GridEvidence,
        matching: Matching,
        num_keypoints: int,
        size: tuple[int, int] = (56, 36),
        margin: float = 0.21,
        window: int = 15,
        label_sigma: float = 2.0,
        fallback: str = "none",
        box_score_thresh: float = 0.0,
        score_times_box: bool = False,
    ) -> None:
        super().__init__()
        if fallback not in FALLBACKS:
            raise ValueError(
                f"MODEL.ASSEMBLER.FALLBACK is {fallback!r}; choose one of {', '.join(FALLBACKS)}"
            )
        self.grid_input = grid_input
        self.evidence = evidence
        self.matching = matching
        self.num_keypoints = num_keypoints
        self.size = size
        self.margin = margin
        self.window = window
        self.label_sigma = label_sigma
        self.fallback = fallback
        self.box_score_thresh = box_score_thresh
        self.score_times_box = score_times_box

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        return {
            "grid_input": build_grid_input(cfg),
            "evidence": build_evidence(cfg),
            "matching": build_matching(cfg),
            "num_keypoints": get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
            "size": tuple(cfg.MODEL.PRN.CROP),
            "margin": cfg.MODEL.PRN.BOX_MARGIN,
            "window": cfg.MODEL.ASSEMBLER.WINDOW,
            "label_sigma": cfg.MODEL.PRN.LABEL_SIGMA,
            "fallback": cfg.MODEL.ASSEMBLER.FALLBACK,
            "box_score_thresh": cfg.MODEL.ASSEMBLER.BOX_SCORE_THRESH,
            "score_times_box": cfg.MODEL.ASSEMBLER.SCORE_TIMES_BOX,
        }

    @property
    def differentiable(self) -> bool:
        """Whether the loss on predictions passes gradients to the maps."""
        return self.grid_input.differentiable

    @property
    def device(self) -> torch.device:
        """Where the evidence lives."""
        return next(self.evidence.parameters()).device

    def losses(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """Training loss of people, made from annotations alone (data/association.py).

        Args:
            samples: dicts with "keypoints" (people, K, 3) x, y, v of everybody in the image,
                "owner", the row of the sample's person, and its "box" (4,), one frame.

        Returns:
            {"loss_assembly_prn": scalar}, with zero gradients for an empty list.
        """
        if not samples:
            return {"loss_assembly_prn": self._zero()}
        return {"loss_assembly_prn": self.evidence.loss(*self.encode_samples(samples))}

    def losses_on_predictions(
        self,
        candidates: list[Candidates],
        boxes: list[torch.Tensor],
        owners: list[torch.Tensor],
        maps: HeatmapOutputs,
    ) -> dict[str, torch.Tensor]:
        """Training loss of predicted keypoints in predicted boxes (review notes, section 4.2).

        Args:
            candidates, boxes, maps: as for `inference`; gradients reach the maps if the grid
                input is differentiable.
            owners: per image (P, K, 3) x, y, v, the annotated person of each box.

        Returns:
            As `losses`.
        """
        if sum(len(box) for box in boxes) == 0:
            return {"loss_assembly_prn": self._zero()}
        batch = self.collate(candidates, boxes)
        labels = person_grid.encode_label(
            torch.cat(owners), batch.boxes, self.size, self.label_sigma
        )
        inputs = self.encode_people(batch, maps)
        return {"loss_assembly_prn": self.evidence.loss(inputs, labels)}

    def _zero(self) -> torch.Tensor:
        """The loss of nobody: 0, with zero gradients for the evidence.

        The evidence is asked all the same: one that sums up over all processes (UCR) must do so in
        each of them.
        """
        nobody = torch.zeros(0, self.num_keypoints, *self.size, device=self.device)
        return self.evidence.loss(nobody, nobody)

    @torch.no_grad()
    def encode_samples(self, samples: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Input grids and label grids of training samples, both (len(samples), K, h, w)."""
        people = [sample["keypoints"].to(self.device) for sample in samples]
        boxes = torch.stack([sample["box"] for sample in samples]).to(self.device)
        owners = torch.stack([poses[sample["owner"]] for poses, sample in zip(people, samples)])
        by_type = pad_sequence(people, batch_first=True).transpose(1, 2)
        points, valid = by_type[..., :2], by_type[..., 2] > 0
        labels = person_grid.encode_label(owners, boxes, self.size, self.label_sigma)
        return self.grid_input.from_annotations(points, valid, boxes), labels

    @torch.no_grad()
    def inference(
        self,
        candidates: list[Candidates],
        boxes: list[torch.Tensor],
        box_scores: list[torch.Tensor] | None = None,
        maps: HeatmapOutputs | None = None,
    ) -> list[AssembledPoses]:
        """Poses of all boxes of all images.

        Args:
            candidates: per image, in the frame of its boxes.
            boxes: per image (P, 4) x1, y1, x2, y2; P may be 0.
            box_scores: per image (P,); without them every box takes part and counts as 1.
            maps: raw heatmaps of the batch, needed by grid input "heatmap" only; their frame is
                that of the boxes.

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
        return self.assemble(batch, self.evidence(self.encode_people(batch, maps)))

    def collate(
        self,
        candidates: list[Candidates],
        boxes: list[torch.Tensor],
        box_scores: list[torch.Tensor] | None = None,
    ) -> PeopleBatch:
        """Padded tensors of a batch; arguments as for `inference`, at least one image."""
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
            takes_part = [score >= self.box_score_thresh for score in scores]
        num_boxes = [len(box) for box in boxes]
        device = boxes[0].device
        rows = torch.cat(takes_part)
        images = torch.arange(len(boxes), device=device)
        image = images.repeat_interleave(torch.tensor(num_boxes, device=device))
        slot = torch.cat([torch.arange(count, device=device) for count in num_boxes])
        ids = _ids_by_type(candidates, self.num_keypoints)
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

    def encode_people(self, batch: PeopleBatch, maps: HeatmapOutputs | None = None) -> torch.Tensor:
        """Input grids (B, K, h, w) of a batch; in "heatmap" mode differentiable in the maps."""
        points, valid = batch.points[batch.image], batch.ids[batch.image] >= 0
        return self.grid_input(points, valid, batch.boxes, batch.image, maps)

    def assemble(self, batch: PeopleBatch, evidence: torch.Tensor) -> list[AssembledPoses]:
        """Matches the candidates of a batch by given evidence (B, K, h, w); see `inference`."""
        pair_scores = self._spread(self._pair_scores(batch, evidence), batch)
        need_peaks = self.matching.joints_at_peaks or self.fallback == "argmax"
        peaks = self._peaks(batch, evidence) if need_peaks else None
        distances = None
        if self.matching.joints_at_peaks:
            gaps = peaks[..., None, :2] - batch.points[:, :, None]
            distances = gaps.norm(dim=-1).flatten(0, 1)
        problem = MatchingProblem(pair_scores.flatten(0, 1), distances)
        chosen = self.matching(problem).view(pair_scores.shape[:3])
        return self._poses(batch, chosen, peaks)

    def _pair_scores(self, batch: PeopleBatch, evidence: torch.Tensor) -> torch.Tensor:
        """(B, K, M) score of each box with each candidate of its image."""
        points, scores = batch.points[batch.image], batch.scores[batch.image]
        cells = person_grid.points_to_cells(points, batch.boxes, self.size)
        sums = person_grid.window_sums(evidence, self.window).flatten(2)
        pair_scores = scores * sums.gather(2, cells[..., 1] * self.size[1] + cells[..., 0])
        inside = person_grid.in_margin(points, batch.boxes, self.margin)
        # `> 0` also turns NaN, from broken maps or weights, into "may not match".
        allowed = inside & (batch.ids[batch.image] >= 0) & (pair_scores > 0)
        return torch.where(allowed, pair_scores, 0.0)

    def _peaks(self, batch: PeopleBatch, evidence: torch.Tensor) -> torch.Tensor:
        """(N, K, P, 3) x, y of the largest evidence of each box, and 1 where there is any."""
        top, cell = evidence.flatten(2).max(dim=2)
        cells = torch.stack([cell % self.size[1], cell // self.size[1]], dim=-1)
        points = person_grid.cells_to_points(cells, batch.boxes, self.size)
        flags = (top > 0).to(points.dtype)
        return self._spread(torch.cat([points, flags[..., None]], dim=-1), batch)

    @staticmethod
    def _spread(values: torch.Tensor, batch: PeopleBatch) -> torch.Tensor:
        """(B, K, ...) values of boxes to (N, K, P, ...) by image, 0 for all other boxes."""
        num_images, num_slots = batch.box_scores.shape
        spread = values.new_zeros(num_images, max(num_slots, 1), *values.shape[1:])
        spread[batch.image, batch.slot] = values
        return spread.transpose(1, 2)

    def _poses(
        self, batch: PeopleBatch, chosen: torch.Tensor, peaks: torch.Tensor | None
    ) -> list[AssembledPoses]:
        """(N, K, P) chosen candidates, -1 for none, to poses per image."""
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
        pose_scores = scores.mean(dim=1)
        if self.score_times_box and batch.box_scores.shape[1]:
            pose_scores = pose_scores * batch.box_scores
        return [
            AssembledPoses(keypoints[n, :count], pose_scores[n, :count], ids[n, :count])
            for n, count in enumerate(batch.num_boxes)
        ]


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
