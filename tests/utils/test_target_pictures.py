"""Pictures of targets: what lies where, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, Keypoints

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.target_pictures import (
    IGNORED_COLOR,
    IGNORED_FOR_MASK_COLOR,
    PERSON_COLOR,
    draw_boxes,
    draw_grids,
    draw_heatmap,
    draw_predictions,
    draw_targets,
    join,
    stack,
    tint,
)

COCO = get_skeleton("coco")
STRIDE = 4
CAPTION = 20
# Neither side a multiple of the stride.
GREY = np.full((62, 91, 3), 90, dtype=np.uint8)
CELLS = (16, 24)


def people(*points, size=GREY.shape[:2]):
    keypoints = torch.zeros(1, COCO.num_keypoints, 3)
    for joint, (x, y) in enumerate(points):
        keypoints[0, joint] = torch.tensor([x, y, 2.0])
    return Instances(
        size,
        gt_boxes=Boxes(torch.tensor([[2.0, 2.0, 60.0, 58.0]])),
        gt_keypoints=Keypoints(keypoints),
    )


def brightest(picture):
    """Rows and columns of the brightest pixels: first, one after the last."""
    value = picture.astype(int).sum(axis=2)
    rows, columns = np.nonzero(value == value.max())
    return (rows.min(), rows.max() + 1), (columns.min(), columns.max() + 1)


@pytest.mark.parametrize(("x", "y"), [(30.0, 22.0), (33.9, 20.1), (2.2, 61.5), (90.5, 0.5)])
def test_peak_of_a_drawn_heatmap_is_the_cell_of_the_keypoint(x, y):
    instances = people((x, y))
    maps = encode_heatmaps(
        [instances.gt_keypoints.tensor], COCO.num_keypoints, CELLS, STRIDE, sigma=7.0
    )
    rows, columns = brightest(draw_heatmap(GREY, maps[0].amax(dim=0), STRIDE))
    # The cell that holds (x, y), cut at the border of the image.
    column, row = int(x // STRIDE), int(y // STRIDE)
    assert columns == (column * STRIDE, min(column * STRIDE + STRIDE, GREY.shape[1]))
    assert rows == (row * STRIDE, min(row * STRIDE + STRIDE, GREY.shape[0]))


def test_maps_that_do_not_cover_the_image_are_an_error():
    with pytest.raises(ValueError, match=r"maps of \(15, 24\) cells of 4 px do not cover"):
        draw_heatmap(GREY, torch.zeros(15, 24), STRIDE)


def test_tint_covers_the_cell_and_leaves_the_image():
    cells = np.zeros(CELLS, dtype=bool)
    cells[3, 5] = True
    image = GREY.copy()
    picture = tint(image, cells, (255, 0, 0), STRIDE)
    changed = (picture != GREY).any(axis=2)
    expected = np.zeros_like(changed)
    expected[12:16, 20:24] = True
    assert np.array_equal(changed, expected)
    assert np.array_equal(image, GREY)


def test_targets_show_ignored_cells_heatmaps_and_mask_where_they_are():
    maps = torch.zeros(COCO.num_keypoints + 1, *CELLS)
    maps[3, 2, 20] = 1.0
    maps[-1, 10, 20] = 1.0
    keep = torch.ones_like(maps)
    keep[:, 2, 22] = 0
    keep[-1, 14, 22] = 0
    empty = people((10.0, 10.0))[:0]
    picture = draw_targets(GREY, empty, torch.zeros(0, 4), COCO, maps, keep, STRIDE)
    height, width = GREY.shape[:2]
    assert picture.shape == (height + CAPTION, 3 * width + 8, 3)
    panels = [picture[CAPTION:, i * (width + 4) :][:, :width].astype(int) for i in range(3)]

    def hue(panel, row, column):
        return panel[row * STRIDE + 1, column * STRIDE + 1] - panel[1, 1]

    # Towards the colour, on the side of it that the grey of 90 is on.
    assert (np.sign(hue(panels[0], 2, 22)) == np.sign(np.array(IGNORED_COLOR) - 90)).all()
    assert (np.sign(hue(panels[0], 14, 22)) == np.sign(np.array(IGNORED_FOR_MASK_COLOR) - 90)).all()
    assert not hue(panels[0], 2, 20).any()
    assert hue(panels[1], 2, 20).sum() > 300
    assert not hue(panels[1], 10, 20).any()
    assert (np.sign(hue(panels[2], 10, 20)) == np.sign(np.array(PERSON_COLOR) - 90)).all()


def test_crowd_boxes_are_drawn_on_their_edge():
    picture = draw_boxes(
        GREY, people((20.0, 20.0))[:0], torch.tensor([[40.0, 8.0, 80.0, 50.0]]), COCO
    )
    white = (picture == 255).all(axis=2)
    assert white[30, 40] and white[30, 79] and white[8, 60] and white[49, 60]
    assert not white[30, 60] and not white[30, 36] and not white[30, 84]


def test_predictions_below_the_threshold_are_left_out():
    instances = Instances(
        GREY.shape[:2],
        pred_boxes=Boxes(torch.tensor([[5.0, 5.0, 80.0, 55.0]])),
        scores=torch.tensor([0.4]),
        pred_keypoints=torch.zeros(1, COCO.num_keypoints, 3),
    )
    # Values as a network may predict them.
    maps = torch.full((COCO.num_keypoints + 1, *CELLS), -0.5)
    width = GREY.shape[1]
    hidden = draw_predictions(GREY, instances, COCO, maps, STRIDE)
    assert np.array_equal(hidden[CAPTION:, :width], GREY)
    shown = draw_predictions(GREY, instances, COCO, maps, STRIDE, score_threshold=0.3)
    assert not np.array_equal(shown[CAPTION:, :width], GREY)


def test_grids_are_drawn_cell_by_cell_relative_to_their_largest_value():
    grid = torch.zeros(COCO.num_keypoints, 56, 36)
    grid[0, 10, 20] = 0.2
    grid[5, 30, 3] = 0.05
    keypoints = torch.zeros(2, COCO.num_keypoints, 3)
    keypoints[0, 0] = torch.tensor([50.0, 50.0, 2.0])
    keypoints[1, 0] = torch.tensor([1e9, 50.0, 2.0])
    sample = {
        "keypoints": keypoints,
        "owner": 0,
        "box": torch.tensor([0.0, 0.0, 100.0, 100.0]),
    }
    picture = draw_grids(sample, COCO, 0.21, [grid, 0 * grid], ["input", "label"])
    assert picture.shape == (56 * 4 + CAPTION, 3 * 36 * 4 + 8, 3)
    points, drawn, empty = (picture[CAPTION:, i * 148 :][:, :144] for i in range(3))
    assert not empty.any()
    lit = drawn.any(axis=2)
    expected = np.zeros_like(lit)
    expected[40:44, 80:84] = True
    expected[120:124, 12:16] = True
    assert np.array_equal(lit, expected)
    assert drawn[40, 80].max() == 255
    assert drawn[120, 12].max() == pytest.approx(255 * 0.5, abs=1)
    # The joint in the middle of the box lies in the middle of the picture, in its colour.
    assert tuple(points[112, 72]) == tuple(drawn[40, 80])


def test_rows_of_different_widths_are_stacked():
    wide, narrow = np.ones((3, 9, 3), np.uint8), np.ones((2, 4, 3), np.uint8)
    picture = stack([wide, narrow])
    assert picture.shape == (3 + 4 + 2 + 4, 9, 3)
    assert picture[7:9, :4].all() and not picture[7:9, 4:].any()
    assert join([wide], ["x"]).shape == (3 + CAPTION, 9, 3)
