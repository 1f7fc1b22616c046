"""Matching in rounds against PyTorch's own mutual_best, which has tests of its own."""

from __future__ import annotations

import pytest
import torch

from mpn_d2.export.rounds_matching import RoundsMatching
from mpn_d2.modeling.assembly.matching import MatchingProblem, MutualBestMatching


def problem(seed: int, coarse: bool, boxes: int, candidates: int) -> MatchingProblem:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(30, boxes, candidates, generator=generator)
    if coarse:  # many ties
        scores = (scores * 3).ceil() / 3
    scores[torch.rand(scores.shape, generator=generator) < 0.4] = 0
    scores[:3] = 0
    return MatchingProblem(scores)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (9, 4), (12, 12)])
def test_equals_mutual_best(coarse, shape):
    for seed in range(5):
        given = problem(seed, coarse, *shape)
        expected = MutualBestMatching()(given)
        assert torch.equal(RoundsMatching(shape[1])(given), expected)
        assert (expected >= 0).any()


def test_a_chain_takes_every_round():
    """Box p wants candidate p most and candidate p - 1, which is settled a round before, next."""
    count = 6
    scores = torch.zeros(1, count, count)
    for p in range(count):
        scores[0, p, p] = 1 - 0.1 * p
        if p + 1 < count:
            scores[0, p, p + 1] = 1 - 0.1 * p - 0.05
    expected = MutualBestMatching()(MatchingProblem(scores))
    assert expected.tolist() == [list(range(count))]
    assert torch.equal(RoundsMatching(count)(MatchingProblem(scores)), expected)
    fewer = RoundsMatching(2)(MatchingProblem(scores))
    assert (fewer >= 0).sum() < count
