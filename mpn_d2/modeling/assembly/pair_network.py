"""Pair network: which candidate belongs to which box, decided for all boxes of an image together.

Ours. Every pair of a box and a candidate inside its margin is an edge of a graph between slots (one
per box and keypoint type) and candidates. A few rounds of messages let a pair know what its box has
already got (where the other joints of that person seem to lie, left and right told apart) and who
else wants its candidate. The network sees geometry, types and scores alone, never the image.

Letters: E pairs, B boxes, K keypoint types, S = B * K slots, C candidates, D features of a pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from mpn_d2.structures.oks import joint_similarity

# Numbers that describe a box, see `box_features`.
BOX_FEATURES = 5
# Octaves of sines and cosines of a candidate's place in its box.
_OCTAVES = 4
# Added to a slot's share of presence, so that an empty slot's place is 0.
_EMPTY = 0.1


@dataclass
class Pairs:
    """All pairs of a batch, as a list.

    Attributes:
        box: (E,) int64 row of the box.
        slot: (E,) int64 box * K + type.
        candidate: (E,) int64.
        kind: (E,) int64 keypoint type.
        place: (E, 2) x, y of the candidate in its box, from 0 to 1 inside it.
        score: (E,) of the candidate.
        box_features: (B, BOX_FEATURES).
        candidate_kind: (C,) int64 keypoint type of each candidate; those without a pair count for
            nothing.
    """

    box: torch.Tensor
    slot: torch.Tensor
    candidate: torch.Tensor
    kind: torch.Tensor
    place: torch.Tensor
    score: torch.Tensor
    box_features: torch.Tensor
    candidate_kind: torch.Tensor

    @property
    def num_candidates(self) -> int:
        """C."""
        return len(self.candidate_kind)


@dataclass
class PairLogits:
    """What one round says.

    Attributes:
        pairs: (E,) logit of each pair.
        no_candidate: (S,) logit that a slot has none of its candidates.
        no_box: (C,) logit that a candidate belongs to none of its boxes.
    """

    pairs: torch.Tensor
    no_candidate: torch.Tensor
    no_box: torch.Tensor

    def shares(self, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """(E,) probability of a pair among its slot's, and among its candidate's, pairs."""
        of_slot = (
            self.pairs - segment_logsumexp(self.pairs, pairs.slot, self.no_candidate)[pairs.slot]
        )
        total = segment_logsumexp(self.pairs, pairs.candidate, self.no_box)
        return of_slot.exp(), (self.pairs - total[pairs.candidate]).exp()

    def probabilities(self, pairs: Pairs) -> torch.Tensor:
        """(E,) geometric mean of both shares: 1 where slot and candidate want nobody else."""
        of_slot, of_candidate = self.shares(pairs)
        return (of_slot * of_candidate).sqrt()


def segment_sum(values: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """(E, ...) values summed by index into (count, ...)."""
    return values.new_zeros((count, *values.shape[1:])).index_add(0, index, values)


def segment_logsumexp(
    logits: torch.Tensor, index: torch.Tensor, default: torch.Tensor
) -> torch.Tensor:
    """(count,) logsumexp of the (E,) logits of each index and the index's own default."""
    top = default.detach().scatter_reduce(0, index, logits.detach(), "amax")
    total = (default - top).exp().index_add(0, index, (logits - top[index]).exp())
    return total.log() + top


def box_features(boxes: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """What a pair knows of its box: (B, BOX_FEATURES).

    Log aspect ratio, log size (root of the area, about 0 at 90 pixels), largest share of it that
    another box of its image covers, log of 1 + number of boxes it meets, largest IoU with one.

    Args:
        boxes: (B, 4) x1, y1, x2, y2, pixels.
        image: (B,) image of each.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
    area = sides.prod(dim=1)
    low = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0.0).prod(dim=2)
    others = (image[:, None] == image) & ~torch.eye(
        len(boxes), dtype=torch.bool, device=boxes.device
    )
    shared = torch.where(others, shared, 0.0)
    if len(boxes) == 0:
        return boxes.new_zeros(0, BOX_FEATURES)
    iou = shared / (area[:, None] + area - shared).clamp(min=1.0)
    return torch.stack(
        [
            (sides[:, 0] / sides[:, 1]).log(),
            area.log() / 2 - 4.5,
            (shared.amax(dim=1) / area).clamp(max=1.0),
            (shared > 0).sum(dim=1).to(boxes.dtype).log1p(),
            iou.amax(dim=1),
        ],
        dim=1,
    )


class BoxSummary(nn.Module):
    """What each box has got so far: its likely joints, told by their pairs, to one vector a box.

    Args:
        num_keypoints: K.
        width: D.
        message: numbers that a pair tells its slot.
        box_width: numbers in the vector.
    """

    def __init__(self, *, num_keypoints: int, width: int, message: int, box_width: int) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.to_slot = nn.Linear(width, message)
        self.box = _two_layers(
            num_keypoints * (message + 3) + BOX_FEATURES, 2 * box_width, box_width
        )

    def forward(
        self, normed: torch.Tensor, weight: torch.Tensor, pairs: Pairs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(E, D) features and (E,) weights to (S, message) slots and (B, box_width) boxes."""
        num_boxes = len(pairs.box_features)
        ones = torch.ones_like(pairs.place[:, :1])
        told = torch.cat([self.to_slot(normed), pairs.place, ones], dim=1) * weight[:, None]
        slots = segment_sum(told, pairs.slot, num_boxes * self.num_keypoints)
        presence = slots[:, -1:]
        place = slots[:, -3:-1] / (presence + _EMPTY)
        slots = torch.cat([slots[:, :-3], place, presence], dim=1)
        poses = slots.view(num_boxes, self.num_keypoints * slots.shape[1])
        return slots[:, :-3], self.box(torch.cat([poses, pairs.box_features], dim=1))


class PairRound(nn.Module):
    """One exchange of messages between pairs, boxes and candidates.

    Args:
        num_keypoints: K.
        width: D.
        message: numbers that a pair tells its slot and its candidate, and a box each of its slots;
            the first two of the latter are where it expects the joint.
        box_width: features of a box.
    """

    def __init__(self, *, num_keypoints: int, width: int, message: int, box_width: int) -> None:
        super().__init__()
        self.message = message
        self.norm = nn.LayerNorm(width)
        self.summary = BoxSummary(
            num_keypoints=num_keypoints, width=width, message=message, box_width=box_width
        )
        self.from_box = nn.Linear(box_width, num_keypoints * message)
        self.to_candidate = nn.Linear(width, message)
        self.update = _two_layers(width + 3 * message + 7, 2 * width, width)

    def forward(self, features: torch.Tensor, logits: PairLogits, pairs: Pairs) -> torch.Tensor:
        """(E, D) features of the pairs to the next ones."""
        of_slot, of_candidate = logits.shares(pairs)
        weight = (of_slot * of_candidate).sqrt()
        normed = self.norm(features)
        slots, boxes = self.summary(normed, weight, pairs)
        expected = self.from_box(boxes).view(len(slots), self.message)[pairs.slot]
        offset = pairs.place - expected[:, :2]
        told = self.to_candidate(normed) * of_candidate[:, None]
        wanted = segment_sum(told, pairs.candidate, pairs.num_candidates)[pairs.candidate]
        news = [
            normed,
            slots[pairs.slot],
            wanted,
            expected,
            offset,
            offset.square(),
            torch.stack([of_slot, of_candidate, weight], dim=1),
        ]
        return features + self.update(torch.cat(news, dim=1))


class PairNetwork(nn.Module):
    """Logits of all pairs, after each round; in the end, what each box makes of its person.

    Args:
        num_keypoints: K.
        width: D.
        message, box_width: see `PairRound`.
        rounds: exchanges of messages; 0 rates each pair alone (a learned prior).
    """

    def __init__(
        self,
        *,
        num_keypoints: int,
        width: int = 64,
        message: int = 24,
        box_width: int = 128,
        rounds: int = 4,
    ) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.kind = nn.Embedding(num_keypoints, width)
        inputs = 2 + 4 * _OCTAVES + BOX_FEATURES + 3 + width
        self.first = _two_layers(inputs, 2 * width, width)
        self.rounds = nn.ModuleList(
            PairRound(
                num_keypoints=num_keypoints, width=width, message=message, box_width=box_width
            )
            for _ in range(rounds)
        )
        self.readers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1)) for _ in range(rounds + 1)
        )
        self.last_norm = nn.LayerNorm(width)
        self.summary = BoxSummary(
            num_keypoints=num_keypoints, width=width, message=message, box_width=box_width
        )
        self.to_places = nn.Linear(box_width, 2 * num_keypoints)
        self.to_oks = _two_layers(box_width, box_width, 1)
        self.no_candidate = nn.Parameter(torch.zeros(rounds + 1, num_keypoints))
        self.no_box = nn.Parameter(torch.zeros(rounds + 1, num_keypoints))

    def forward(self, pairs: Pairs) -> tuple[list[PairLogits], torch.Tensor]:
        """Logits before the first round and after each; features (E, D) after the last."""
        features = self.first(self._inputs(pairs))
        found = [self._read(0, features, pairs)]
        for number, step in enumerate(self.rounds, start=1):
            features = step(features, found[-1], pairs)
            found.append(self._read(number, features, pairs))
        return found, features

    def people(
        self, features: torch.Tensor, logits: PairLogits, pairs: Pairs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each box makes of its person.

        Args:
            features, logits: after the last round.
            pairs: the network's input.

        Returns:
            (B, K, 2) where it expects each joint, found or not, 0 to 1 inside the box; (B,) logit
            of how good the pose will be, see `pose_quality`.
        """
        weight = logits.probabilities(pairs)
        _, boxes = self.summary(self.last_norm(features), weight, pairs)
        # From the middle of the box.
        places = self.to_places(boxes).view(-1, self.num_keypoints, 2) + 0.5
        return places, self.to_oks(boxes)[:, 0]

    def _read(self, number: int, features: torch.Tensor, pairs: Pairs) -> PairLogits:
        return PairLogits(
            pairs=self.readers[number](features)[:, 0],
            no_candidate=self.no_candidate[number].repeat(len(pairs.box_features)),
            no_box=self.no_box[number][pairs.candidate_kind],
        )

    def _inputs(self, pairs: Pairs) -> torch.Tensor:
        """(E, inputs) what a pair knows before anybody told it anything."""
        one = torch.ones_like(pairs.score)
        rivals = segment_sum(one, pairs.candidate, pairs.num_candidates)[pairs.candidate]
        choices = segment_sum(one, pairs.slot, len(pairs.box_features) * self.num_keypoints)
        scales = math.pi * 2.0 ** (torch.arange(_OCTAVES, device=one.device) - 1)
        waves = (pairs.place[:, :, None] * scales).flatten(1)
        parts = [pairs.place, waves.sin(), waves.cos(), pairs.box_features[pairs.box]]
        counts = [pairs.score, rivals.log(), choices[pairs.slot].log()]
        return torch.cat([*parts, torch.stack(counts, dim=1), self.kind(pairs.kind)], dim=1)


def ownership_loss(found: list[PairLogits], pairs: Pairs, owned: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of slots over their candidates and of candidates over their boxes.

    The last round counts once, earlier ones half; per box.

    Args:
        found: of the network.
        pairs: its input.
        owned: (E,) bool, the candidate is a joint of the box's person.
    """
    num_slots, num_candidates = len(found[0].no_candidate), pairs.num_candidates
    target = owned.to(pairs.place.dtype)
    slot_has = segment_sum(target, pairs.slot, num_slots) > 0
    candidate_has = segment_sum(target, pairs.candidate, num_candidates) > 0
    ones = torch.ones_like(target)
    slot_counts = segment_sum(ones, pairs.slot, num_slots) > 0
    candidate_counts = segment_sum(ones, pairs.candidate, num_candidates) > 0
    total = 0.0
    for number, logits in enumerate(found):
        slots = segment_logsumexp(logits.pairs, pairs.slot, logits.no_candidate)
        slots = slots - torch.where(slot_has, 0.0, logits.no_candidate)
        candidates = segment_logsumexp(logits.pairs, pairs.candidate, logits.no_box)
        candidates = candidates - torch.where(candidate_has, 0.0, logits.no_box)
        both = slots[slot_counts].sum() + candidates[candidate_counts].sum()
        loss = both - 2.0 * (logits.pairs * target).sum()
        total = total + (1.0 if number == len(found) - 1 else 0.5) * loss
    return total / max(len(pairs.box_features), 1)


def pose_quality(
    chance: torch.Tensor,
    points: torch.Tensor,
    pairs: Pairs,
    truth: torch.Tensor,
    areas: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """(B,) share of COCO's OKS thresholds that a pose of each slot's likeliest candidate passes.

    The mean of it over people is what AP counts: a pose score that expects it ranks best.

    Args:
        chance: (E,) probability of each pair.
        points: (E, 2) its candidate, pixels.
        pairs: of the network.
        truth: (B, K, 3) x, y, v of the boxes' people, pixels; without a joint with v > 0: 0.
        areas: (B,) of them, square pixels.
        sigmas: (K,) of the skeleton.
    """
    count = truth.shape[0] * truth.shape[1]
    best = chance.new_zeros(count).scatter_reduce(0, pairs.slot, chance, "amax")
    chosen = (chance >= best[pairs.slot]).to(chance.dtype)
    where = segment_sum(points * chosen[:, None], pairs.slot, count)
    some = segment_sum(chosen, pairs.slot, count)
    poses = (where / some.clamp(min=1.0)[:, None]).view(*truth.shape[:2], 2)
    similarity = joint_similarity(truth, poses, areas, sigmas) * (some > 0).view(truth.shape[:2])
    labelled = truth[..., 2] > 0
    oks = (similarity * labelled).sum(dim=1) / labelled.sum(dim=1).clamp(min=1)
    thresholds = torch.arange(10, device=oks.device) * 0.05 + 0.5
    return (oks[:, None] >= thresholds).to(oks.dtype).mean(dim=1)


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
