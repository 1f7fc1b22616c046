"""What the comparison of a file with its network lets pass and what not."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from mpn_d2.export.agreement import Agreement, Thresholds, compare_results, pair_people, tied_types

THRESHOLDS = Thresholds(score=0.3, iou=0.5, most_people=2)
K = 3


def result(boxes, scores=None, keypoints=None) -> dict:
    count = len(boxes)
    people = Instances((100, 100))
    people.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(count, 4))
    people.scores = torch.tensor(scores or [0.9 - 0.1 * i for i in range(count)])
    people.pose_scores = people.scores / 2
    people.pred_keypoints = torch.full((count, K, 3), 0.5) if keypoints is None else keypoints
    return {"instances": people, "sem_seg": torch.zeros(2, 100, 100)}


def compared(expected: dict, found: dict, tied=(False,) * K) -> Agreement:
    agreement = Agreement()
    compare_results(expected, found, THRESHOLDS, torch.tensor(tied), "photo", agreement)
    return agreement


A, B, FAR = [10, 10, 50, 90], [12, 11, 52, 88], [60, 5, 90, 40]


def test_the_same_people_in_another_order_agree():
    agreement = compared(result([A, B]), result([B, A], scores=[0.8, 0.9]))
    assert not agreement.faults and agreement.people == 2
    assert set(agreement.largest.values()) == {0.0}


@pytest.mark.parametrize(("shift", "agrees"), [(0.04, True), (0.06, False)])
def test_boxes_agree_to_a_twentieth_of_a_pixel(shift, agrees):
    moved = [A[0] + shift, *A[1:]]
    assert (not compared(result([A]), result([moved])).faults) == agrees


@pytest.mark.parametrize(("shift", "agrees"), [(0.09, True), (0.11, False)])
def test_large_boxes_agree_to_a_share_of_their_side(shift, agrees):
    large = [0, 0, 1000, 600]
    moved = [0, 0, 1000 + shift, 600]
    assert (not compared(result([large]), result([moved])).faults) == agrees


@pytest.mark.parametrize("coordinate", [0, 2])
def test_joints_count_unless_their_type_is_a_tie(coordinate):
    expected, found = result([A, FAR]), result([A, FAR])
    found["instances"].pred_keypoints = found["instances"].pred_keypoints.clone()
    found["instances"].pred_keypoints[1, 2, coordinate] += 0.06
    found["instances"].pose_scores = found["instances"].pose_scores + torch.tensor([0.0, 0.1])
    faults = compared(expected, found).faults
    assert len(faults) == 2 and "pose_scores" in faults[0] and "keypoint" in faults[1]
    aside = compared(expected, found, (False, False, True))
    assert not aside.faults and aside.tied_joints == 1
    assert compared(expected, found, (True, True, False)).faults


@pytest.mark.parametrize(("differ", "agrees"), [(8, True), (9, False)])
def test_few_joints_are_of_ties(differ, agrees):
    boxes = [[x, y, x + 9, y + 9] for x in (0, 10, 20) for y in (0, 10, 20, 30)]
    expected, found = result(boxes, [0.9] * 12), result(boxes, [0.9] * 12)
    moved = found["instances"].pred_keypoints.clone()
    moved.view(-1, 3)[:differ, 0] += 1
    moved.view(-1, 3)[-1] = expected["instances"].pred_keypoints[-1, -1] = 0
    found["instances"].pred_keypoints = moved
    agreement = compared(expected, found, (True,) * K)
    assert not agreement.faults and agreement.tied_joints == differ and agreement.joints == 35
    agreement.check_ties()
    assert (not agreement.faults) == agrees
    assert agrees or f"{differ} of 35 joints differ" in agreement.faults[0]
    # Of many joints a share.
    agreement = Agreement(joints=1000, tied_joints=50)
    agreement.check_ties()
    assert not agreement.faults


def test_people_of_one_side_alone():
    (fault,) = compared(result([A, FAR]), result([A])).faults
    assert "photo: PyTorch alone finds a person of score 0.8" in fault
    (fault,) = compared(result([A]), result([A, FAR])).faults
    assert "the file alone" in fault
    # At the threshold of scores, and at that of the IoU with a better one.
    at_score = compared(result([A, FAR], scores=[0.9, 0.30005]), result([A]))
    assert not at_score.faults and at_score.left_aside == 1
    half = [10, 10, 50, 50]  # IoU 0.5 with A
    assert not compared(result([A, half]), result([A])).faults
    # The last of as many as there may be.
    last = compared(result([A, B], scores=[0.9, 0.5]), result([A, FAR], scores=[0.9, 0.50005]))
    assert not last.faults and last.left_aside == 2
    # There could be one more: the score of the last is no threshold.
    one, other = result([B], scores=[0.5]), result([FAR], scores=[0.50005])
    alone = compared(one, other)
    assert len(alone.faults) == 2 and alone.left_aside == 0
    assert (alone.missed, alone.added) == (1, 1)
    assert "0 people, 1 of PyTorch alone, 1 of the file alone;" in alone.summary()


def test_not_a_number_is_a_fault():
    found = result([A])
    found["instances"].scores = torch.tensor([float("nan")])
    agreement = compared(result([A]), found)
    assert any("scores" in fault for fault in agreement.faults)
    # What comes after it changes nothing.
    agreement.note("scores", 0.5)
    assert math.isnan(agreement.largest["scores"]) and "scores nan" in agreement.summary()


def test_a_mask_counts():
    found = result([])
    found["sem_seg"][1, 3, 4] = 0.01
    assert compared(result([]), result([])).faults == []
    assert compared(result([]), found).faults == ["photo: person_mask differ by 0.01"]


def test_a_mask_of_another_size_is_a_fault():
    found = result([A])
    found["sem_seg"] = torch.zeros(2, 100, 97)
    agreement = compared(result([A]), found)
    assert agreement.faults == ["photo: person_mask has shape (100, 97), not (100, 100)"]
    assert agreement.largest["person_mask"] == math.inf


def test_everybody_is_paired_once():
    boxes = torch.tensor([A, A, FAR], dtype=torch.float32)
    rows, columns = pair_people(boxes, boxes[:2])
    assert sorted(rows) == [0, 1] and sorted(columns) == [0, 1]
    assert pair_people(boxes, torch.zeros(0, 4)) == ([], [])


def test_ties_of_boxes_and_of_candidates():
    scores = torch.tensor(
        [
            [[0.5, 0.2], [0.3, 0.1]],
            [[0.5, 0.49999], [0.3, 0.1]],
            [[0.5, 0.2], [0.49999, 0.1]],
            [[0.5, 0.0], [0.3, 0.0]],
        ]
    )
    assert tied_types(scores).tolist() == [False, True, True, False]
    assert tied_types(torch.zeros(2, 1, 1)).tolist() == [False, False]
