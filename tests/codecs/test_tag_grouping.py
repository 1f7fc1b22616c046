"""Grouping by tags: an example worked by hand, peaks, missing joints, places below a cell."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mpn_d2.codecs.subcell import quarter_shift, read_highest
from mpn_d2.codecs.tag_grouping import (
    TaggedPeaks,
    decode_tags,
    fill_missing_joints,
    find_peaks,
    group_by_tags,
    grouping_order,
)
from mpn_d2.structures.skeleton import get_skeleton

NAMES = get_skeleton("coco").keypoint_names


def peaks(*rows):
    """Candidates (type, score, tag)."""
    types, scores, tags = zip(*rows, strict=True)
    cells = torch.arange(len(rows))
    tags = torch.tensor(tags)[:, None]
    return TaggedPeaks(torch.tensor(types), cells, cells, torch.tensor(scores), tags)


def test_order_is_head_and_torso_first():
    names = [NAMES[i] for i in grouping_order(NAMES)]
    assert names[:9] == [*NAMES[:7], "left_hip", "right_hip"]
    assert names[9:] == [*NAMES[7:11], *NAMES[13:]]


def test_example_worked_by_hand():
    found = peaks(
        # Type 0 begins two people, tags 1.0 and 5.0.
        (0, 0.9, 1.0),
        (0, 0.8, 5.0),
        # Type 1: 100 round|4.6 - 1| - .7 = 399.3, 100 round|4.6 - 5| - .7 = -0.7 -> the second;
        # 1.3 -> the first. Means are then 1.15 and 4.8.
        (1, 0.7, 4.6),
        (1, 0.6, 1.3),
        # Type 2: both are near the first person (gaps .05 and .25, rounded 0 and 0), and scores
        # decide nothing, as the total counts: one gets the second person at 100 round(3.4) - .5
        # = 299.5 or 100 round(3.6) - .4 = 399.6; 299.5 - .4 < 399.6 - .5, so 1.4 goes to the
        # second person, is 3.4 >= 1 away and begins a third.
        (2, 0.5, 1.4),
        (2, 0.4, 1.2),
        # Type 3: 0.95 away from the second (mean 4.8): rounded 1, but still hers.
        (3, 0.3, 5.75),
    )
    groups = group_by_tags(found, [0, 1, 2, 3], 1.0)
    assert groups == [{0: 0, 1: 3, 2: 5}, {0: 1, 1: 2, 3: 6}, {2: 4}]
    # In another order others begin.
    assert group_by_tags(found, [3, 0, 1, 2], 1.0)[0] == {3: 6, 0: 1, 1: 2}
    assert group_by_tags(peaks((0, 0.5, 0.0)), [1], 1.0) == []


def cheapest(gaps, scores):
    """The cheapest way to give each candidate a person of its own, or the reverse; None if several
    are as cheap, as whole steps of tag distance often are."""
    rows, columns = gaps.shape
    cost = 100 * np.round(gaps) - scores[:, None]
    if rows <= columns:
        ways = [list(enumerate(w)) for w in itertools.permutations(range(columns), rows)]
    else:
        ways = [
            [(r, c) for c, r in enumerate(w)] for w in itertools.permutations(range(rows), columns)
        ]
    totals = [sum(cost[r, c] for r, c in way) for way in ways]
    least = min(totals)
    return ways[totals.index(least)] if sum(t < least + 1e-6 for t in totals) == 1 else None


def test_every_type_is_matched_at_least_cost():
    generator, compared = np.random.default_rng(3), 0
    for trial in range(60):
        first, second = ((2, 3), (3, 2), (3, 3), (1, 4))[trial % 4]
        tags = generator.uniform(0, 4, first + second)
        scores = generator.uniform(0.1, 1, first + second)
        rows = [(0, scores[i], tags[i]) for i in range(first)]
        rows += [(1, scores[i], tags[i]) for i in range(first, first + second)]
        found = peaks(*rows)
        # As the tensors hold them.
        tags, scores = found.tags[:, 0].double().numpy(), found.scores.double().numpy()
        gaps = np.abs(tags[first:, None] - tags[None, :first])
        way = cheapest(gaps, scores[first:])
        if way is None:
            continue
        compared += 1
        wanted = {first + r: c for r, c in way if gaps[r, c] < 1}
        groups = group_by_tags(found, [0, 1], 1.0)
        assert {g[1]: i for i, g in enumerate(groups) if 0 in g and 1 in g} == wanted
        assert sum(len(g) for g in groups) == first + second
    assert compared > 20


def test_peaks_of_a_map():
    maps = torch.zeros(2, 4, 5)
    maps[0, 1, 1], maps[0, 1, 2], maps[0, 3, 4] = 0.5, 0.4, 0.9
    maps[1, 2, 2] = 0.05
    tags = torch.arange(40.0).view(2, 4, 5)
    found = find_peaks(maps, tags, 0.1, 30)
    assert found.types.tolist() == [0, 0]
    assert found.rows.tolist() == [3, 1] and found.columns.tolist() == [4, 1]
    assert found.tags.tolist() == [[19.0], [6.0]]
    two = find_peaks(maps, torch.stack([tags, -tags]), 0.1, 30)
    assert two.tags.tolist() == [[19.0, -19.0], [6.0, -6.0]]
    assert find_peaks(maps, tags, 0.1, 1).rows.tolist() == [3]


def gaussian(height, width, x, y, sigma=2.0):
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    return torch.exp(-((columns - x) ** 2 + (rows[:, None] - y) ** 2) / (2 * sigma**2))


def test_clean_maps_of_two_people_come_back():
    where = torch.tensor([[[10.3, 8.8], [12.6, 20.2]], [[25.4, 9.1], [24.7, 21.9]]])
    maps, tags = torch.zeros(2, 32, 40), torch.zeros(2, 32, 40)
    for person, points in enumerate(where):
        for joint, (x, y) in enumerate(points.tolist()):
            peak = gaussian(32, 40, x, y)
            maps[joint] = torch.maximum(maps[joint], peak)
            tags[joint][peak > 0.1] = 3.0 * person
    kwargs = {"peak_thresh": 0.1, "tag_thresh": 1.0, "max_per_type": 30}
    people = decode_tags(maps, tags, 4, [0, 1], **kwargs)
    people = people[people[:, 0, 0].argsort()]
    assert (people[..., :2] - 4 * where).abs().max() <= 4 * 0.25 + 1e-4
    assert (people[..., 2] > 0.9).all()
    assert decode_tags(maps * 0, tags, 4, [0, 1], **kwargs).shape == (0, 2, 3)

    # The second person's second joint is missing and her map low there: her tag finds it.
    missing = people.clone()
    missing[1, 1] = 0
    assert torch.equal(fill_missing_joints(people, maps, tags, 4), people)
    filled = fill_missing_joints(missing, maps * 0.05, tags, 4)
    torch.testing.assert_close(filled[1, 1, :2], people[1, 1, :2])
    assert filled[1, 1, 2] == pytest.approx(0.05 * maps[1].max().item(), rel=0.02)
    assert torch.equal(filled[0], missing[0])
    # Nothing above 0: it stays missing; and who has no joint has no tag.
    assert torch.equal(fill_missing_joints(missing, maps * 0 - 1, tags, 4), missing)
    assert torch.equal(fill_missing_joints(missing * 0, maps, tags, 4), missing * 0)


def test_tags_of_two_views():
    """By hand: the root of the mean of squares groups, the length of the difference fills."""
    # 0.9 and 1.05 apart: 0.978 on the average, less than 1; 0.9 and 1.1: 1.005.
    types, scores = torch.tensor([0, 1, 1]), torch.tensor([0.9, 0.8, 0.7])
    tags = torch.tensor([[0.0, 5.0], [0.9, 6.05], [-0.9, 3.9]])
    cells = torch.zeros(3, dtype=torch.long)
    groups = group_by_tags(TaggedPeaks(types, cells, cells, scores, tags), [0, 1], 1.0)
    assert groups == [{0: 0, 1: 1}, {1: 2}]
    # Joint 1 of who has tags (2, 4): the higher cell is (0.4, 0.4) away, a length of 0.57 that
    # rounds to 1; 0.4 alone would be none.
    maps, tags = torch.zeros(2, 3, 4), torch.zeros(2, 2, 3, 4)
    people = torch.zeros(1, 2, 3)
    people[0, 0] = torch.tensor([6.0, 6.0, 0.9])
    tags[:, 0, 1, 1] = torch.tensor([2.0, 4.0])
    tags[:, 1] = 9.0
    maps[1, 0, 3], tags[:, 1, 0, 3] = 0.9, torch.tensor([2.4, 4.4])
    maps[1, 2, 0], tags[:, 1, 2, 0] = 0.3, torch.tensor([2.3, 4.3])
    filled = fill_missing_joints(people, maps, tags, 4)[0, 1]
    assert (filled[:2] / 4).floor().tolist() == [0.0, 2.0] and filled[2] == pytest.approx(0.3)
    filled = fill_missing_joints(people, maps, tags[0], 4)[0, 1]
    assert (filled[:2] / 4).floor().tolist() == [3.0, 0.0] and filled[2] == pytest.approx(0.9)


def test_quarter_shift_looks_at_the_neighbours():
    maps = torch.zeros(1, 3, 3)
    maps[0, 1] = torch.tensor([0.2, 1.0, 0.4])
    maps[0, 0, 1], maps[0, 2, 1] = 0.5, 0.3
    one = torch.tensor([1])
    assert quarter_shift(maps, one - 1, one, one).tolist() == [[1.75, 1.25]]
    # A corner: the cell itself stands for the neighbours that are not there.
    zero = torch.tensor([0])
    maps[0, 0, 0] = 2.0
    assert quarter_shift(maps, zero, zero, zero).tolist() == [[0.25, 0.25]]


@pytest.mark.parametrize(("subcell", "bound"), [("quarter", 1.5), ("parabola", 0.06)])
def test_highest_places(subcell, bound):
    generator = torch.Generator().manual_seed(1)
    wanted = 6 + 20 * torch.rand(3, 2, 2, generator=generator)
    maps = torch.stack([torch.stack([gaussian(32, 33, *p) for p in of]) for of in wanted.tolist()])
    found = read_highest(maps, 4, (128, 132), subcell)
    assert (found[..., :2] - 4 * wanted).abs().max() <= bound
    torch.testing.assert_close(found[..., 2], maps.flatten(2).amax(-1))
    # What is higher in the padding is left aside; the value may be negative.
    low = torch.full((1, 1, 4, 4), -0.5)
    low[0, 0, 3, 3], low[0, 0, 1, 1] = 1.0, -0.2
    assert read_highest(low, 4, (12, 10), subcell)[0, 0, 2] == pytest.approx(-0.2)
    assert read_highest(maps[:0], 4, (128, 132), subcell).shape == (0, 2, 3)
