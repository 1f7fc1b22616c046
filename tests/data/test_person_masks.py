"""Pixels, cells and outlines of masks against counting by hand."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks

from mpn_d2.data.outlines import around_image, outline_length
from mpn_d2.data.person_masks import (
    box_outline,
    instance_masks,
    mask_points,
    reduce_to_cells,
    union_mask,
)


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


def test_what_is_cut_away_around_the_image_changes_nothing_in_it() -> None:
    """Polygons that cross themselves and the image, against pycocotools with all of them."""
    rng = np.random.default_rng(0)
    size, seen = (40, 60), 0
    for _ in range(200):
        polygon = rng.normal((30, 20), rng.choice([20, 200, 1000]), (rng.integers(3, 9), 2))
        near = around_image(polygon, size)
        assert (near >= (-60, -40)).all() and (near <= (120, 80)).all()
        whole = mask_util.decode(mask_util.frPyObjects([polygon.reshape(-1).tolist()], *size))
        mask = union_mask([{"segmentation": [polygon.reshape(-1).tolist()]}], size)
        # Where an edge is cut, it is walked from elsewhere: a fifth of a pixel.
        assert (mask != whole[..., 0]).sum() <= 0.02 * mask.size
        seen += 0 < mask.sum() < mask.size and len(near) != len(polygon)
    assert seen > 30
    inside = np.array([[-59.0, 3], [119, 2], [20, 79]])
    assert around_image(inside, size) is inside
    assert around_image(inside + (0, 5000), size).shape == (0, 2)


def test_outlines_are_as_long_as_pycocotools_walks() -> None:
    assert outline_length(np.array([[0.0, 0], [3, 1], [3, 5]])) == 3 + 4 + 5


def _zigzag(corners: int, reach: float) -> dict:
    return {"segmentation": [[-reach, -reach, reach, reach + 1] * (corners // 2)]}


@pytest.mark.parametrize(("corners", "reach"), [(150, 1e5), (3000, 1e5), (4, 1e300)])
def test_outlines_that_ended_the_process_are_drawn(corners: int, reach: float) -> None:
    """By pycocotools, whole, they take gigabytes or a segmentation fault."""
    enlarge = T.ScaleTransform(30, 40, 900, 1200)
    person = _zigzag(corners, reach)
    assert union_mask([person], (30, 40), enlarge, (900, 1200)).shape == (900, 1200)
    masks, known = instance_masks([person], (30, 40), enlarge, (900, 1200))
    assert len(masks) == 1 and known.tolist() == [True]
    # As a bitmap, where the mask head would enlarge it further.
    assert isinstance(masks, BitMasks if corners > 4 else PolygonMasks)


def test_outlines_without_end_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^polygons with .* pixels of outline: draw them with"):
        union_mask([_zigzag(40_000, 1e5)], (900, 1200))


def test_polygons_outside_of_everything_add_nothing() -> None:
    away = {"segmentation": [[500, 500, 600, 500, 600, 600]]}
    assert not union_mask([away], (20, 30)).any()
    masks, known = instance_masks([away], (20, 30), T.NoOpTransform(), (20, 30))
    assert len(masks) == 1 and known.all()
