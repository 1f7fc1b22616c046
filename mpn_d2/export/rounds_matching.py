"""Matching for exported files: mutual_best as rounds of tensor operations in one loop.

Letters as in modeling/assembly/matching.py: G groups, P boxes, M candidates.
"""

from __future__ import annotations

import torch

from mpn_d2.export.compiled import compiled
from mpn_d2.modeling.assembly.matching import Matching, MatchingProblem


class RoundsMatching(Matching):
    """MutualBestMatching's choices, by at most a fixed number of rounds.

    Each round settles a candidate in every group where a pair is left, so that M rounds always
    suffice; the loop, a compiled function that a trace keeps as a loop, ends before where none is
    left.

    Args:
        rounds: M.
    """

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self._match = compiled(_match_in_rounds)

    def forward(self, problem: MatchingProblem) -> torch.Tensor:
        """See the base."""
        return self._match(problem.scores, self.rounds)


def _match_in_rounds(scores: torch.Tensor, rounds: int) -> torch.Tensor:
    """(G, P, M) scores to (G, P) candidates, -1 for none; P and M are at least 1."""
    boxes = torch.arange(scores.size(1), device=scores.device)
    candidates = torch.arange(scores.size(2), device=scores.device)
    chosen = torch.full_like(scores[:, :, 0], -1, dtype=torch.int64)
    turn = 0
    going = bool((scores > 0).any())
    while going and turn < rounds:
        score, candidate = scores.max(dim=2)
        best_box = scores.argmax(dim=1)
        mutual = (best_box.gather(1, candidate) == boxes) & (score > 0)
        chosen = torch.where(mutual, candidate, chosen)
        pair = (candidate[:, :, None] == candidates) & mutual[:, :, None]
        taken = pair.any(dim=1)
        free = ~(mutual[:, :, None] | taken[:, None, :])
        scores = torch.where(free, scores, torch.zeros_like(scores))
        going = bool((scores > 0).any())
        turn += 1
    return chosen
