"""Stop loss, matching, miscounting rules and orders against what is written out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mpn_d2.modeling.heads.people_order import order_people
from mpn_d2.modeling.sequence_losses import (
    match_people,
    pair_costs,
    sequence_heatmap_loss,
    stop_loss,
    takes_part,
)


def test_stop_loss_is_the_cross_entropy_of_the_steps_that_count():
    logits = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
    targets, counts = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([True, True, False])
    score = [1 / (1 + math.exp(-x)) for x in logits.tolist()]
    found = stop_loss(logits, targets, counts)
    assert found.item() == pytest.approx(-math.log(score[0]) - math.log(score[1]))
    found.backward()
    wanted = [score[0] - 1, score[1] - 1, 0.0]
    torch.testing.assert_close(logits.grad, torch.tensor(wanted))


def slow_cost(a, b):
    total = 0.0
    for k in range(len(a)):
        square = sum((x - y) ** 2 for x, y in zip(a[k].flatten().tolist(), b[k].flatten().tolist()))
        total += math.sqrt(square)
    return total


@pytest.mark.parametrize(("steps", "people"), [(3, 3), (4, 2), (2, 4), (1, 1), (3, 0)])
def test_matching_equals_brute_force(steps, people):
    for _ in range(5):
        maps, targets = torch.rand(steps, 2, 3, 4), torch.rand(people, 2, 3, 4)
        costs = pair_costs(maps, targets)
        assert costs.shape == (steps, people)
        for t, z in itertools.product(range(steps), range(people)):
            assert costs[t, z].item() == pytest.approx(slow_cost(maps[t], targets[z]), rel=1e-5)
        pairs = match_people(costs)
        assert len(pairs) == min(steps, people)
        if steps >= people:
            ways = [
                list(zip(way, range(people)))
                for way in itertools.permutations(range(steps), people)
            ]
        else:
            ways = [
                list(zip(range(steps), way)) for way in itertools.permutations(range(people), steps)
            ]
        best = min(ways, key=lambda way: sum(costs[t, z].item() for t, z in way))
        assert pairs == sorted(best)


def test_costs_that_are_not_finite_are_told():
    with pytest.raises(FloatingPointError, match=r"SOLVER\.BASE_LR"):
        match_people(torch.tensor([[float("nan")]]))


def test_miscounting_rules():
    def part(scores, people, under, over, omega=0.3):
        scores = torch.tensor(scores)
        below = (scores < omega).nonzero()
        found = below[0].item() if len(below) else len(scores)
        steps = torch.arange(1, len(scores) + 1)
        chosen = takes_part(scores, steps, steps <= found, people, omega, under=under, over=over)
        return chosen.int().tolist()

    # One found of three; a later step is over omega again.
    few = [0.9, 0.1, 0.8, 0.2]
    assert part(few, 3, "a", "a") == part(few, 3, "a", "b") == [1, 0, 1, 0]
    assert part(few, 3, "b", "a") == part(few, 3, "b", "b") == [1, 1, 1, 0]
    # Three found of one.
    many = [0.9, 0.8, 0.7, 0.1]
    assert part(many, 1, "a", "a") == part(many, 1, "b", "a") == [1, 0, 0, 0]
    assert part(many, 1, "a", "b") == part(many, 1, "b", "b") == [1, 1, 1, 0]
    assert part([0.1], 0, "b", "b") == [0]


def test_heatmap_loss_is_a_sum_over_people_and_joints_and_a_mean_over_cells():
    maps, targets = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    weights = torch.ones(1, 1, 4, 5)
    weights[..., 2, 3] = 0
    wanted = 0.0
    for p, k, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        if (y, x) != (2, 3):
            wanted += (maps[p, k, y, x] - targets[p, k, y, x]).item() ** 2
    found = sequence_heatmap_loss(maps, targets, weights, per_cell=False)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    found = sequence_heatmap_loss(maps, targets, weights, per_cell=True)
    assert found.item() == pytest.approx(wanted / 20, rel=1e-5)


def test_orders():
    maps = torch.zeros(4, 2, 5, 6)
    # Mean cells (x, y): (4, 0), (1, 3), (1, 1), nothing.
    for person, cells in enumerate(([(0, 3), (0, 5)], [(3, 0), (3, 2)], [(1, 1), (1, 1)])):
        for joint, (row, column) in enumerate(cells):
            maps[person, joint, row, column] = 0.5
    maps[3] = 0.01
    scores = torch.tensor([0.5, 0.9, 0.3, 0.7])

    def order(name):
        return order_people(name, maps, scores, 0.015, torch.Generator().manual_seed(1))

    assert order("learned") == [0, 1, 2, 3]
    assert order("inverse") == [3, 2, 1, 0]
    assert order("confidence") == [1, 3, 0, 2]
    assert order("canonical") == [2, 1, 0, 3]
    assert sorted(order("random")) == [0, 1, 2, 3] and order("random") == order("random")
    # One joint below tau does not count: (3, 0) instead of (4, 0).
    maps[0, 1] = 0.01
    assert order("canonical") == [2, 1, 0, 3]
    assert len({tuple(order_people("random", maps, scores, 0.1)) for _ in range(20)}) > 3
    assert order_people("canonical", maps[:0], scores[:0], 0.1) == []
    with pytest.raises(ValueError, match=r"MODEL\.SEQUENCE\.ORDER is 'sideways'"):
        order("sideways")
