"""Maps of one grid read on another: peaks stay where they are in the image."""

from __future__ import annotations

import pytest
import torch

from mpn_d2.codecs.heatmap import decode_heatmaps, encode_heatmaps
from mpn_d2.codecs.resample import Window, grid_size, resample_maps


def gaussians(points: torch.Tensor, grid: tuple[int, int], sigma: float = 7.0) -> torch.Tensor:
    """(K, H, W) maps of one point (K, 2) each at stride 4."""
    keypoints = torch.cat([points, torch.full((len(points), 1), 2.0)], dim=1)
    return encode_heatmaps([keypoints[None]], len(points), grid, 4, sigma)[0]


def test_grid_size():
    assert grid_size((8, 9), 4) == (2, 3)
    assert grid_size((1, 4.5), 4) == (1, 2)


def test_cells_that_coincide_are_copied():
    maps = torch.randn(3, 9, 11)
    whole = resample_maps(maps, 4, Window.whole((32, 40)), (8, 10))
    assert torch.equal(whole, maps[:, :8, :10])
    turned = resample_maps(maps, 4, Window.whole((32, 40), mirrored=True), (8, 10))
    assert torch.equal(turned, maps[:, :8, :10].flip(-1))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("view", "window", "grid"),
    [
        # The view's cells, (x1, y1, x2, y2) in its pixels, cells of the new grid.
        ((40, 50), (0.0, 0.0, 197.0, 158.0), (40, 50)),  # not a whole number of cells
        ((40, 50), (0.0, 0.0, 200.0, 160.0), (60, 75)),  # finer
        ((40, 50), (0.0, 0.0, 200.0, 160.0), (31, 39)),  # coarser
        ((40, 50), (33.3, 21.7, 151.9, 140.2), (30, 30)),  # a part
    ],
)
def test_peaks_keep_their_places(view, window, grid, mirrored):
    x1, y1, x2, y2 = window
    corner, sides = torch.tensor([x1, y1]), torch.tensor([x2 - x1, y2 - y1])
    points = corner + 16 + torch.rand(60, 2) * (sides - 32)
    maps = gaussians(points, view)
    found = resample_maps(maps, 4, Window(*window, mirrored=mirrored), grid)
    assert found.shape == (60, *grid)
    cells = torch.tensor([grid[1], grid[0]])
    want = (points - corner) / sides
    if mirrored:
        want[:, 0] = 1 - want[:, 0]
    got = decode_heatmaps(found[None], 1, 0.3, 1)[0]
    assert got.types.tolist() == list(range(60))
    # Pixels of the view, a twentieth of a cell at most.
    assert ((got.points / cells - want) * sides).abs().max() < 0.2
    assert got.scores.min() > 0.97


def test_values_hold_beyond_the_view():
    maps = torch.rand(2, 5, 6)
    found = resample_maps(maps, 4, Window(-40.0, -40.0, 64.0, 60.0), (25, 26))
    torch.testing.assert_close(found[:, 0, 0], maps[:, 0, 0])
    torch.testing.assert_close(found[:, -1, -1], maps[:, -1, -1])
