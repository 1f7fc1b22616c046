"""Each matching against a slow loop written from spec 5.6."""

from __future__ import annotations

import itertools

import pytest
import torch

from mpn_d2.modeling.assembly.matching import (
    ArgmaxMatching,
    HungarianMatching,
    MatchingProblem,
    MutualBestMatching,
    ReferenceMatching,
)

ONE_TO_ONE = [ReferenceMatching(), MutualBestMatching(), HungarianMatching()]


def random_scores(seed, groups=40, boxes=5, candidates=6, coarse=False):
    """Scores with holes, as boxes that do not hold a candidate leave them, and padding."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(groups, boxes, candidates, generator=generator)
    if coarse:  # many ties
        scores = (scores * 4).ceil() / 4
    scores[torch.rand(scores.shape, generator=generator) < 0.35] = 0
    scores[: groups // 4, boxes - 1 :] = 0
    scores[groups // 8 : groups // 2, :, candidates - 2 :] = 0
    return scores


def slow_reference(scores, one_to_one):
    """Boxes in order; the quirk looks at the candidates that lie in any box."""
    boxes, candidates = range(len(scores)), range(len(scores[0]))
    known = [i for i in candidates if any(scores[b][i] > 0 for b in boxes)]
    chosen, taken = [], set()
    for box in boxes:
        choice = -1
        for i in sorted(known, key=lambda i: (-scores[box][i], i)):
            if scores[box][i] <= 0:
                break
            if one_to_one and i in taken:
                continue
            better = max(boxes, key=lambda b: (scores[b][i], -b))
            lowest = min(known, key=lambda j: (scores[better][j], j))
            if better == box or lowest == i:
                choice = i
                break
        chosen.append(choice)
        taken.add(choice)
    return chosen


def slow_mutual_best(scores):
    """Remove, over and over, all pairs that are each other's best."""
    boxes, candidates = list(range(len(scores))), list(range(len(scores[0])))
    chosen = [-1] * len(scores)
    while boxes and candidates:
        pairs = []
        for b in boxes:
            i = max(candidates, key=lambda i: (scores[b][i], -i))
            if scores[b][i] > 0 and max(boxes, key=lambda a: (scores[a][i], -a)) == b:
                pairs.append((b, i))
        if not pairs:
            break
        for b, i in pairs:
            chosen[b] = i
            boxes.remove(b)
            candidates.remove(i)
    return chosen


def best_sum(scores):
    """Largest sum over all one-to-one matchings, by trying them all."""
    boxes, candidates = len(scores), len(scores[0])
    slots = [*range(candidates), *([None] * boxes)]
    return max(
        sum(scores[b][i] for b, i in enumerate(order) if i is not None)
        for order in set(itertools.permutations(slots, boxes))
    )


@pytest.mark.parametrize("one_to_one", [True, False])
@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_reference_equals_slow_loop(seed, coarse, one_to_one):
    scores = random_scores(seed, coarse=coarse)
    found = ReferenceMatching(one_to_one=one_to_one)(MatchingProblem(scores))
    assert found.tolist() == [slow_reference(group, one_to_one) for group in scores.tolist()]


def test_reference_to_the_letter_shares_a_candidate():
    # Candidate 0 is the better box's (1) lowest ranked one, and so goes to box 0 as well.
    scores = torch.tensor([[[0.3, 0.0], [0.5, 0.0]]])
    assert ReferenceMatching(one_to_one=False)(MatchingProblem(scores)).tolist() == [[0, 0]]
    assert ReferenceMatching()(MatchingProblem(scores)).tolist() == [[0, -1]]


@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_mutual_best_equals_slow_loop(seed, coarse):
    scores = random_scores(seed, coarse=coarse)
    found = MutualBestMatching()(MatchingProblem(scores))
    assert found.tolist() == [slow_mutual_best(group) for group in scores.tolist()]


@pytest.mark.parametrize("seed", range(3))
def test_hungarian_reaches_the_largest_sum(seed):
    scores = random_scores(seed, groups=8, boxes=3, candidates=4)
    found = HungarianMatching()(MatchingProblem(scores))
    for group, chosen in zip(scores.tolist(), found.tolist()):
        total = sum(group[b][i] for b, i in enumerate(chosen) if i >= 0)
        assert total == pytest.approx(best_sum(group), abs=1e-6)


@pytest.mark.parametrize("matching", ONE_TO_ONE, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("coarse", [True, False])
def test_one_candidate_to_at_most_one_box_and_only_where_allowed(matching, coarse):
    for shape in ((5, 6), (9, 3), (3, 9), (1, 4), (4, 1)):
        scores = random_scores(7, 60, *shape, coarse=coarse)
        found = matching(MatchingProblem(scores))
        assert found.shape == scores.shape[:2]
        for group, chosen in zip(scores.tolist(), found.tolist()):
            taken = [i for i in chosen if i >= 0]
            assert len(taken) == len(set(taken))
            assert all(group[b][i] > 0 for b, i in enumerate(chosen) if i >= 0)
        assert (found >= 0).any()


@pytest.mark.parametrize("matching", ONE_TO_ONE, ids=lambda m: type(m).__name__)
def test_input_is_left_alone_and_padding_changes_nothing(matching):
    scores = random_scores(3)
    kept = scores.clone()
    found = matching(MatchingProblem(scores))
    assert torch.equal(scores, kept)
    padded = torch.zeros(len(scores), 8, 11)
    padded[:, :5, :6] = scores
    wide = matching(MatchingProblem(padded))
    assert torch.equal(wide[:, :5], found) and (wide[:, 5:] == -1).all()
    one_by_one = [matching(MatchingProblem(group[None]))[0] for group in scores]
    assert torch.equal(torch.stack(one_by_one), found)


@pytest.mark.parametrize("matching", ONE_TO_ONE, ids=lambda m: type(m).__name__)
def test_two_overlapping_boxes(matching):
    """Box 0 owns candidate 1 although it scores candidate 0 nearly as high."""
    scores = torch.tensor([[[0.80, 0.85], [0.95, 0.10]]])
    assert matching(MatchingProblem(scores)).tolist() == [[1, 0]]


def test_the_rules_differ_where_they_should():
    scores = torch.tensor([[[0.9, 0.8], [0.8, 0.0]]])
    # The best pair first leaves box 1 with nothing; the largest sum is the other way round.
    assert MutualBestMatching()(MatchingProblem(scores)).tolist() == [[0, -1]]
    assert HungarianMatching()(MatchingProblem(scores)).tolist() == [[1, 0]]
    # Lowest rank in the better box: box 0 may take candidate 0, which box 1 scores higher.
    quirk = torch.tensor([[[0.6, 0.0], [0.7, 0.9]]])
    assert ReferenceMatching()(MatchingProblem(quirk)).tolist() == [[0, 1]]


def test_argmax_takes_the_nearest_claimable_candidate():
    scores = torch.tensor([[[0.2, 0.9, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]])
    distances = torch.tensor([[[3.0, 5.0, 1.0], [1.0, 9.0, 0.0], [0.0, 0.0, 0.0]]])
    assert ArgmaxMatching()(MatchingProblem(scores, distances)).tolist() == [[0, 1, -1]]


@pytest.mark.parametrize("matching", ONE_TO_ONE, ids=lambda m: type(m).__name__)
def test_nothing_to_match(matching):
    assert matching(MatchingProblem(torch.zeros(3, 2, 1))).tolist() == [[-1, -1]] * 3
