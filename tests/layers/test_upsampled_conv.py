"""A convolution of upsampled maps equals upsampling, then convolving."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn

from mpn_d2.layers.upsampled_conv import ConvOfUpsampledLevels, UpsampledConv


def upsampled(x: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    align = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(x, size=size, mode=mode, **align)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4)])
def test_equals_convolving_what_was_upsampled(mode, factor, size):
    x, weight = torch.randn(2, 3, *size).double(), torch.randn(4, 3, 3, 3).double()
    large = (factor * size[0], factor * size[1])
    want = F.conv2d(upsampled(x, large, mode), weight, padding=1)
    got = UpsampledConv(weight, factor, mode).double()(x, large)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("large", [(13, 15), (10, 7), (11, 30)])
def test_sizes_that_are_no_multiples(mode, large):
    x, weight = torch.randn(1, 2, 5, 7), torch.randn(3, 2, 3, 3)
    want = F.conv2d(upsampled(x, large, mode), weight, padding=1)
    got = UpsampledConv(weight, 2, mode)(x, large)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adds_to_what_is_there(layout, factor, compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    size = (4 * factor, 5 * factor)
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 3, 3)
    total = torch.randn(2, 6, *size).contiguous(memory_format=layout)
    want = total + F.conv2d(upsampled(x, size, "nearest"), weight, padding=1)
    got = UpsampledConv(weight, factor).add_to(total, x.contiguous(memory_format=layout))
    # A compiler wants sums without side effects.
    assert (got is total) == (not compiling)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("norm", [None, "GN"])
def test_levels_of_a_pyramid(mode, norm):
    channels, factors = [3, 5, 2, 4], [8, 4, 2, 1]
    conv = Conv2d(
        14,
        6,
        3,
        padding=1,
        bias=norm is None,
        norm=nn.GroupNorm(2, 6) if norm else None,
        activation=F.relu,
    )
    levels = [torch.randn(2, c, 16 // s, 24 // s) for c, s in zip(channels, factors, strict=True)]
    together = torch.cat([upsampled(x, (16, 24), mode) for x in levels], dim=1)
    fast = ConvOfUpsampledLevels(conv, channels=channels, factors=factors, mode=mode)
    torch.testing.assert_close(fast(levels), conv(together), rtol=0, atol=1e-5)
    # Two levels of one size (dilated networks).
    fast = ConvOfUpsampledLevels(conv, channels=[7, 7], factors=[1, 2], mode=mode)
    levels = [torch.randn(1, 7, 6, 8), torch.randn(1, 7, 3, 4)]
    together = torch.cat([upsampled(x, (6, 8), mode) for x in levels], dim=1)
    torch.testing.assert_close(fast(levels), conv(together), rtol=0, atol=1e-5)


def test_mistakes():
    with pytest.raises(ValueError, match="bicubic.*nearest, bilinear"):
        UpsampledConv(torch.zeros(1, 1, 3, 3), 2, "bicubic")
    with pytest.raises(ValueError, match="3x3 kernel"):
        UpsampledConv(torch.zeros(1, 1, 5, 5), 2)
