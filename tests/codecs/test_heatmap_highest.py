"""The highest place of a map: exact on clean maps, whatever the padding, never without a score."""

from __future__ import annotations

import torch

from mpn_d2.codecs.heatmap import decode_heatmaps, decode_highest, encode_heatmaps

STRIDE, K = 4, 6


def test_gaussians_come_back_exactly() -> None:
    """Random places, the border cells too, at an odd size; argmax alone would be 2 pixels off."""
    points = torch.rand(3, 1, K, 3) * torch.tensor([97.0, 71.0, 0.0]) + torch.tensor([0, 0, 2.0])
    points[0, 0, :4, :2] = torch.tensor([[0.0, 0.0], [97, 71], [0.3, 70.9], [96.0, 0.1]])
    maps = encode_heatmaps(list(points), K, (20, 28), STRIDE, 7.0)
    before = maps.clone()
    found = decode_highest(maps, STRIDE, [(71, 97)] * 3)
    assert found.shape == (3, K, 3) and torch.equal(maps, before)
    torch.testing.assert_close(found[..., :2], points[:, 0, :, :2], atol=0.05, rtol=0)
    assert ((found[..., 2] > 0.97) & (found[..., 2] <= 1)).all()
    # Where there is one peak a map, both ways of reading it agree.
    for n, candidates in enumerate(decode_heatmaps(maps, STRIDE, 0.1, 5, [(71, 97)] * 3)):
        assert candidates.types.tolist() == list(range(K))
        torch.testing.assert_close(found[n, :, :2], candidates.points)
        torch.testing.assert_close(found[n, :, 2], candidates.scores)


def test_padding_is_left_aside_and_points_are_clipped() -> None:
    maps = torch.zeros(2, 1, 8, 8)
    maps[:, 0, 2, 3], maps[:, 0, 6, 1], maps[:, 0, 1, 6] = 0.4, 0.8, 0.9
    found = decode_highest(maps, STRIDE, [(24, 24), (32, 32)])
    assert [(p / STRIDE).floor().tolist() for p in found[:, 0, :2]] == [[3, 2], [6, 1]]
    # Cell 5 is half outside an image of 22 pixels.
    maps[0, 0, 5, 5] = 1.0
    maps[0, 0, 5, 6] = 0.9
    assert decode_highest(maps[:1], STRIDE, [(22, 22)])[0, 0, :2].tolist() == [22.0, 22.0]


def test_scores_are_in_bounds_for_any_map() -> None:
    maps = torch.stack([torch.full((1, 5, 5), v) for v in (-3.0, 0.0, 1e-9, 0.5, 7.0)])
    found = decode_highest(maps, STRIDE)
    assert ((found[..., 2] > 0) & (found[..., 2] <= 1)).all() and found.isfinite().all()
    torch.testing.assert_close(found[3:, 0, 2], torch.tensor([0.5, 1.0]))
    assert ((found[..., :2] >= 0) & (found[..., :2] <= 20)).all()
    assert decode_highest(maps[:0], STRIDE, []).shape == (0, 1, 3)
    # Too few cells for a parabola.
    assert decode_highest(torch.ones(1, 2, 1, 2), STRIDE)[0, 0].tolist() == [2.0, 2.0, 1.0]
