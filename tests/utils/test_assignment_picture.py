"""A picture of one assignment: marks at the right pixels, in the right colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.utils.colormap import colormap

from mpn_d2.structures.outputs import AssembledPoses, Candidates
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.assignment_picture import (
    SIDE,
    WRONG_COLOR,
    Assignment,
    draw_assignment,
    draw_candidates,
    draw_result,
)
from mpn_d2.utils.target_pictures import type_colors

COCO = get_skeleton("coco")
K = COCO.num_keypoints
CAPTION, GAP = 20, 4
# A box reaches over nearly all of it, so all is drawn, twice enlarged.
IMAGE = np.full((240, 360, 3), 90, dtype=np.uint8)
SCALE = 2
SHOULDER, ELBOW, WRIST = (COCO.keypoint_names.index(f"left_{n}") for n in
                          ("shoulder", "elbow", "wrist"))  # fmt: skip
POINTS = [(50.5, 60.5), (50.5, 120.5), (200.5, 60.5), (300.5, 200.5)]
TYPES = [SHOULDER, ELBOW, SHOULDER, WRIST]
BOXES = [[20.0, 30.0, 120.0, 190.0], [160.0, 20.0, 280.0, 220.0], [0.0, 0.0, 360.0, 239.0]]


def assignment(grids=True, owners=True, rated=(0, 1)):
    """Box 0 got candidates 0 and 1, box 1 candidate 2, nobody 3; 1 belongs to box 1's person."""
    ids = torch.full((3, K), -1)
    ids[0, SHOULDER], ids[0, ELBOW], ids[1, SHOULDER] = 0, 1, 2
    keypoints = torch.zeros(3, K, 3)
    for box, kind in (ids >= 0).nonzero().tolist():
        keypoints[box, kind] = torch.tensor([*POINTS[ids[box, kind]], 1.0])
    grid = torch.zeros(len(rated), K, 56, 36)
    grid[:, ELBOW, 10, 20] = 0.5
    scores = torch.zeros(len(rated), 4)
    scores[0, :2] = torch.tensor([0.8, 0.2])
    scores[1, 3] = 0.1
    return Assignment(
        candidates=Candidates(torch.tensor(POINTS), torch.tensor(TYPES), torch.ones(4)),
        boxes=torch.tensor(BOXES),
        poses=AssembledPoses(keypoints, keypoints[..., 2].mean(1), ids),
        rated=torch.tensor(rated),
        pair_scores=scores,
        grids=grid if grids else None,
        owners=torch.tensor([4, 7, 7, -1]) if owners else None,
        people=torch.tensor([4, 7, 9]) if owners else None,
    )


def nothing():
    """No box, no candidate."""
    empty = torch.zeros(0, 4)
    poses = AssembledPoses(torch.zeros(0, K, 3), torch.zeros(0), torch.zeros(0, K).long())
    none = torch.zeros(0).long()
    candidates = Candidates(torch.zeros(0, 2), none, torch.zeros(0))
    return Assignment(candidates, empty, poses, none, torch.zeros(0, 0), owners=none, people=none)


def box_color(index):
    return colormap(rgb=True, maximum=255)[index]


def pixel(picture, x, y):
    return picture[int(y * SCALE), int(x * SCALE)]


def near(color, expected):
    return np.abs(color.astype(int) - np.asarray(expected).astype(int)).max() <= 2


def test_candidates_have_the_color_of_their_type_and_boxes_of_their_person():
    picture = draw_candidates(IMAGE, assignment(), COCO)
    assert picture.shape == (480, SIDE, 3)
    for (x, y), kind in zip(POINTS, TYPES, strict=True):
        assert near(pixel(picture, x, y), type_colors(K)[kind])
    for index, (x1, y1, x2, y2) in enumerate(BOXES[:2]):
        for x, y in ((x1, (y1 + y2) / 2), ((x1 + x2) / 2, y2)):
            assert near(pixel(picture, x, y), box_color(index))
    # Else the image, darker.
    assert (pixel(picture, 340, 20) == 45).all()


def test_result_joins_the_joints_of_a_box_in_its_color():
    picture = draw_result(IMAGE, assignment(owners=False), COCO)
    for index, (x, y) in ((0, POINTS[0]), (0, POINTS[1]), (1, POINTS[2]), (0, (50.5, 90.5))):
        assert near(pixel(picture, x, y), box_color(index)), (x, y)
    # A candidate that nobody got is hollow; no line leads to it.
    x, y = POINTS[3]
    assert (pixel(picture, x, y) == 45).all()
    assert pixel(picture, x + 2, y).min() > 100
    assert (pixel(picture, 290, 200) == 45).all()


def test_joints_of_others_are_crossed_out_where_owners_are_known():
    data = assignment()
    expected = torch.zeros(3, K, dtype=torch.bool)
    expected[0, ELBOW] = True
    assert torch.equal(data.wrong(), expected)
    assert assignment(owners=False).wrong() is None
    picture = draw_result(IMAGE, data, COCO)
    assert near(pixel(picture, *POINTS[1]), WRONG_COLOR)
    assert near(pixel(picture, *POINTS[0]), box_color(0))
    assert near(pixel(picture, *POINTS[2]), box_color(1))


def test_joint_at_the_evidence_and_not_at_a_candidate_is_drawn():
    data = assignment(owners=False)
    data.poses.keypoints[1, ELBOW] = torch.tensor([200.5, 150.5, 0.0])
    picture = draw_result(IMAGE, data, COCO)
    assert near(pixel(picture, 200.5, 150.5), box_color(1))
    assert near(pixel(picture, 200.5, 100.5), box_color(1))


def evidence_panels(picture, count, width):
    top = picture.shape[0] - GAP - 336
    return [picture[top : top + 336, i * (width + GAP) :][:, :width] for i in range(count)]


def test_grids_and_the_cells_where_candidates_are_read():
    picture = draw_assignment(IMAGE, assignment(), COCO)
    assert picture.shape[1] == 2 * SIDE + GAP
    first, second = evidence_panels(picture, 2, 6 * 36)
    for panel, index in ((first, 0), (second, 1)):
        assert near(panel[10 * 6 + 3, 20 * 6 + 3], type_colors(K)[ELBOW])
        assert near(panel[336 // 2, 0], box_color(index))
    # Candidate 0 lies 30.5 of 100 pixels right of and 30.5 of 160 below the corner of box 0.
    column, row = int(30.5 * 36 / 100), int(30.5 * 56 / 160)
    assert near(first[row * 6 + 3, column * 6 + 3], type_colors(K)[SHOULDER])
    # Candidate 1 is somebody else's.
    column, row = int(30.5 * 36 / 100), int(90.5 * 56 / 160)
    assert near(first[row * 6 + 3, column * 6 + 3], WRONG_COLOR)
    # Box 1 may claim candidate 3 only, which is read at its border cell.
    lit = second[8:-8, 8:-20].any(axis=2)
    assert lit.sum() == 36
    assert near(second[int(180.5 * 56 / 200) * 6 + 3, 35 * 6 + 1], type_colors(K)[WRIST])


def test_without_grids_candidates_are_as_large_as_their_score():
    picture = draw_assignment(IMAGE, assignment(grids=False, owners=False), COCO)
    first, second = evidence_panels(picture, 2, 224)
    # Box 0 is 100 x 160, in a panel of 224 x 336 with a quarter of its sides around.
    scale = min(224 / 150, 336 / 240)
    areas = []
    for (x, y), kind in zip(POINTS[:2], TYPES[:2], strict=True):
        column, row = (x - 70) * scale + 112, (y - 110) * scale + 168
        assert near(first[int(row), int(column)], type_colors(K)[kind])
        areas.append((np.abs(first.astype(int) - type_colors(K)[kind]).max(axis=2) <= 2).sum())
    assert areas[0] > 2 * areas[1] > 0
    # Box 1 may not claim the shoulder that lies in it.
    far = np.abs(second.astype(int) - type_colors(K)[SHOULDER]).max(axis=2)
    assert (far > 2).all()


def test_image_around_a_box_lies_where_its_candidates_do():
    image = IMAGE.copy()
    image[60, 50] = 255
    data = assignment(grids=False, owners=False)
    data.pair_scores[:] = 0
    # Far outside of both panels.
    data.pair_scores[:, 3] = 1.0
    data.candidates.points[3] = torch.tensor([5000.0, 5000.0])
    first, _ = evidence_panels(draw_assignment(image, data, COCO), 2, 224)
    inner = first[3:-3, 3:-3].astype(int).sum(axis=2)
    inner[inner > 3 * 130] = 0  # outline of the box
    row, column = np.unravel_index(inner.argmax(), inner.shape)
    # The middle of pixel (50, 60), (50.5, 60.5).
    scale = min(224 / 150, 336 / 240)
    assert column + 3.5 == pytest.approx((50.5 - 70) * scale + 112, abs=1)
    assert row + 3.5 == pytest.approx((60.5 - 110) * scale + 168, abs=1)


def test_empty_images_and_crowded_ones_are_drawn():
    picture = draw_assignment(IMAGE, nothing(), COCO)
    plain = picture[CAPTION : CAPTION + 480, :SIDE]
    assert (plain == 45).all()
    boxes = torch.tensor(BOXES[0]).repeat(300, 1)
    data = nothing()
    data.boxes, data.rated = boxes, torch.arange(300)
    data.poses = AssembledPoses(torch.zeros(300, K, 3), torch.zeros(300), torch.full((300, K), -1))
    data.pair_scores, data.grids = torch.zeros(300, 0), torch.zeros(300, K, 56, 36)
    data.people = torch.arange(300)
    data.boxes[0] = torch.tensor(BOXES[2])
    # Boxes that may claim nothing show nothing.
    assert draw_assignment(IMAGE, data, COCO).shape == picture.shape
    data.candidates = Candidates(torch.tensor([[50.0, 60.0]]), torch.tensor([3]), torch.ones(1))
    data.owners, data.pair_scores = torch.tensor([0]), torch.ones(300, 1)
    crowded = draw_assignment(IMAGE, data, COCO)
    # 24 of them, 6 a row.
    assert crowded.shape[0] == picture.shape[0] + 4 * (336 + CAPTION + GAP)


def test_overview_shows_where_the_people_are():
    data = assignment()
    data.boxes, data.people = data.boxes[:2], data.people[:2]
    data.poses = AssembledPoses(*(x[:2] for x in vars(data.poses).values()))
    picture = draw_candidates(IMAGE, data, COCO)
    # x 20 to 300.5 and a tenth of it, and 1, around, as far as the image reaches: 0 to 329.55;
    # y 20 to 220 likewise: all of it.
    scale = SIDE / 329.55
    assert picture.shape == (round(240 * scale), SIDE, 3)
    for (x, y), kind in zip(POINTS, TYPES, strict=True):
        assert near(picture[int(y * scale), int(x * scale)], type_colors(K)[kind])


def test_tiny_and_broken_places_are_drawn():
    data = assignment()
    data.candidates.points[3] = torch.tensor([1e12, -1e12])
    data.boxes[2] = torch.tensor([5.0, 5.0, 5.0, 5.0])
    data.pair_scores[:] = 1
    data.rated = torch.tensor([0, 2])
    tiny = np.zeros((3, 2, 3), dtype=np.uint8)
    for grids in (data.grids, None):
        data.grids = grids
        assert draw_assignment(tiny, data, COCO).dtype == np.uint8
