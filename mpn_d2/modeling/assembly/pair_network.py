"""Pair network: which candidate belongs to which box, decided for all boxes of an image together.

Ours. Every pair of a box and a candidate inside its margin is an edge of a graph between slots (one
per box and keypoint type) and candidates. A few rounds of messages let a pair know what its box has
already got (where the other joints of that person seem to lie, left and right told apart) and who
else wants its candidate. The network sees geometry, types and scores alone, never the image.

Layers that would read gathered rows of boxes or candidates beside those of pairs run before the
gathering: the same sum, for far fewer rows.

Letters: E pairs, B boxes, K keypoint types, S = B * K slots, C candidates, D features of a pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

# Numbers that describe a box, see `box_features`.
BOX_FEATURES = 5
# Octaves of sines and cosines of a candidate's place in its box.
_OCTAVES = 4
# Added to a slot's share of presence, so that an empty slot's place is 0.
_EMPTY = 0.1
# Logits stay within these bounds: exponentials of them can be summed as they are.
_LARGEST_LOGIT = 30.0
# What a pair that was dropped early keeps of its first probability.
_DROPPED = 0.01


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
        return self.candidate_kind.shape[0]

    def select(self, kept: torch.Tensor) -> Pairs:
        """Some of the pairs, by index; boxes and candidates stay."""
        return Pairs(
            box=self.box[kept],
            slot=self.slot[kept],
            candidate=self.candidate[kept],
            kind=self.kind[kept],
            place=self.place[kept],
            score=self.score[kept],
            box_features=self.box_features,
            candidate_kind=self.candidate_kind,
        )


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
        powers = self.pairs.exp()
        of_slot = segment_exp_sum(self.pairs, pairs.slot, self.no_candidate, powers)
        of_candidate = segment_exp_sum(self.pairs, pairs.candidate, self.no_box, powers)
        return powers / of_slot[pairs.slot], powers / of_candidate[pairs.candidate]

    def probabilities(self, pairs: Pairs) -> torch.Tensor:
        """(E,) geometric mean of both shares: 1 where slot and candidate want nobody else."""
        of_slot, of_candidate = self.shares(pairs)
        return (of_slot * of_candidate).sqrt()


@dataclass
class PairFindings:
    """What the network says of a batch.

    Attributes:
        first: of all E pairs, before they hear of each other.
        first_chances: (E,) probabilities by them.
        kept: (F,) int64 index of those that take part in the rounds.
        pairs: these.
        rounds: after each round, of the kept pairs.
        features: (F, D) after the last round.
    """

    first: PairLogits
    first_chances: torch.Tensor
    kept: torch.Tensor
    pairs: Pairs
    rounds: list[PairLogits]
    features: torch.Tensor

    @property
    def last(self) -> PairLogits:
        """The final word on the kept pairs."""
        return self.rounds[-1] if self.rounds else self.first

    def probabilities(self) -> torch.Tensor:
        """(E,) of all pairs; those that were dropped keep little of what they had."""
        dropped = _DROPPED * self.first_chances
        return dropped.index_copy(0, self.kept, self.last.probabilities(self.pairs))


def segment_sum(values: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """(E, ...) values summed by index into (count, ...)."""
    return values.new_zeros((count, *values.shape[1:])).index_add(0, index, values)


def segment_exp_sum(
    logits: torch.Tensor,
    index: torch.Tensor,
    default: torch.Tensor,
    powers: torch.Tensor | None = None,
) -> torch.Tensor:
    """(count,) sum of the exponentials of the (E,) bounded logits of each index and its default."""
    return default.exp().index_add(0, index, logits.exp() if powers is None else powers)


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
    row = torch.arange(boxes.shape[0], device=boxes.device)
    others = (image[:, None] == image) & (row[:, None] != row)
    shared = torch.where(others, shared, 0.0)
    if boxes.shape[0] == 0:
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
        num_boxes = pairs.box_features.shape[0]
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
        self.hear_slot = nn.Linear(2 * message, 2 * width)
        self.hear_candidate = nn.Linear(message, 2 * width, bias=False)
        self.hear_self = nn.Linear(width + 7, 2 * width, bias=False)
        self.conclude = nn.Linear(2 * width, width)

    def forward(self, features: torch.Tensor, logits: PairLogits, pairs: Pairs) -> torch.Tensor:
        """(E, D) features of the pairs to the next ones."""
        of_slot, of_candidate = logits.shares(pairs)
        weight = (of_slot * of_candidate).sqrt()
        normed = self.norm(features)
        slots, boxes = self.summary(normed, weight, pairs)
        expected = self.from_box(boxes).view(slots.shape[0], self.message)
        told = self.to_candidate(normed) * of_candidate[:, None]
        wanted = segment_sum(told, pairs.candidate, pairs.num_candidates)
        offset = pairs.place - expected[:, :2][pairs.slot]
        shares = torch.stack([of_slot, of_candidate, weight], dim=1)
        heard = self.hear_self(torch.cat([normed, offset, offset.square(), shares], dim=1))
        heard = heard + self.hear_slot(torch.cat([slots, expected], dim=1))[pairs.slot]
        heard = heard + self.hear_candidate(wanted)[pairs.candidate]
        return features + self.conclude(heard.relu())


class PairNetwork(nn.Module):
    """Logits of all pairs, at first and after each round; in the end, what each box makes of its
    person.

    Args:
        num_keypoints: K.
        width: D.
        message, box_width: see `PairRound`.
        rounds: exchanges of messages; 0 rates each pair alone (a learned prior).
        least: pairs with a smaller first probability take no part in the rounds. In a crowd most
            pairs are such.
    """

    def __init__(
        self,
        *,
        num_keypoints: int,
        width: int = 64,
        message: int = 24,
        box_width: int = 128,
        rounds: int = 3,
        least: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.least = least
        self.kind = nn.Embedding(num_keypoints, 2 * width)
        self.see_box = nn.Linear(BOX_FEATURES, 2 * width)
        self.see_pair = nn.Linear(2 + 4 * _OCTAVES + 3, 2 * width, bias=False)
        self.conclude = nn.Linear(2 * width, width)
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

    def forward(self, pairs: Pairs) -> PairFindings:
        """Rates all pairs."""
        features = self._first_features(pairs)
        first = self._read(0, features, pairs)
        chances = first.probabilities(pairs)
        # "not <": broken numbers go on and are seen in the end.
        kept = (~(chances < (self.least if len(self.rounds) else 0.0))).nonzero()[:, 0]
        some, features = pairs.select(kept), features[kept]
        found = PairLogits(first.pairs[kept], first.no_candidate, first.no_box)
        rounds = []
        for number, step in enumerate(self.rounds, start=1):
            features = step(features, found, some)
            found = self._read(number, features, some)
            rounds.append(found)
        return PairFindings(first, chances, kept, some, rounds, features)

    def people(self, found: PairFindings) -> tuple[torch.Tensor, torch.Tensor]:
        """What each box makes of its person.

        Returns:
            (B, K, 2) where it expects each joint, found or not, 0 to 1 inside the box; (B,) logit
            of how good the pose will be, see `pair_losses.pose_quality`.
        """
        weight = found.last.probabilities(found.pairs)
        _, boxes = self.summary(self.last_norm(found.features), weight, found.pairs)
        # From the middle of the box.
        places = self.to_places(boxes).view(-1, self.num_keypoints, 2) + 0.5
        return places, self.to_oks(boxes)[:, 0]

    def _read(self, number: int, features: torch.Tensor, pairs: Pairs) -> PairLogits:
        limit = _LARGEST_LOGIT
        return PairLogits(
            pairs=self.readers[number](features)[:, 0].float().clamp(-limit, limit),
            no_candidate=self.no_candidate[number]
            .expand(pairs.box_features.shape[0], -1)
            .flatten(),
            no_box=self.no_box[number][pairs.candidate_kind],
        )

    def _first_features(self, pairs: Pairs) -> torch.Tensor:
        """(E, D) what a pair knows before anybody told it anything."""
        slots = self.see_box(pairs.box_features)[:, None] + self.kind.weight
        seen = self.see_pair(self._inputs(pairs)) + slots.flatten(0, 1)[pairs.slot]
        return self.conclude(seen.relu())

    def _inputs(self, pairs: Pairs) -> torch.Tensor:
        """(E, inputs) a pair's place, score, and how many compete with it."""
        one = torch.ones_like(pairs.score)
        rivals = segment_sum(one, pairs.candidate, pairs.num_candidates)[pairs.candidate]
        choices = segment_sum(one, pairs.slot, pairs.box_features.shape[0] * self.num_keypoints)
        scales = math.pi * 2.0 ** (torch.arange(_OCTAVES, device=one.device) - 1)
        waves = (pairs.place[:, :, None] * scales).flatten(1)
        counts = [pairs.score, rivals.log(), choices[pairs.slot].log()]
        return torch.cat([pairs.place, waves.sin(), waves.cos(), torch.stack(counts, 1)], dim=1)


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
