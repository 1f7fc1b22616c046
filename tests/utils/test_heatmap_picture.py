"""Heatmaps over images: where cells come to lie."""

from __future__ import annotations

import numpy as np
import pytest

from mpn_d2.utils import heatmap_picture
from mpn_d2.utils.heatmap_picture import draw_heatmaps

GREY = np.full((60, 90, 3), 100, np.uint8)


def heatmaps(*cells: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> np.ndarray:
    maps = np.zeros((3, *size), np.float32)
    for cell in cells:
        maps[cell] = 1
    return maps


def test_cells_lie_where_they_are_and_all_types_are_seen():
    picture = draw_heatmaps(GREY, heatmaps((0, 5, 7), (2, 15, 25)))
    assert picture.shape == GREY.shape and picture.dtype == np.uint8
    bright = picture.max(axis=2) > 60
    rows, columns = np.nonzero(bright)
    # Cell i covers the pixels 3 i .. 3 i + 2, and fades to the middle of its neighbours.
    for row, column in ((5, 7), (15, 25)):
        assert bright[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].all()
        assert picture[3 * row + 1, 3 * column + 1].max() > 230
    near = [
        (abs(rows - 3 * r - 1) <= 4) & (abs(columns - 3 * c - 1) <= 4)
        for r, c in ((5, 7), (15, 25))
    ]
    assert (near[0] | near[1]).all()
    assert (picture[50, 5] == 50).all()  # elsewhere the image, dimmed


def test_centre_of_mass_is_kept_where_sides_do_not_divide():
    """The maps span the image exactly, whatever the ratio."""
    image = np.zeros((101, 57, 3), np.uint8)
    maps = np.zeros((1, 9, 13), np.float32)
    maps[0, 4, 6] = 1  # the middle one both ways
    light = draw_heatmaps(image, maps).sum(axis=2).astype(float)
    rows, columns = np.indices(light.shape) + 0.5
    assert (light * rows).sum() / light.sum() == pytest.approx(101 / 2, abs=0.01)
    assert (light * columns).sum() / light.sum() == pytest.approx(57 / 2, abs=0.01)


def test_large_images_are_coloured_in_parts(monkeypatch):
    maps = np.random.default_rng(0).random((3, 20, 30), dtype=np.float32)
    image = np.random.default_rng(1).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    whole = draw_heatmaps(image, maps)
    for pixels in (1, 500, 2000):
        monkeypatch.setattr(heatmap_picture, "_PIXELS", pixels)
        assert (draw_heatmaps(image, maps) == whole).all()


def test_values_beyond_one_and_tiny_images():
    assert draw_heatmaps(np.zeros((1, 1, 3), np.uint8), 7 * np.ones((2, 4, 4))).max() > 200
    assert draw_heatmaps(np.zeros((1, 1, 3), np.uint8), -np.ones((2, 4, 4))).max() == 0


def test_other_shapes_are_named():
    with pytest.raises(ValueError, match="heatmaps are"):
        draw_heatmaps(GREY, np.zeros((20, 30)))
    with pytest.raises(ValueError, match="heatmaps are"):
        draw_heatmaps(GREY, np.zeros((0, 20, 30)))
    with pytest.raises(ValueError, match="uint8"):
        draw_heatmaps(GREY.astype(float), heatmaps())
