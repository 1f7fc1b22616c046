"""Deformable sampling against torchvision's operator and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import deform_conv2d

from mpn_d2.layers.deformable import JointAlignment, MappedAlignment, mix_at_taps

SIZES = [(5, 7), (1, 6), (8, 3)]


def bilinear(feature: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """(C,) of a map (C, H, W) at cell coordinates, 0 outside."""
    total = torch.zeros(len(feature), dtype=feature.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < feature.shape[1] and 0 <= column < feature.shape[2]:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * feature[:, row, column]
    return total


@pytest.mark.parametrize("size", SIZES)
def test_taps_against_loops(size):
    height, width = size
    features = torch.randn(2, 4, height, width, dtype=torch.float64)
    shifts = 2 * torch.randn(2, 2, 3, 2, height, width, dtype=torch.float64)
    weight = torch.randn(5, 4, 3, dtype=torch.float64)
    found = mix_at_taps(features, shifts, weight)
    for n in range(2):
        for row in range(height):
            for column in range(width):
                expected = torch.zeros(5, dtype=torch.float64)
                for group in range(2):
                    of_group = slice(2 * group, 2 * group + 2)
                    for tap in range(3):
                        dx, dy = shifts[n, group, tap, :, row, column].tolist()
                        read = bilinear(features[n, of_group], column + dx, row + dy)
                        expected += weight[:, of_group, tap] @ read
                torch.testing.assert_close(found[n, :, row, column], expected)


@pytest.mark.parametrize("size", SIZES)
def test_mapped_alignment_is_torchvisions_deformable_convolution(size):
    """Values and gradients."""
    layer = MappedAlignment(8, 6, num_keypoints=3, groups=4).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.to_shifts.weight)
    features = torch.randn(2, 8, *size, requires_grad=True)
    offsets = torch.randn(2, 6, *size)
    ours = layer.float()(features, offsets)
    # torchvision: y before x, by group and tap; weight (C', C, 3, 3).
    shifts = layer.to_shifts(offsets).unflatten(1, (-1, 2)).flip(2).flatten(1, 2)
    theirs = deform_conv2d(features, shifts, layer.weight.unflatten(2, (3, 3)), padding=1).relu()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours > 0).float().mean() > 0.2
    wanted = (features, layer.weight, layer.to_shifts.weight)
    factor = torch.randn_like(ours)
    gradients = [torch.autograd.grad((y * factor).sum(), wanted) for y in (ours, theirs)]
    for mine, reference in zip(*gradients, strict=True):
        assert reference.abs().sum() > 0
        torch.testing.assert_close(mine, reference, atol=2e-3, rtol=1e-3)


def test_gradients_by_differences():
    features = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    # Not at whole cells, where bilinear reading has a corner.
    shifts = 0.3 + 0.4 * torch.rand(1, 1, 2, 2, 4, 3, dtype=torch.float64)
    shifts = (shifts + torch.randint(-1, 2, shifts.shape)).requires_grad_()
    weight = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mix_at_taps, (features, shifts, weight))


def test_joint_alignment_reads_exactly_at_the_joints():
    """A map of its own columns and rows, read at a joint, tells where the joint is."""
    layer = JointAlignment(2, 4, num_keypoints=2)
    with torch.no_grad():
        layer.weight.zero_()
        for joint in range(2):
            layer.weight[2 * joint, 0, joint] = layer.weight[2 * joint + 1, 1, joint] = 1.0
    height, width = 6, 9
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    features = torch.stack([columns, rows])[None]
    offsets = torch.zeros(1, 4, height, width)
    # From cell (row 2, column 3): joint 0 at (5.25, 1.5), joint 1 at (0.75, 4).
    offsets[0, :, 2, 3] = torch.tensor([2.25, -0.5, -2.25, 2.0])
    read = layer(features, offsets)
    torch.testing.assert_close(read[0, :, 2, 3], torch.tensor([5.25, 1.5, 0.75, 4.0]))
    # Elsewhere both joints lie in the cell itself.
    torch.testing.assert_close(read[0, :, 5, 8], torch.tensor([8.0, 5.0, 8.0, 5.0]))
    offsets[0, :, 2, 3] = 100.0
    assert not layer(features, offsets)[0, :, 2, 3].any()


@pytest.mark.parametrize("layer", [MappedAlignment(4, 4, 5, 2), JointAlignment(4, 4, 5)])
def test_result_is_float32_under_autocast(layer):
    with torch.autocast("cpu", torch.bfloat16):
        read = layer(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16), torch.randn(1, 10, 5, 5))
    assert read.dtype == torch.float32 and read.shape == (1, 4, 5, 5)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"ALIGN\.GROUPS is 3.* 4 channels"):
        MappedAlignment(4, 4, 5, groups=3)
