"""Each evidence against formulas written out here; parameter counts; softmax scopes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from mpn_d2.modeling.assembly.grid_networks import (
    IdentityNetwork,
    MaxNetwork,
    PoseResidualNetwork,
    PriorNetwork,
    grid_cross_entropy,
)

K, SIZE = 5, (12, 7)
SHAPE = (K, *SIZE)


def small_network(**options):
    return PoseResidualNetwork(num_keypoints=K, size=SIZE, nodes=9, **options).eval()


def slow_network(network, grid, residual, softmax):
    """The forward pass of spec 5.2 and 5.3 for one (K, h, w) grid in NumPy."""
    flat = grid.transpose(1, 2, 0).reshape(-1).astype(np.float64)
    features = flat
    for layer in [*network.hidden, network.output]:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        features = np.maximum(weight @ features + bias, 0)
    logits = features + flat if residual else features
    result = np.zeros_like(logits)
    height, width = SIZE
    if softmax == "global":
        groups = [np.arange(len(logits))]
    elif softmax == "slice17":
        groups = [np.arange(i * height * width, (i + 1) * height * width) for i in range(K)]
    else:
        groups = [np.arange(i, len(logits), K) for i in range(K)]
    for group in groups:
        exponentials = np.exp(logits[group])
        result[group] = exponentials / exponentials.sum()
    return result.reshape(height, width, K).transpose(2, 0, 1)


@pytest.mark.parametrize("softmax", ["channel", "global", "slice17"])
@pytest.mark.parametrize("num_hidden", [1, 2])
@pytest.mark.parametrize("residual", [True, False])
def test_network_equals_slow_forward(softmax, num_hidden, residual):
    network = small_network(softmax=softmax, num_hidden=num_hidden, residual=residual)
    grids = torch.rand(3, *SHAPE) * 4
    output = network(grids)
    assert output.shape == grids.shape
    for grid, found in zip(grids.numpy(), output.detach().numpy()):
        np.testing.assert_allclose(found, slow_network(network, grid, residual, softmax), atol=1e-6)


def test_softmax_normalisation():
    grids = torch.rand(2, *SHAPE)
    channel = small_network(softmax="channel")(grids)
    torch.testing.assert_close(channel.sum(dim=(2, 3)), torch.ones(2, K))
    everything = small_network(softmax="global")(grids)
    torch.testing.assert_close(everything.sum(dim=(1, 2, 3)), torch.ones(2))
    sliced = small_network(softmax="slice17")(grids)
    slices = sliced.permute(0, 2, 3, 1).reshape(2, K, -1)
    torch.testing.assert_close(slices.sum(dim=2), torch.ones(2, K))


@pytest.mark.parametrize(("num_hidden", "count"), [(1, 70_224_352), (2, 71_273_952)])
def test_parameter_counts_of_the_paper(num_hidden, count):
    with torch.device("meta"):
        network = PoseResidualNetwork(num_keypoints=17, size=(56, 36), num_hidden=num_hidden)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_gradients_reach_every_parameter_and_the_input():
    network = small_network(num_hidden=2).train()
    grids = torch.rand(4, *SHAPE, requires_grad=True)
    network.loss(grids, torch.rand(4, *SHAPE) * 0.04).backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name
    assert grids.grad.abs().sum() > 0


def test_dropout_only_while_training():
    network = small_network()
    grids = torch.rand(1, *SHAPE)
    assert torch.equal(network(grids), network(grids))
    network.train()
    assert not torch.equal(network(grids), network(grids))


def test_loss_equals_slow_cross_entropy_and_is_finite_at_the_ends():
    chance, label = torch.rand(2, *SHAPE), torch.rand(2, *SHAPE)
    p, t = chance.numpy().astype(np.float64), label.numpy()
    expected = np.mean(-(t * np.log(p) + (1 - t) * np.log(1 - p)))
    assert grid_cross_entropy(chance, label).item() == pytest.approx(expected, rel=1e-5)
    ends = grid_cross_entropy(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert ends.item() == pytest.approx(-np.log(1e-7), rel=0.02)


@pytest.mark.parametrize("softmax", ["channel", "global", "slice17"])
def test_training_loss_of_each_softmax_equals_the_slow_one(softmax):
    network = small_network(softmax=softmax, num_hidden=1, residual=True)
    grids, labels = torch.rand(3, *SHAPE) * 4, torch.rand(3, *SHAPE) * 0.04
    total = 0.0
    for grid, label in zip(grids.numpy(), labels.numpy()):
        p = np.clip(slow_network(network, grid, True, softmax), 1e-7, 1 - 1e-7)
        total += np.sum(-(label * np.log(p) + (1 - label) * np.log(1 - p)))
    assert network.loss(grids, labels).item() == pytest.approx(total / labels.numel(), rel=1e-5)


def test_loss_in_lower_precision_is_float32():
    network = small_network()
    grids, label = torch.rand(2, *SHAPE), torch.rand(2, *SHAPE) * 0.04
    with torch.autocast("cpu", torch.bfloat16):
        loss = network.loss(grids, label)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(network.loss(grids, label).item(), rel=1e-2)


@pytest.mark.parametrize("options", [{"softmax": "all"}, {"num_hidden": 0}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=r"MODEL\.PRN"):
        small_network(**options)


def test_identity():
    grids = torch.rand(2, *SHAPE)
    assert torch.equal(IdentityNetwork()(grids), grids)


def test_max_places_one_gaussian_at_the_first_largest_cell():
    grids = torch.rand(3, *SHAPE)
    grids[0, 1] = 0
    grids[1, 2, 3, 4] = grids[1, 2, 7, 1] = 2.0
    output = MaxNetwork(sigma=2.0)(grids)
    for grid, found in zip(grids.numpy(), output.numpy()):
        for channel, got in zip(grid, found):
            spot = np.zeros(SIZE)
            if channel.max() > 0:
                spot[np.unravel_index(channel.argmax(), SIZE)] = 1
            expected = ndimage.gaussian_filter(spot, 2.0, mode="constant")
            np.testing.assert_allclose(got, expected, atol=1e-6)
    assert output[0, 1].sum() == 0


def test_prior_is_the_mean_label_of_the_training_people():
    evidence = PriorNetwork(num_keypoints=K, size=SIZE)
    grids = torch.rand(2, *SHAPE)
    assert torch.equal(evidence(grids), grids)  # nobody seen yet: identity
    labels = torch.rand(10, *SHAPE)
    for part in labels.split([4, 3, 3]):
        loss = evidence.train().loss(torch.zeros_like(part), part)
        loss.backward()
        assert loss.item() == 0
    evidence.eval().loss(grids, grids)  # a validation loss leaves the prior alone
    torch.testing.assert_close(evidence(grids), grids * labels.mean(dim=0))
    again = PriorNetwork(num_keypoints=K, size=SIZE)
    again.load_state_dict(evidence.state_dict())
    assert torch.equal(again(grids), evidence(grids))


@pytest.mark.parametrize(
    "evidence",
    [
        small_network(num_hidden=2),
        small_network(softmax="slice17"),
        IdentityNetwork(),
        MaxNetwork(sigma=2.0),
        PriorNetwork(num_keypoints=K, size=SIZE),
    ],
)
def test_no_boxes(evidence):
    assert evidence(torch.zeros(0, *SHAPE)).shape == (0, *SHAPE)
    loss = evidence.loss(torch.zeros(0, *SHAPE), torch.zeros(0, *SHAPE))
    loss.backward()
    assert loss == 0
    # DDP waits for a gradient of each of them.
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in evidence.parameters())
