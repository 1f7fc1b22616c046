"""Learned evidence: a small network rates all (box, candidate) pairs of an image together. Ours.

Letters: N images, B boxes that take part (all images together), K keypoint types, M candidates of
one type in the fullest image, E pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch.nn.functional import binary_cross_entropy_with_logits

from mpn_d2.codecs import person_grid
from mpn_d2.modeling.assembly.build import EVIDENCE_REGISTRY
from mpn_d2.modeling.assembly.evidence import Evidence, Rating
from mpn_d2.modeling.assembly.pair_losses import ownership_loss, pose_quality
from mpn_d2.modeling.assembly.pair_network import PairFindings, PairNetwork, Pairs, box_features
from mpn_d2.modeling.assembly.people_batch import PeopleBatch, collate_people
from mpn_d2.structures.oks import AREA_OF_BOX, joint_similarity
from mpn_d2.structures.outputs import Candidates, HeatmapOutputs
from mpn_d2.structures.skeleton import get_skeleton

# Of the loss of expected places beside that of ownership.
_PLACE_WEIGHT = 1.0
# Of the loss of the expected quality of poses.
_OKS_WEIGHT = 1.0
# From there on (a joint's OKS term) a predicted keypoint is somebody's joint.
_LEAST_SIMILARITY = 0.5
# A pair that may match never scores 0, however unlikely it is.
_LEAST = 1e-6


class LearnedEvidence(Evidence):
    """Probability of each pair inside the margin, by a network that sees all boxes of the image.

    Args:
        network: pairs to logits.
        sigmas: (K,) OKS constants.
        margin: share of its width and height that a box reaches further on each side.
    """

    loss_name = "loss_assembly_pairs"
    by_image = True
    expects_oks = True

    def __init__(
        self, *, network: PairNetwork, sigmas: Sequence[float], margin: float = 0.6
    ) -> None:
        super().__init__()
        self.pair_network = network
        self.num_keypoints = len(sigmas)
        self.margin = margin
        self.register_buffer("sigmas", torch.tensor(sigmas), persistent=False)

    def rate(
        self,
        batch: PeopleBatch,
        maps: HeatmapOutputs | None = None,
        *,
        peaks: bool = False,
        oks: bool = False,
    ) -> Rating:
        """See the base; peaks are of boxes that have any candidate."""
        pairs, place = self.list_pairs(batch)
        found = self.pair_network(pairs)
        chance = found.probabilities()
        # `nan_to_num`: broken coordinates or weights mean "may not match".
        chance = torch.nan_to_num(chance + _LEAST, nan=0.0)
        scores = chance.new_zeros((batch.boxes.shape[0], *batch.ids.shape[1:]))
        scores[place] = chance
        if not (peaks or oks):
            return Rating(scores)
        places, quality = self.pair_network.people(found)
        corner, sides = _corner_and_sides(batch.boxes)
        points = corner[:, None] + places * sides[:, None]
        some = (scores > 0).flatten(1).any(dim=1)[:, None, None].expand(-1, self.num_keypoints, 1)
        return Rating(
            scores,
            peaks=torch.cat([points, some.to(points.dtype)], dim=2),
            pose_oks=torch.nan_to_num(quality.sigmoid(), nan=0.0),
        )

    def list_pairs(
        self, batch: PeopleBatch
    ) -> tuple[Pairs, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The pairs of a batch, and their (box, type, column) in (B, K, M)."""
        points = batch.points[batch.image]
        inside = person_grid.in_margin(points, batch.boxes, self.margin)
        inside = inside & (batch.ids[batch.image] >= 0)
        box, kind, column = inside.nonzero().unbind(1)
        kinds, columns = batch.ids.shape[1:]
        corner, sides = _corner_and_sides(batch.boxes)
        place = (points[box, kind, column] - corner[box]) / sides[box]
        every_kind = torch.arange(kinds, device=box.device)[:, None].expand_as(batch.ids)
        pairs = Pairs(
            box=box,
            slot=box * kinds + kind,
            candidate=(batch.image[box] * kinds + kind) * columns + column,
            kind=kind,
            place=place,
            score=batch.scores[batch.image[box], kind, column],
            box_features=box_features(batch.boxes, batch.image),
            candidate_kind=every_kind.flatten(),
        )
        return pairs, (box, kind, column)

    def loss(self, samples: list[dict]) -> torch.Tensor:
        """See the base; samples are images."""
        if not samples:
            total: Any = sum(parameter.sum() for parameter in self.parameters())
            return total * 0.0
        parts = [_candidates(sample) for sample in samples]
        candidates = [part.to(self.device) for part, _ in parts]
        boxes = [sample["boxes"].to(self.device) for sample in samples]
        batch = collate_people(candidates, boxes, num_keypoints=self.num_keypoints)
        pairs, place = self.list_pairs(batch)
        box, kind, column = place
        # Rows of candidates and of boxes are both the people's.
        owners = torch.nn.utils.rnn.pad_sequence(
            [row for _, row in parts], batch_first=True, padding_value=-1
        )
        ids = batch.ids[batch.image[box], kind, column]
        owner = owners.to(self.device)[batch.image[box], ids]
        truth = torch.cat([sample["keypoints"].to(self.device) for sample in samples])
        return self._loss(batch, pairs, place, owner == batch.slot[box], truth)

    def loss_on_predictions(
        self, batch: PeopleBatch, owners: torch.Tensor, maps: HeatmapOutputs
    ) -> torch.Tensor:
        """See the base. A box owns the candidate that its person's joint is nearest to, from an OKS
        term of 0.5 on, if that candidate lies nearest to the joint of no other box."""
        pairs, place = self.list_pairs(batch)
        box, kind, column = place
        points = batch.points[batch.image[box], kind, column]
        joints, areas = owners[box, kind], _areas(batch.boxes)[box]
        sigmas = self.sigmas[kind, None]
        near = joint_similarity(joints[:, None], points[:, None], areas, sigmas)[:, 0]
        near = torch.where((joints[:, 2] > 0) & (near >= _LEAST_SIMILARITY), near, 0.0)
        owned = near > 0
        num_slots = owners.shape[:2].numel()
        for index, count in ((pairs.slot, num_slots), (pairs.candidate, pairs.num_candidates)):
            best = near.new_zeros(count).scatter_reduce(0, index, near, "amax")
            owned &= near == best[index]
        return self._loss(batch, pairs, place, owned, owners)

    def _loss(
        self,
        batch: PeopleBatch,
        pairs: Pairs,
        place: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        owned: torch.Tensor,
        truth: torch.Tensor,
    ) -> torch.Tensor:
        """Of pairs, of which the box's person owns some, and (B, K, 3) people of the boxes."""
        box, kind, column = place
        found = self.pair_network(pairs)
        places, quality = self.pair_network.people(found)
        points = batch.points[batch.image[box], kind, column]
        chance = found.probabilities().detach()
        wanted = pose_quality(chance, points, pairs, truth, _areas(batch.boxes), self.sigmas)
        rating = binary_cross_entropy_with_logits(quality, wanted, reduction="sum") / len(wanted)
        return (
            _all_rounds_loss(found, pairs, owned)
            + _PLACE_WEIGHT * _place_loss(places, truth, batch.boxes)
            + _OKS_WEIGHT * rating
        )


def _all_rounds_loss(found: PairFindings, pairs: Pairs, owned: torch.Tensor) -> torch.Tensor:
    """Ownership loss of the last round, and half of it of all before."""
    losses = [ownership_loss(found.first, pairs, owned)]
    kept = owned[found.kept]
    losses += [ownership_loss(logits, found.pairs, kept) for logits in found.rounds]
    return (sum(losses) + losses[-1]) / 2


def _corner_and_sides(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 2) upper left corners, and widths and heights of at least a pixel."""
    return boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    """(B,) of the boxes' people."""
    return AREA_OF_BOX * _corner_and_sides(boxes)[1].prod(dim=1)


def _place_loss(places: torch.Tensor, truth: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Distance, in sides of the box, between expected and true joints, sum over joints per box.

    Args:
        places: (B, K, 2) of the network.
        truth: (B, K, 3) x, y, v of the boxes' people; v = 0 counts nothing.
        boxes: (B, 4).
    """
    corner, sides = _corner_and_sides(boxes)
    wanted = (truth[..., :2] - corner[:, None]) / sides[:, None]
    # Joints far outside a wrong box must not rule the loss.
    labelled = (truth[..., 2] > 0) & (wanted > -1).all(dim=-1) & (wanted < 2).all(dim=-1)
    gaps = (places - wanted).abs().sum(dim=-1)
    return torch.where(labelled, gaps, 0.0).sum() / max(len(boxes), 1)


def _candidates(sample: dict) -> tuple[Candidates, torch.Tensor]:
    """Candidates of an image sample and the person (row) that each belongs to."""
    joints = sample.get("candidates", sample["keypoints"])
    row, kind = (joints[..., 2] > 0).nonzero().unbind(1)
    points = joints[row, kind, :2]
    scores = sample.get("candidate_scores", torch.ones_like(joints[..., 0]))[row, kind]
    return Candidates(points, kind, scores), row


@EVIDENCE_REGISTRY.register_as("learned")
def build_learned(cfg: CfgNode) -> LearnedEvidence:
    """Our network."""
    if cfg.MODEL.ASSEMBLER.SAMPLES != "images":
        raise ValueError(
            "MODEL.ASSEMBLER.EVIDENCE learned trains on all people of an image together: set "
            "MODEL.ASSEMBLER.SAMPLES to images"
        )
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    network = PairNetwork(
        num_keypoints=skeleton.num_keypoints,
        width=cfg.MODEL.ASSEMBLER.LEARNED.WIDTH,
        message=cfg.MODEL.ASSEMBLER.LEARNED.MESSAGE,
        box_width=cfg.MODEL.ASSEMBLER.LEARNED.BOX_WIDTH,
        rounds=cfg.MODEL.ASSEMBLER.LEARNED.ROUNDS,
        least=cfg.MODEL.ASSEMBLER.LEARNED.LEAST,
    )
    return LearnedEvidence(
        network=network, sigmas=skeleton.sigmas, margin=cfg.MODEL.ASSEMBLER.LEARNED.MARGIN
    )
