"""Suppression of boxes against a slow loop by its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import nms

from mpn_d2.structures.nms import BoxSuppression


def some_boxes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    corner = torch.rand(count, 2) * 20
    return torch.cat([corner, corner + 5 + torch.rand(count, 2) * 20], dim=1), torch.rand(count)


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    total = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - common
    return common / total if total else 0.0


def slow_soft_nms(boxes, scores, method, threshold, sigma, min_score):
    """Bodla et al., figure 2: take the best, lower the others, again."""
    left = [[s, i] for i, s in enumerate(scores.tolist())]
    places, kept = boxes.tolist(), []
    while left:
        best = max(left, key=lambda pair: pair[0])
        left.remove(best)
        if best[0] < min_score:
            break
        kept.append(tuple(best))
        for pair in left:
            overlap = iou(places[best[1]], places[pair[1]])
            if method == "soft_gaussian":
                pair[0] *= math.exp(-(overlap**2) / sigma)
            elif overlap > threshold:
                pair[0] *= 1 - overlap
    return kept


@pytest.mark.parametrize("method", ["soft_linear", "soft_gaussian"])
@pytest.mark.parametrize(("threshold", "sigma"), [(0.3, 0.5), (0.0, 0.1), (0.7, 2.0)])
def test_soft_nms_is_its_definition(method, threshold, sigma):
    boxes, scores = some_boxes(40)
    before = boxes.clone(), scores.clone()
    index, lowered = BoxSuppression(method, threshold, sigma, 0.05)(boxes, scores, 99)
    want = slow_soft_nms(boxes, scores, method, threshold, sigma, 0.05)
    assert index.tolist() == [i for _, i in want]
    torch.testing.assert_close(lowered, torch.tensor([s for s, _ in want]))
    assert (lowered.diff() <= 0).all() and (lowered >= 0.05).all()
    assert len(index) < 40 or threshold == 0.7
    assert torch.equal(boxes, before[0]) and torch.equal(scores, before[1])


def test_worked_example():
    # Two boxes with IoU 1/3, one far away.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 5, 10, 15], [50, 50, 60, 60]])
    scores = torch.tensor([0.9, 0.6, 0.5])
    index, lowered = BoxSuppression("soft_linear", 0.3)(boxes, scores, 99)
    assert index.tolist() == [0, 2, 1]
    torch.testing.assert_close(lowered, torch.tensor([0.9, 0.5, 0.4]))
    assert BoxSuppression("hard", 0.3)(boxes, scores, 99)[0].tolist() == [0, 2]
    assert BoxSuppression("hard", 0.4)(boxes, scores, 99)[0].tolist() == [0, 1, 2]


def test_a_copy_does_not_bring_its_original_back():
    """Also where a score lowered to 0 stays."""
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(3, 1)
    index, lowered = BoxSuppression("soft_linear", 0.3, min_score=0.0)(
        boxes, torch.tensor([0.9, 0.6, 0.5]), 9
    )
    assert index.tolist() == [0, 1, 2]
    torch.testing.assert_close(lowered, torch.tensor([0.9, 0.0, 0.0]))


def test_hard_is_torchvisions():
    boxes, scores = some_boxes(60)
    index, same = BoxSuppression("hard", 0.4)(boxes, scores, 7)
    assert torch.equal(index, nms(boxes, scores, 0.4)[:7]) and torch.equal(same, scores[index])


@pytest.mark.parametrize("method", ["hard", "soft_linear", "soft_gaussian"])
def test_nobody_most_and_boxes_without_area(method):
    suppress = BoxSuppression(method, 0.5)
    index, scores = suppress(torch.zeros(0, 4), torch.zeros(0), 5)
    assert index.shape == scores.shape == (0,) and index.dtype == torch.int64
    boxes, scores = some_boxes(30)
    assert len(suppress(boxes, scores, 4)[0]) == 4
    flat = torch.tensor([[3.0, 3, 3, 9]]).repeat(3, 1)
    index, _ = suppress(flat, torch.tensor([0.2, 0.9, 0.5]), 9)
    assert sorted(index.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"method": "soft"}, "RETINANET.NMS is 'soft'"),
        ({"threshold": 1.2}, "NMS_THRESH_TEST is 1.2"),
        ({"threshold": math.nan}, "NMS_THRESH_TEST"),
        ({"sigma": 0.0}, "SOFT_NMS_SIGMA"),
    ],
)
def test_impossible_values(arguments, key):
    with pytest.raises(ValueError, match=key):
        BoxSuppression(**arguments)
