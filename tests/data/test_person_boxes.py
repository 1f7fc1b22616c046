"""Boxes after a transform, by formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mapper_cases import COCO, square, turn, without_mask

from mpn_d2.data.augmentations import AffineTransform
from mpn_d2.data.person_boxes import move_boxes


def test_boxes_of_turned_people() -> None:
    turned = turn(30, 1.0, (50, 50), (50, 50), (100, 100))
    box = np.array([[40.0, 20, 60, 80]])

    def moved(**changes: object) -> np.ndarray:
        return move_boxes([{**without_mask(*box[0]), **changes}], box, turned, (100, 100))[0]

    # The ellipse in the box, by its formula, and no joint outside it.
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    half = np.array([math.hypot(10 * c, 30 * s), math.hypot(10 * s, 30 * c)])
    np.testing.assert_allclose(moved(), [*(50 - half), *(50 + half)], atol=0.05)
    corner = [41.0, 21.0, 1] + [0, 0, 0] * (COCO.num_keypoints - 1)
    ((x, y),) = turned.apply_coords(np.array([[41.0, 21.0]]))
    assert moved(keypoints=corner)[1] == pytest.approx(min(y, 50 - half[1]))
    assert moved(keypoints=corner)[0] == pytest.approx(min(x, 50 - half[0]), abs=0.05)
    # A mask that fills the box gives the box; one of a part of the person does not.
    diamond = [[50, 20, 60, 50, 50, 80, 40, 50]]
    points = turned.apply_coords(np.array(diamond, float).reshape(-1, 2))
    np.testing.assert_allclose(moved(segmentation=diamond), [*points.min(0), *points.max(0)])
    np.testing.assert_allclose(moved(segmentation=[[50, 20, 60, 30, 50, 40]]), moved())
    # Crowds keep the corners' box; and a transform that turns nothing keeps the box exactly.
    np.testing.assert_allclose(moved(iscrowd=1), turned.apply_box(box)[0])
    grown = turn(0, 1.5, (0, 0), (1, 2), (100, 100))
    person = square(*box[0], segmentation=diamond)
    np.testing.assert_allclose(move_boxes([person], box, grown, (9, 9))[0], [61, 32, 91, 122])
    assert move_boxes([], np.zeros((0, 4)), turned, (9, 9)).shape == (0, 4)


def test_keypoints_may_be_an_array() -> None:
    """A dataset function hands out what it likes; lists and arrays give one box."""
    half = np.sqrt(0.5)
    turned = AffineTransform(np.array([[half, -half, 40], [half, half, 0]]), (80, 80))
    box = np.array([[10.0, 10, 30, 50]])
    joints = [10.5, 10.5, 2.0, 20, 30, 0]
    people = [{"keypoints": joints}, {"keypoints": np.array(joints)}, {"keypoints": None}]
    first, second, without = (move_boxes([p], box, turned, (80, 80)) for p in people)
    np.testing.assert_array_equal(first, second)
    # The joint in the corner reaches out of the ellipse.
    assert first[0, 1] < without[0, 1] and first[0, 1] == half * 21
