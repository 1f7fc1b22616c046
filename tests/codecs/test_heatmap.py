"""Heatmap codec against a slow reference and on clean round trips."""

from __future__ import annotations

import math

import pytest
import torch

from mpn_d2.codecs.heatmap import decode_heatmaps, encode_heatmaps


def slow_encode(keypoints, num_keypoints, size, stride, sigma, cut, merge):
    """Spec section 6, cell by cell."""
    maps = torch.zeros(len(keypoints), num_keypoints, *size)
    for n, people in enumerate(keypoints):
        for person in people.tolist():
            for k, (x, y, v) in enumerate(person):
                if v <= 0:
                    continue
                for i in range(size[0]):
                    for j in range(size[1]):
                        d2 = ((j + 0.5) * stride - x) ** 2 + ((i + 0.5) * stride - y) ** 2
                        value = math.exp(-d2 / (2 * sigma**2))
                        if value < cut:
                            continue
                        old = maps[n, k, i, j].item()
                        maps[n, k, i, j] = (
                            max(old, value) if merge == "max" else min(old + value, 1.0)
                        )
    return maps


def people(count: int, num_keypoints: int, size: float) -> torch.Tensor:
    points = torch.rand(count, num_keypoints, 3) * torch.tensor([size, size * 0.8, 3.0])
    points[:, :, 2] = points[:, :, 2].floor()
    return points


@pytest.mark.parametrize("merge", ["max", "add"])
def test_encode_equals_cell_by_cell(merge):
    keypoints = [people(3, 5, 70), people(0, 5, 70), people(6, 5, 70)]
    keypoints[0][0, 0] = torch.tensor([-3.0, 2.0, 2.0])  # outside, but its Gaussian reaches in
    got = encode_heatmaps(keypoints, 5, (13, 17), 4, 6.5, 0.01, merge)
    want = slow_encode(keypoints, 5, (13, 17), 4, 6.5, 0.01, merge)
    assert got.shape == (3, 5, 13, 17)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert got[1].abs().max() == 0
    assert got.max() > 0.5


def test_encode_rejects_wrong_input():
    with pytest.raises(ValueError, match="expected \\(people, 4, 3\\)"):
        encode_heatmaps([torch.zeros(1, 5, 3)], 4, (8, 8), 4, 7.0)
    with pytest.raises(ValueError, match="MERGE"):
        encode_heatmaps([torch.zeros(1, 4, 3)], 4, (8, 8), 4, 7.0, merge="mean")


@pytest.mark.parametrize(("stride", "sigma"), [(4, 7.0), (4, 5.0), (8, 12.0)])
def test_round_trip_on_clean_maps(stride, sigma):
    # One joint per map, anywhere, the outermost cells included.
    size = (23, 31)
    points = torch.rand(200, 1, 2) * torch.tensor([size[1], size[0]]) * stride
    points[0, 0] = torch.tensor([4.0 * stride, 5.0 * stride])  # between four equal cells
    points[1, 0] = torch.tensor([0.1, size[0] * stride - 0.2])  # in a corner
    keypoints = [torch.cat([p, torch.full((1, 1), 2.0)], dim=1)[None] for p in points]
    maps = encode_heatmaps(keypoints, 1, size, stride, sigma)
    decoded = decode_heatmaps(maps, stride, 0.1, 5)
    for candidates, point in zip(decoded, points, strict=True):
        assert len(candidates) == 1
        assert (candidates.points[0] - point[0]).abs().max() <= 0.05
        # The Gaussian's height, wherever in a cell its middle lies; 0.85 to 1 at centres.
        assert 0.999 < candidates.scores[0] <= 1
    # The bare cell of the maximum is within half a cell.
    cells = maps.flatten(1).argmax(dim=1)
    centres = torch.stack([cells % size[1] + 0.5, cells // size[1] + 0.5], dim=1) * stride
    assert (centres - points[:, 0]).abs().max() <= stride / 2 + 1e-4


def slow_peaks(maps, thresh):
    found = set()
    height, width = maps.shape[-2:]
    for k in range(len(maps)):
        for i in range(height):
            for j in range(width):
                value = maps[k, i, j]
                around = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
                inside = [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width]
                if value > thresh and all(maps[k, a, b] < value for a, b in inside):
                    found.add((k, i, j))
    return found


def test_decode_finds_all_local_maxima_in_order():
    maps = torch.randn(2, 3, 11, 9)
    before = maps.clone()
    decoded = decode_heatmaps(maps, 4, 0.1, 99)
    assert torch.equal(maps, before)
    for n, candidates in enumerate(decoded):
        # The refined point lies in the peak's own cell (or on its edge).
        want = slow_peaks(maps[n], 0.1)
        assert len(candidates) == len(want)
        for k, i, j in want:
            near = (candidates.points / 4 - torch.tensor([j + 0.5, i + 0.5])).abs()
            assert ((near <= 0.5001).all(dim=1) & (candidates.types == k)).any()
        assert (candidates.types.diff() >= 0).all()
        for k in range(3):
            assert (candidates.scores[candidates.types == k].diff() <= 0).all()
        assert candidates.scores.max() <= 1


def test_decode_limits_and_padding():
    keypoints = torch.tensor([[[10.0, 10.0, 2.0]], [[50.0, 18.0, 2.0]], [[30.0, 42.0, 1.0]]])
    maps = encode_heatmaps([keypoints, keypoints], 1, (16, 16), 4, 4.0)
    maps[0, 0] *= 0.5
    few = decode_heatmaps(maps, 4, 0.1, 2)
    assert [len(c) for c in few] == [2, 2]
    # The second image ends at x = 49, y = 40: (30, 42) lies in its padding, (50, 18) in a cell
    # that is partly inside, so it moves to the border.
    inside = decode_heatmaps(maps, 4, 0.1, 9, image_sizes=[(64, 64), (40, 49)])
    assert [len(c) for c in inside] == [3, 2]
    want = {(10.0, 10.0), (49.0, 18.0)}
    got = {tuple(round(v, 1) for v in point) for point in inside[1].points.tolist()}
    assert got == want
    assert [len(c) for c in decode_heatmaps(torch.zeros(2, 3, 5, 5), 4, 0.1, 9)] == [0, 0]


def test_one_peak_on_a_plateau():
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 3, 3:5] = 0.7
    candidates = decode_heatmaps(maps, 4, 0.1, 9)[0]
    assert len(candidates) == 1
    torch.testing.assert_close(candidates.points, torch.tensor([[16.0, 14.0]]), atol=0.01, rtol=0)
