"""Pixels, cells and outlines of masks against counting by hand."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest

from mpn_d2.data.person_masks import box_outline, mask_points, reduce_to_cells, union_mask


def test_polygon_pixels_are_those_whose_centre_lies_inside() -> None:
    polygon = np.array([[1.2, 0.7], [13.6, 3.1], [9.4, 10.8], [2.3, 8.2]])
    mask = union_mask([{"segmentation": [polygon.reshape(-1).tolist()]}], (12, 15))
    wrong = 0
    for y in range(12):
        for x in range(15):
            inside = False
            for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, 1, axis=0), strict=True):
                if (y1 > y + 0.5) != (y2 > y + 0.5):
                    inside ^= x + 0.5 < x1 + (y + 0.5 - y1) / (y2 - y1) * (x2 - x1)
            wrong += inside != bool(mask[y, x])
    assert wrong <= 2  # pycocotools rounds to a fifth of a pixel
    assert mask.sum() > 70


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (13, 10)])
def test_cells_at_odd_sizes(size: tuple[int, int]) -> None:
    mask = (np.random.default_rng(0).random(size) < 0.5).astype(np.uint8)
    cells = reduce_to_cells(mask, 4)
    assert cells.shape == (-(-size[0] // 4), -(-size[1] // 4))
    for y in range(cells.shape[0]):
        for x in range(cells.shape[1]):
            assert cells[y, x] == (mask[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean() >= 0.5)


def test_box_as_a_mask_takes_pixel_centres_and_is_cut() -> None:
    boxes = np.array([[0.2, 0.7, 2.3, 2.2], [5, -3, 99, 1.7], [3, 3, 3, 3]])
    expected = np.zeros((4, 7), np.uint8)
    expected[1:2, 0:2] = 1
    expected[0:2, 5:7] = 1
    np.testing.assert_array_equal(union_mask([box_outline(b) for b in boxes], (4, 7)), expected)


def test_points_of_polygons_and_rle_hold_the_mask() -> None:
    mask = np.zeros((9, 11), np.uint8, order="F")
    mask[2, 3:5] = mask[3:6, 1] = 1
    points = mask_points({"segmentation": mask_util.encode(mask)}, (9, 11))
    assert points.min(0).tolist() == [1, 2] and points.max(0).tolist() == [5, 6]
    # Each row is in, at both of its edges.
    assert {(3, 2), (5, 2), (3, 3), (5, 3), (1, 6), (2, 6)} <= {tuple(p) for p in points.tolist()}
    polygons = [[0, 1, 2, 1, 2, 3], [1, 1, 2, 2], [5.5, 5, 6, 5, 6, 7]]
    assert len(mask_points({"segmentation": polygons}, (9, 11))) == 6
    for nothing in ({}, {"segmentation": [[1, 1, 2, 2]]}, {"segmentation": []}):
        assert mask_points(nothing, (9, 11)).shape == (0, 2)
    empty = mask_util.encode(np.zeros((9, 11), np.uint8, order="F"))
    assert mask_points({"segmentation": empty}, (9, 11)).shape == (0, 2)
