"""The decoder's input: norm by running statistics, coarser cells, projection, coordinates."""

from __future__ import annotations

import pytest
import torch

from mpn_d2.modeling.heads.feature_input import FeatureInput, RunningNorm


def test_running_norm_uses_and_collects_running_statistics():
    norm = RunningNorm(2)
    first, second = torch.randn(1, 2, 9, 9) * 3 + 1, torch.randn(1, 2, 9, 9)
    out = norm(first)
    mean, var = first.mean((0, 2, 3)), first.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(norm.running_mean, mean)
    wanted = (first - mean.view(1, 2, 1, 1)) / (var.view(1, 2, 1, 1) + norm.eps).sqrt()
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    out = norm(second)
    both = (mean + second.mean((0, 2, 3))) / 2
    torch.testing.assert_close(norm.running_mean, both)
    # Not the batch's own: its mean is not 0.
    assert out.mean((0, 2, 3)).abs().max() > 0.05
    before = norm.running_mean.clone()
    norm.eval()(first)
    assert torch.equal(norm.running_mean, before)


def test_statistics_of_features_settle():
    """Means of a hundred batches, not of ten, whose chance the decoder would follow."""
    net, mean = FeatureInput(1), 0.0
    for number, value in enumerate(torch.linspace(-1, 1, 301).square().tolist(), start=1):
        net(torch.full((1, 1, 2, 2), value))
        mean += max(1 / number, 0.01) * (value - mean)
    assert net.norm.running_mean.item() == pytest.approx(mean, rel=1e-4)


def test_features_are_shrunk_projected_and_get_coordinates():
    net = FeatureInput(4, shrink=2, project=3, context=2, coordinates=True).eval()
    out = net(torch.rand(2, 4, 10, 6))
    assert out.shape == (2, 5, 5, 3) and net.out_channels == 5
    torch.testing.assert_close(out[0, 3, 0], torch.tensor([-2 / 3, 0.0, 2 / 3]))
    torch.testing.assert_close(out[1, 4, :, 1], torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8]))
    plain = FeatureInput(4, norm=False)
    x = torch.rand(1, 4, 3, 3)
    assert torch.equal(plain(x), x) and plain.out_channels == 4
