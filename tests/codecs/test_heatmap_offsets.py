"""Box heatmaps: the Gaussian's place, reads at offsets against the closed form, the way back."""

from __future__ import annotations

import math

import pytest
import torch

from mpn_d2.codecs.heatmap_offsets import (
    decode_box_heatmaps,
    encode_box_heatmaps,
    read_at_offsets,
    read_at_offsets_fast,
)


def slow_read(maps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Report eq. 2, 3 and 6, sum by sum."""
    height, width = maps.shape[-2:]
    rows, columns = torch.arange(height).double(), torch.arange(width).double()
    out = torch.zeros_like(maps)
    for r in range(maps.shape[0]):
        for k in range(maps.shape[1]):
            for y in range(height):
                for x in range(width):
                    px = x + offsets[r, 2 * k, y, x]
                    py = y + offsets[r, 2 * k + 1, y, x]
                    share = (1 - (rows - py).abs()).clamp(min=0)[:, None]
                    share = share * (1 - (columns - px).abs()).clamp(min=0)
                    out[r, k, y, x] = (maps[r, k] * share).sum()
    return out


def test_reads_and_gradients_equal_the_closed_form():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)
    # Beyond every border, and far away.
    offsets = 2 * torch.randn(2, 6, 4, 5, dtype=torch.double)
    offsets[0, 0, 0, 0], offsets[1, 3, 2, 2] = 1e9, -77.25
    offsets.requires_grad_()
    found, expected = read_at_offsets(maps, offsets), slow_read(maps, offsets)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for own, slowly in zip(
        torch.autograd.grad((found * weights).sum(), (maps, offsets)),
        torch.autograd.grad((expected * weights).sum(), (maps, offsets)),
        strict=True,
    ):
        assert own.abs().sum() > 0
        torch.testing.assert_close(own, slowly)


def test_offsets_of_nothing_and_of_one_cell():
    maps = torch.randn(2, 3, 7, 7)
    offsets = torch.zeros(2, 6, 7, 7)
    assert torch.equal(read_at_offsets(maps, offsets), maps)
    # (+1, 0): every cell reads its right neighbour; the last column reads outside.
    offsets[:, 0::2] = 1
    shifted = read_at_offsets(maps, offsets)
    assert torch.equal(shifted[..., :-1], maps[..., 1:])
    assert (shifted[..., -1] == 0).all()
    # The other axis, for one type alone.
    offsets = torch.zeros(2, 6, 7, 7)
    offsets[:, 3] = -1
    shifted = read_at_offsets(maps, offsets)
    assert torch.equal(shifted[:, 1, 1:], maps[:, 1, :-1]) and (shifted[:, 1, 0] == 0).all()
    assert torch.equal(shifted[:, 0], maps[:, 0])
    assert read_at_offsets(maps[:0], offsets[:0]).shape == (0, 3, 7, 7)


def test_fast_reads_are_the_same():
    maps = torch.randn(2, 3, 56, 41)
    offsets = 3 * torch.randn(2, 6, 56, 41)
    offsets[0, 0, 0, 0], offsets[1, 3, 2, 2] = 1e9, -77.25
    expected = read_at_offsets(maps, offsets)
    found = read_at_offsets_fast(maps, offsets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(read_at_offsets_fast(maps, 0 * offsets), maps)
    shifted = read_at_offsets_fast(maps, torch.full_like(offsets, -2))
    assert torch.equal(shifted[..., 2:, 2:], maps[..., :-2, :-2])
    assert read_at_offsets_fast(maps[:0], offsets[:0]).shape == (0, 3, 56, 41)
    offsets[0, 2, 1, 4] = math.nan
    broken = read_at_offsets_fast(maps, offsets).isnan()
    assert broken[0, 1, 1, 4] and broken.sum() == 1


def test_offsets_of_a_training_that_diverges_show_in_the_result():
    offsets = torch.zeros(1, 4, 5, 6)
    offsets[0, 2, 1, 4] = math.nan
    found = read_at_offsets(torch.rand(1, 2, 5, 6), offsets)
    assert found[0, 1, 1, 4].isnan() and found.isnan().sum() == 1


def test_targets_peak_at_the_joint_s_cell():
    # Box of 28 x 56 pixels: cells of 0.5 x 1 pixels at 56 cells.
    boxes = torch.tensor([[10.0, 20.0, 38.0, 76.0]])
    keypoints = torch.tensor(
        [
            [
                [10.6, 20.2, 2.0],  # cell (row 0, column 1)
                [38.0, 76.0, 1.0],  # the far corner belongs to the last cell
                [24.0, 48.0, 0.0],  # unlabelled
                [9.9, 48.0, 2.0],  # outside
            ]
        ]
    )
    maps = encode_box_heatmaps(keypoints, boxes, 56, sigma=1.0)
    assert maps.shape == (1, 4, 56, 56) and maps.dtype == torch.float32
    assert maps[0, 0, 0, 1] == 1 and maps[0, 1, 55, 55] == 1
    assert (maps[0, :2] < 1).sum() == 2 * 56 * 56 - 2
    assert not maps[0, 2:].any()
    # Two cells right and one down of the peak: exp(-(4 + 1) / 2).
    assert maps[0, 0, 1, 3].item() == pytest.approx(math.exp(-2.5), rel=1e-6)
    wide = encode_box_heatmaps(keypoints, boxes, 56, sigma=2.0)
    assert wide[0, 0, 1, 3].item() == pytest.approx(math.exp(-5 / 8), rel=1e-6)
    visible = encode_box_heatmaps(keypoints, boxes, 56, sigma=1.0, min_visibility=2)
    assert torch.equal(visible[0, 0], maps[0, 0]) and not visible[0, 1].any()
    none = encode_box_heatmaps(keypoints[:0], boxes[:0], 56, sigma=1.0)
    assert none.shape == (0, 4, 56, 56)


@pytest.mark.parametrize("softmax", [False, True])
def test_joints_come_back_within_half_a_cell(softmax):
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[3.5, 8.0, 70.25, 201.0], [0.0, 0.0, 33.0, 20.0]])
    share = torch.rand(2, 5, 2, generator=generator)
    points = boxes[:, None, :2] + share * (boxes[:, 2:] - boxes[:, :2])[:, None]
    keypoints = torch.cat([points, torch.full((2, 5, 1), 2.0)], dim=-1)
    maps = encode_box_heatmaps(keypoints, boxes, 56, sigma=1.0)
    before = maps.clone()
    found = decode_box_heatmaps(maps * 20 if softmax else maps, boxes, softmax)
    assert torch.equal(maps, before)
    cell = (boxes[:, 2:] - boxes[:, :2])[:, None] / 56
    # Half a cell, and half a pixel of the resized map.
    assert ((found[..., :2] - points).abs() <= cell / 2 + 0.51).all()
    assert ((found[..., 2] > 0) & (found[..., 2] <= 1)).all()
    if not softmax:
        assert (found[..., 2] == 1).all()
        nothing = decode_box_heatmaps(torch.zeros_like(maps), boxes, softmax)
        assert (nothing[..., 2] > 0).all() and (nothing[..., 2] < 0.01).all()
    assert decode_box_heatmaps(maps[:0], boxes[:0], softmax).shape == (0, 5, 3)


def test_extreme_logits_have_a_place_and_a_score():
    maps = torch.full((1, 2, 56, 56), -5000.0)
    maps[0, 0, 20:22, 30:32] = 4000.0
    maps[0, 1, 10, 12], maps[0, 1, 11, 13] = 3.0, -2.0
    found = decode_box_heatmaps(maps, torch.tensor([[0.0, 0.0, 112.0, 224.0]]), softmax=True)
    assert torch.isfinite(found).all() and (found[..., 2] > 0).all()
    assert found[0, 0, 0].item() == pytest.approx(62, abs=2)
    assert found[0, 0, 1].item() == pytest.approx(84, abs=4)
    assert found[0, 1, :2].tolist() == pytest.approx([25, 42], abs=2)
