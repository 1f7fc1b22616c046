"""Deformable convolution against the slow bilinear formula, and as a plain one at offsets of 0."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn
from torchvision.ops import deform_conv2d

from mpn_d2.layers import deformable_conv
from mpn_d2.layers.deformable_conv import DeformableConv2d, convolve_then_read


def slow(x, offsets, weight, bias, stride, padding, dilation):
    """Report eq. 2, 3 and 5, sum by sum: G(q, p) = max(0, 1 - |qx - px|) max(0, 1 - |qy - py|)."""
    count, _, height, width = x.shape
    rows, columns = torch.arange(height).float(), torch.arange(width).float()
    size = offsets.shape[2:]
    out = torch.zeros(count, weight.shape[0], *size, dtype=x.dtype)
    kernel = list(itertools.product(range(weight.shape[2]), range(weight.shape[3])))
    for n, i, j in itertools.product(range(count), range(size[0]), range(size[1])):
        total = torch.zeros(weight.shape[0], dtype=x.dtype)
        for tap, (a, b) in enumerate(kernel):
            y = i * stride - padding + a * dilation + offsets[n, 2 * tap, i, j]
            z = j * stride - padding + b * dilation + offsets[n, 2 * tap + 1, i, j]
            share = (1 - (rows - y).abs()).clamp(min=0)[:, None]
            share = share * (1 - (columns - z).abs()).clamp(min=0)
            total = total + weight[:, :, a, b] @ (x[n] * share).sum(dim=(1, 2))
        out[n, :, i, j] = total
    return out if bias is None else out + bias[:, None, None]


def layer_and_input(stride=1, dilation=1, size=(5, 7), bias=True):
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    conv = DeformableConv2d(
        weight,
        nn.Parameter(torch.randn(4)) if bias else None,
        stride=(stride, stride),
        padding=(dilation, dilation),
        dilation=(dilation, dilation),
    )
    x = torch.randn(2, 3, *size, requires_grad=True)
    out = [(side - 1) // stride + 1 for side in size]
    # Reaches beyond every border.
    offsets = (2.5 * torch.randn(2, 18, *out)).requires_grad_()
    return conv, x, offsets


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_equals_the_slow_formula_with_gradients(stride, dilation, monkeypatch):
    conv, x, offsets = layer_and_input(stride, dilation)
    found = conv.convolve(x, offsets)
    expected = slow(x, offsets, conv.weight, conv.bias, stride, dilation, dilation)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Weighted, so that every cell's gradient counts.
    weights = torch.randn_like(found)
    inputs = (x, offsets, conv.weight, conv.bias)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    for own, slowly in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True
    ):
        assert own.abs().sum() > 0
        torch.testing.assert_close(own, slowly, atol=1e-3, rtol=1e-3)
    # Where it is traced, and on a GPU, torchvision's is taken.
    monkeypatch.setattr(deformable_conv, "is_recorded", lambda: True)
    theirs = conv.convolve(x, offsets)
    torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=1e-4)
    for own, other in zip(
        gradients, torch.autograd.grad((theirs * weights).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-3)


def test_at_whole_cells_gradients_are_torchvision_s(monkeypatch):
    """There the slope has a left and a right side; a training begins there."""
    conv, x, _ = layer_and_input(size=(9, 8))
    offsets = torch.randint(-2, 3, (2, 18, 9, 8)).float().requires_grad_()
    weights = torch.randn(2, 4, 9, 8)
    own = torch.autograd.grad((conv.convolve(x, offsets) * weights).sum(), offsets)[0]
    monkeypatch.setattr(deformable_conv, "is_recorded", lambda: True)
    theirs = torch.autograd.grad((conv.convolve(x, offsets) * weights).sum(), offsets)[0]
    # Cells of which no tap reads outside.
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    assert own[inner].abs().sum() > 0
    torch.testing.assert_close(own[inner], theirs[inner], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dilation, size", [(1, (1, 1)), (2, (6, 3)), (1, (2, 9))])
def test_convolving_first_and_reading_then_is_the_same(dilation, size):
    conv, x, offsets = layer_and_input(dilation=dilation, size=size, bias=dilation == 1)
    with torch.no_grad():
        found = convolve_then_read(x, offsets, conv.weight, conv.bias, conv.padding, conv.dilation)
        expected = slow(x, offsets, conv.weight, conv.bias, 1, dilation, dilation)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_it_begins_as_the_convolution_that_it_was_made_from():
    plain = Conv2d(3, 6, 3, padding=1, stride=2, norm=nn.BatchNorm2d(6), activation=F.relu)
    deformable = DeformableConv2d.from_conv(plain)
    x = torch.randn(2, 3, 9, 6)
    assert deformable.weight is plain.weight
    names = set(plain.state_dict()) | {"offset.weight", "offset.bias"}
    assert set(deformable.state_dict()) == names
    plain.eval(), deformable.eval()
    with torch.no_grad():
        assert torch.equal(deformable(x), plain(x))
    torch.testing.assert_close(deformable(x), plain(x), atol=1e-5, rtol=1e-5)
    # And learns from the first step on where to look.
    deformable(x).square().sum().backward()
    assert deformable.offset.weight.grad.abs().sum() > 0
    nn.init.constant_(deformable.offset.bias, 0.5)
    with torch.no_grad():
        assert not torch.allclose(deformable(x), plain(x), atol=1e-3)


def test_groups_of_channels():
    plain = Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    x, offsets = torch.randn(1, 4, 5, 6), torch.randn(1, 18, 5, 6)
    weight = plain.weight
    halves = [
        slow(x[:, :2], offsets, weight[:3], None, 1, 1, 1),
        slow(x[:, 2:], offsets, weight[3:], None, 1, 1, 1),
    ]
    with torch.no_grad():
        found = DeformableConv2d.from_conv(plain).convolve(x, offsets)
    torch.testing.assert_close(found, torch.cat(halves, 1), atol=1e-4, rtol=1e-4)


def test_no_image_and_low_precision():
    deformable = DeformableConv2d.from_conv(Conv2d(3, 4, 3, padding=1))
    empty = deformable(torch.zeros(0, 3, 5, 5))
    assert empty.shape == (0, 4, 5, 5)
    empty.sum().backward()
    nn.init.normal_(deformable.offset.weight, std=0.1)
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = deformable(x.bfloat16())
    torch.testing.assert_close(low, deformable(x), atol=0.2, rtol=0.1)
    low.sum().backward()


def test_offsets_of_a_training_that_diverges_show_in_the_result():
    """The loop's check of the losses is to end it, not an index out of range."""
    conv, x, offsets = layer_and_input(bias=False)
    offsets.data[1, 4, 2, 3] = float("nan")
    found = conv.convolve(x, offsets)
    assert found[1, :, 2, 3].isnan().all() and found.isnan().sum() == 4


def test_a_kernel_that_is_not_square():
    x, offsets = torch.randn(2, 3, 6, 5), 2 * torch.randn(2, 12, 6, 4)
    weight = torch.randn(4, 3, 3, 2)
    found = convolve_then_read(x, offsets, weight, None, (1, 0), (1, 1))
    theirs = deform_conv2d(x, offsets, weight, padding=(1, 0))
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)
