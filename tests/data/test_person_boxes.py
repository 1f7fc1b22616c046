"""Boxes after a transform (turned ones beside their masks and crops: test_augmentations.py)."""

from __future__ import annotations

import numpy as np

from mpn_d2.data.augmentations import AffineTransform
from mpn_d2.data.person_boxes import move_boxes


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
