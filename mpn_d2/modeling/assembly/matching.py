"""Matching: which box gets which keypoint candidate, decided for all boxes of an image together.

Letters: G groups (one keypoint type of one image each), P boxes, M candidates of the type; both
padded over the batch with score 0. A score of 0 means "may not match". Groups never influence
each other, so an image gives the same result alone and in any batch. Ties go to the smaller
index. All but "argmax" give a candidate to at most one box (design 7.1) and a box at most one
candidate per type. Spec section 5.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from scipy.optimize import linear_sum_assignment
from torch import nn

from mpn_d2.modeling.assembly.build import MATCHING_REGISTRY


@dataclass
class MatchingProblem:
    """What a matching decides from.

    Attributes:
        scores: (G, P, M) how well box and candidate fit, 0 where they may not match.
        peak_distances: (G, P, M) distance between candidate and the largest evidence of the box,
            pixels; only given to a matching with `joints_at_peaks`.
    """

    scores: torch.Tensor
    peak_distances: torch.Tensor | None = None


class Matching(nn.Module):
    """Base of all matchings: `forward(problem) -> (G, P) int64` candidate index, -1 for none."""

    # True: the joint lies at the largest evidence, the candidate only lends it its score.
    joints_at_peaks = False

    def forward(self, problem: MatchingProblem) -> torch.Tensor:
        """Chooses a candidate for each box of each group."""
        raise NotImplementedError


class ReferenceMatching(Matching):
    """The greedy rule of the authors' code (spec 5.6).

    Boxes in order, each visiting its candidates from the best score down: it takes the candidate
    if no other box scores it higher, or, the rule's quirk, if the candidate is the lowest ranked
    of that better box among all candidates that lie in any box. The authors hand a candidate to
    two boxes when the quirk says so; `one_to_one` makes the later box skip what is taken.

    Args:
        one_to_one: False follows the authors to the letter.
    """

    def __init__(self, *, one_to_one: bool = True) -> None:
        super().__init__()
        self.one_to_one = one_to_one

    def forward(self, problem: MatchingProblem) -> torch.Tensor:
        """See the class. Which candidates a box may take depends on the scores alone, so boxes in
        order are the same as: all ask for their best, the first asker keeps it, the others strike
        it off and ask again."""
        wanted = torch.where(self._may_take(problem.scores), problem.scores, 0.0)
        while True:
            score, choice = wanted.max(dim=2)
            asks = _one_hot(choice, score > 0, wanted.shape[2])
            if self.one_to_one:
                refused = asks & (asks.cumsum(dim=1) > 1)
                if refused.any():
                    wanted = wanted.masked_fill(refused, 0.0)
                    continue
            return torch.where(score > 0, choice, -1)

    @staticmethod
    def _may_take(scores: torch.Tensor) -> torch.Tensor:
        """(G, P, M) bool: box is best for the candidate, or the quirk applies."""
        best_box = scores.argmax(dim=1)
        in_any_box = (scores > 0).any(dim=1, keepdim=True)
        lowest = torch.where(in_any_box, scores, torch.inf).argmin(dim=2)
        index = torch.arange(scores.shape[2], device=scores.device)
        quirk = lowest.gather(1, best_box) == index
        boxes = torch.arange(scores.shape[1], device=scores.device)
        is_best = best_box[:, None, :] == boxes[:, None]
        return (scores > 0) & (is_best | quirk[:, None, :])


class MutualBestMatching(Matching):
    """Pairs that are each other's best are matched and removed, until none is left."""

    def forward(self, problem: MatchingProblem) -> torch.Tensor:
        """One round of tensor operations per removal, for all groups at once."""
        scores = problem.scores
        boxes = torch.arange(scores.shape[1], device=scores.device)
        chosen = torch.full(scores.shape[:2], -1, dtype=torch.int64, device=scores.device)
        while True:
            score, candidate = scores.max(dim=2)
            best_box = scores.argmax(dim=1)
            mutual = (best_box.gather(1, candidate) == boxes) & (score > 0)
            if not mutual.any():
                return chosen
            chosen = torch.where(mutual, candidate, chosen)
            taken = _one_hot(candidate, mutual, scores.shape[2]).any(dim=1)
            scores = scores.masked_fill(mutual[:, :, None] | taken[:, None, :], 0.0)


class HungarianMatching(Matching):
    """One-to-one matching of the largest score sum, each group on its own (on the CPU)."""

    def forward(self, problem: MatchingProblem) -> torch.Tensor:
        """One call of SciPy's solver per group in which pairs compete."""
        scores = problem.scores.detach().cpu().double().numpy()
        allowed = scores > 0
        rows, columns = (np.asarray(allowed.any(axis=axis)) for axis in (2, 1))
        chosen = np.full(scores.shape[:2], -1, dtype=np.int64)
        # A lone box takes its best candidate; what is padding never reaches the solver.
        alone = rows.sum(axis=1) == 1
        for group in np.flatnonzero(np.asarray(rows).any(axis=1)):
            boxes, candidates = rows[group].nonzero()[0], columns[group].nonzero()[0]
            part = scores[group][np.ix_(boxes, candidates)]
            if alone[group]:
                chosen[group, boxes[0]] = candidates[part.argmax()]
                continue
            box, candidate = linear_sum_assignment(part, maximize=True)
            matched = part[box, candidate] > 0
            chosen[group, boxes[box[matched]]] = candidates[candidate[matched]]
        return torch.from_numpy(chosen).to(problem.scores.device)


class ArgmaxMatching(Matching):
    """The joint is the largest evidence itself, mapped back to the image.

    The literal text of the paper, one keypoint per layer. Score and candidate index of the joint
    are those of the nearest candidate that the box may claim; without one the joint is left out.
    Several boxes may name one candidate: not one-to-one.
    """

    joints_at_peaks = True

    def forward(self, problem: MatchingProblem) -> torch.Tensor:
        """Nearest claimable candidate of each box."""
        allowed = problem.scores > 0
        nearest = torch.where(allowed, problem.peak_distances, torch.inf).argmin(dim=2)
        return torch.where(allowed.any(dim=2), nearest, -1)


def _one_hot(index: torch.Tensor, keep: torch.Tensor, length: int) -> torch.Tensor:
    """(G, P) index and bool to (G, P, length) bool, a row of False where not kept."""
    positions = torch.arange(length, device=index.device)
    return (index[..., None] == positions) & keep[..., None]


@MATCHING_REGISTRY.register_as("reference")
def build_reference(cfg: CfgNode) -> ReferenceMatching:
    """The authors' greedy rule."""
    return ReferenceMatching(one_to_one=cfg.MODEL.ASSEMBLER.ONE_TO_ONE)


@MATCHING_REGISTRY.register_as("mutual_best")
def build_mutual_best(cfg: CfgNode) -> MutualBestMatching:
    """The default."""
    return MutualBestMatching()


@MATCHING_REGISTRY.register_as("hungarian")
def build_hungarian(cfg: CfgNode) -> HungarianMatching:
    """Largest sum."""
    return HungarianMatching()


@MATCHING_REGISTRY.register_as("argmax")
def build_argmax(cfg: CfgNode) -> ArgmaxMatching:
    """No matching: the evidence says where the joint is."""
    return ArgmaxMatching()
