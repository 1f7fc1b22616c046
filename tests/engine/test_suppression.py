"""Repeated poses of an image: who stays, with what score."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from mpn_d2.engine.suppression import PoseSuppression

SIGMAS = (0.1, 0.1)


def people(rows: list[tuple[float, float, float, float]]) -> Instances:
    """(x, box score, pose score, offset of both joints from the box's corner; NaN for no pose)."""
    found = Instances((100, 400))
    corner = torch.tensor([[x, 20.0] for x, *_ in rows]).view(-1, 2)
    found.pred_boxes = Boxes(torch.cat([corner, corner + 50], dim=1))
    found.scores = torch.tensor([row[1] for row in rows])
    found.pose_scores = torch.tensor([row[2] for row in rows])
    found.pred_classes = torch.zeros(len(rows), dtype=torch.long)
    joints = torch.ones(len(rows), 2, 3)
    for i, (x, _, _, offset) in enumerate(rows):
        joints[i] *= 0.0 if math.isnan(offset) else 1.0
        if not math.isnan(offset):
            joints[i, :, :2] = torch.tensor([[x + offset, 30.0], [x + offset, 60.0]])
    found.pred_keypoints = joints
    return found


NONE = math.nan
# The third repeats the first; the fourth has another pose in the same place.
ROWS = [(10.0, 0.5, 0.6, 5), (200.0, 0.9, 0.5, 5), (12.0, 0.9, 0.8, 3.5), (14.0, 0.4, 0.3, 40)]


def test_hard_drops_repeats_and_orders_by_pose():
    given = people(ROWS)
    kept = PoseSuppression("hard", 0.5, SIGMAS)(given)
    assert kept.pose_scores.tolist() == pytest.approx([0.8, 0.5, 0.3])
    assert kept.scores.tolist() == pytest.approx([0.9, 0.9, 0.4])
    assert len(given) == 4


def test_soft_lowers_both_scores_of_a_repeat():
    given = people(ROWS[:3])
    kept = PoseSuppression("soft", 0.5, SIGMAS)(given)
    # Joints half a pixel apart, area 0.53 * 2500.
    oks = math.exp(-(0.5**2) / (2 * 0.2**2 * 0.53 * 2500))
    penalty = math.exp(-(oks**2) / 0.5)
    want = sorted([0.8, 0.5, 0.6 * penalty], reverse=True)
    assert kept.pose_scores.tolist() == pytest.approx(want, abs=1e-5)
    boxes = dict(zip(given.pose_scores.tolist(), given.scores.tolist(), strict=True))
    repeat = min(boxes, key=lambda score: abs(score - 0.6))
    boxes[repeat] *= penalty
    assert sorted(kept.scores.tolist()) == pytest.approx(sorted(boxes.values()), abs=1e-5)
    assert given.pose_scores.tolist() == pytest.approx([0.6, 0.5, 0.8])


def test_a_pose_of_guesses_alone_is_none():
    given = people([*ROWS[:1], (14.0, 0.5, 0.0, 1.0)])
    given.pred_keypoints[1, :, :2] = 5.0
    given.pred_keypoints[1, :, 2] = 0.0
    assert len(PoseSuppression("hard", 0.9, SIGMAS)(given)) == 1


def test_people_without_a_pose_are_compared_by_boxes():
    rows = [*ROWS, (15.0, 0.99, 0.0, NONE), (300.0, 0.2, 0.0, NONE), (302.0, 0.3, 0.0, NONE)]
    kept = PoseSuppression("hard", 0.5, SIGMAS)(people(rows))
    assert kept.pred_boxes.tensor[:, 0].tolist() == [12, 200, 14, 302]
    assert kept.scores.tolist() == pytest.approx([0.9, 0.9, 0.4, 0.3])


@pytest.mark.parametrize("mode", ["none", "hard", "soft"])
def test_nobody_and_nobody_with_a_pose(mode):
    suppress = PoseSuppression(mode, 0.9, SIGMAS)
    assert len(suppress(people([]))) == 0
    assert len(suppress(people([(10.0, 0.5, 0.0, NONE), (200.0, 0.5, 0.0, NONE)]))) == 2


def test_none_leaves_everybody():
    given = people(ROWS)
    assert PoseSuppression("none", 0.9, SIGMAS)(given) is given


@pytest.mark.parametrize(
    ("mode", "threshold", "words"),
    [("some", 0.9, "OKS_NMS.MODE is 'some'"), ("hard", 0.0, "OKS_NMS.THRESH is 0.0")]
    + [("soft", 1.1, "OKS_NMS.THRESH is 1.1"), ("hard", math.nan, "OKS_NMS.THRESH")],
)
def test_impossible_values(mode, threshold, words):
    with pytest.raises(ValueError, match=words):
        PoseSuppression(mode, threshold, SIGMAS)
