"""Locations in a picture: where they are, in whose colour, and nowhere else."""

from __future__ import annotations

import numpy as np
import torch

from mpn_d2.codecs.offsets import Locations
from mpn_d2.utils.location_picture import draw_locations
from mpn_d2.utils.target_pictures import IGNORED_COLOR
from mpn_d2.utils.visualize import track_color


def test_discs_and_points():
    image = np.full((40, 30, 3), 7, dtype=np.uint8)
    # 5 x 4 cells of stride 8 reach beyond the image's 30 columns.
    locations = Locations.of_grids([(5, 4), (3, 2)], [8, 16])
    owners = torch.full((26,), -1)
    owners[5], owners[22] = 0, 3  # cell (1, 1) of stride 8, cell (1, 0) of stride 16
    ignored = torch.zeros(26, dtype=torch.bool)
    ignored[[0, 5, 18]] = True  # (0, 0), a person's, and (4, 2)
    before = image.copy()
    picture = draw_locations(image, locations, owners, ignored)
    assert np.array_equal(image, before) and picture.shape == image.shape
    for (x, y), person in (((12, 12), 0), ((8, 24), 3)):
        expected = [round(255 * c) for c in track_color(person)]
        assert picture[y, x].tolist() == expected
    for x, y in ((4, 4), (20, 36)):
        assert picture[y, x].tolist() == list(IGNORED_COLOR)
    changed = (picture != before).any(axis=2)
    # Two discs of radius 2 and 3, two points.
    assert 15 < changed.sum() < 60
    assert not changed[:, 24:].any() and not changed[30:, :18].any()


def test_nobody():
    image = np.zeros((9, 9, 3), dtype=np.uint8)
    locations = Locations.of_grids([(2, 2)], [8])
    nobody, nothing = torch.full((4,), -1), torch.ones(4, dtype=torch.bool)
    assert not draw_locations(image, locations, nobody, ~nothing).any()
    # One of the four ignored ones lies in the image.
    assert (draw_locations(image, locations, nobody, nothing).any(axis=2)).sum() == 1
