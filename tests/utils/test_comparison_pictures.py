"""Truth beside poses: which colour is where, and images of every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, Keypoints

from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.comparison_pictures import (
    FALSE_COLOR,
    IGNORED_COLOR,
    MISSED_COLOR,
    draw_comparison,
    pair_colors,
)

SKELETON = get_skeleton("coco")
K = SKELETON.num_keypoints
CAPTION, GAP = 20, 4
LEAST, MOST = 720, 960


def people(size: tuple[int, int], boxes: list[list[float]], kind: str) -> Instances:
    """One joint in the middle of each box."""
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    joints = torch.zeros(len(boxes), K, 3)
    joints[:, 0, :2] = (tensor[:, :2] + tensor[:, 2:]) / 2
    joints[:, 0, 2] = 2.0 if kind == "gt" else 0.01
    instances = Instances(size)
    instances.set(f"{kind}_boxes", Boxes(tensor))
    instances.set(f"{kind}_keypoints", Keypoints(joints) if kind == "gt" else joints)
    if kind == "pred":
        instances.scores = torch.linspace(0.01, 0.9, len(boxes))
    return instances


def color(panel: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    return tuple(panel[int(y), int(x)].tolist())


@pytest.mark.parametrize("side", [LEAST, 360, 1440])
def test_pairs_have_one_colour_and_the_rest_their_own(side: int) -> None:
    """Boxes and the joints in their middle, on images that are enlarged and reduced."""
    scale = min(max(side, LEAST), MOST) / side
    unit = side / LEAST
    truth_boxes = [[60, 60, 160, 260], [300, 60, 400, 260], [540, 60, 640, 260]]
    found_boxes = [[300, 400, 400, 600], [70, 60, 170, 260], [310, 60, 410, 260]]
    ignored, excused = [60, 300, 160, 380], [540, 400, 640, 600]
    image = np.full((side, side, 3), 90, np.uint8)
    given = image.copy()
    truth = people((side, side), (np.array(truth_boxes) * unit).tolist(), "gt")
    found = people((side, side), (np.array([*found_boxes, excused]) * unit).tolist(), "pred")
    before = found.pred_keypoints.clone()
    picture = draw_comparison(
        image,
        truth,
        found,
        [1, 2, None],
        [0.75, 0.5, 0.0],
        SKELETON,
        ignored_boxes=torch.tensor([ignored]) * unit,
        excused={3},
    )
    assert np.array_equal(image, given) and torch.equal(found.pred_keypoints, before)
    shown = round(side * scale)
    assert picture.shape == (shown + CAPTION, 2 * shown + GAP, 3)
    left, right = picture[CAPTION:, :shown], picture[CAPTION:, shown + GAP :]
    first, second, _ = pair_colors(3)
    expected = [(left, truth_boxes[0], first), (left, truth_boxes[1], second)]
    expected += [(right, found_boxes[1], first), (right, found_boxes[2], second)]
    expected += [(left, truth_boxes[2], MISSED_COLOR), (right, found_boxes[0], FALSE_COLOR)]
    for panel, (x1, y1, x2, y2), wanted in expected:
        k = unit * scale
        assert color(panel, k * (x1 + x2) / 2, k * (y1 + y2) / 2) == wanted
        for x, y in ((x1, (3 * y1 + y2) / 4), ((x1 + 3 * x2) / 4, y2)):
            assert color(panel, k * x, k * y) == wanted
    k = unit * scale
    assert color(left, k * ignored[0], k * (ignored[1] + 40)) == IGNORED_COLOR
    assert color(right, k * excused[0], k * (excused[1] + 40)) == IGNORED_COLOR


def test_colours_of_pairs_differ() -> None:
    assert pair_colors(0) == [] and len(pair_colors(1)) == 1
    colors = np.array([*pair_colors(12), MISSED_COLOR, FALSE_COLOR, IGNORED_COLOR])
    apart = np.abs(colors[:, None] - colors).sum(axis=2) + 1000 * np.eye(len(colors))
    assert apart.min() > 60


@pytest.mark.parametrize(
    ("size", "shown"), [((1, 1), (720, 720)), ((7, 20_000), (1, 960)), ((9000, 3), (960, 1))]
)
def test_images_of_every_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    height, width = size
    truth = people(size, [[0, 0, width, height]], "gt")
    found = people(size, [[0, 0, width, height], [0, 0, 0, 0]], "pred")
    picture = draw_comparison(np.zeros((*size, 3), np.uint8), truth, found, [0], [0.5], SKELETON)
    assert picture.shape == (shown[0] + CAPTION, 2 * shown[1] + GAP, 3)


def test_nobody_anywhere() -> None:
    size = (100, 720)
    picture = draw_comparison(
        np.full((*size, 3), 7, np.uint8),
        people(size, [], "gt"),
        people(size, [], "pred"),
        [],
        [],
        SKELETON,
    )
    assert (picture[CAPTION:, :720] == 7).all() and (picture[CAPTION:, 724:] == 7).all()
