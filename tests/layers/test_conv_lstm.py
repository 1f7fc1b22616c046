"""Convolutional LSTM: against cells written out per cell of the map, state kept and cut."""

from __future__ import annotations

import math

import pytest
import torch

from mpn_d2.layers.conv_lstm import ConvLSTM, detached, of_images


def slow_cell(conv, width, x, h, c):
    """One layer's step with loops over images, cells and channels."""
    joined = torch.cat([x, h], dim=1)
    n, _, height, wide = joined.shape
    new_h, new_c = torch.zeros_like(h), torch.zeros_like(c)
    reach = conv.kernel_size[0] // 2
    for image in range(n):
        for row in range(height):
            for column in range(wide):
                gates = []
                for out in range(4 * width):
                    value = conv.bias[out].item()
                    for dy in range(-reach, reach + 1):
                        for dx in range(-reach, reach + 1):
                            y, z = row + dy, column + dx
                            if 0 <= y < height and 0 <= z < wide:
                                kernel = conv.weight[out, :, dy + reach, dx + reach]
                                value += (kernel * joined[image, :, y, z]).sum().item()
                    gates.append(value)
                for k in range(width):
                    i, f, o = (1 / (1 + math.exp(-gates[g * width + k])) for g in range(3))
                    g = math.tanh(gates[3 * width + k])
                    cell = f * c[image, k, row, column].item() + i * g
                    new_c[image, k, row, column] = cell
                    new_h[image, k, row, column] = o * math.tanh(cell)
    return new_h, new_c


@torch.no_grad()
def test_two_steps_equal_cells_written_out():
    lstm = ConvLSTM(3, (2, 1))
    state = lstm.zero_state(2, (3, 4), torch.device("cpu"))
    slow = [tuple(t.clone() for t in layer) for layer in state]
    for _ in range(2):
        x = torch.randn(2, 3, 3, 4)
        state = lstm(x, state)
        for layer, (conv, width) in enumerate(zip(lstm.gates, lstm.widths, strict=True)):
            slow[layer] = slow_cell(conv, width, x, *slow[layer])
            x = slow[layer][0]
        for (h, c), (slow_h, slow_c) in zip(state, slow, strict=True):
            torch.testing.assert_close(h, slow_h, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(c, slow_c, atol=1e-5, rtol=1e-5)


def test_what_stays_the_same_at_all_steps_is_computed_once():
    lstm = ConvLSTM(5, (2, 3))
    constant = torch.randn(2, 3, 4, 6, requires_grad=True)
    changing = [torch.randn(2, 2, 4, 6) for _ in range(3)]
    zero = lstm.zero_state(2, (4, 6), constant.device)
    outputs, gradients = [], []
    for apart in (False, True):
        lstm.zero_grad()
        constant.grad, state = None, zero
        shared = lstm.share(constant) if apart else None
        for x in changing:
            inputs = x if apart else torch.cat([constant, x], dim=1)
            state = lstm(inputs, state, shared)
        state[-1][0].square().sum().backward()
        outputs.append(state[-1][0])
        gradients.append([constant.grad, *(p.grad for p in lstm.parameters())])
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_detached_state_has_the_values_and_no_gradient():
    lstm = ConvLSTM(1, (2,))
    early = torch.randn(1, 1, 3, 3, requires_grad=True)
    late = torch.randn(1, 1, 3, 3, requires_grad=True)
    state = lstm(early, lstm.zero_state(1, (3, 3), early.device))
    cut = detached(state)
    assert torch.equal(cut[0][0], state[0][0]) and torch.equal(cut[0][1], state[0][1])
    lstm(late, cut)[0][0].sum().backward()
    assert early.grad is None and late.grad.abs().sum() > 0
    lstm(late, state)[0][0].sum().backward()
    assert early.grad.abs().sum() > 0


def test_state_of_some_images():
    lstm = ConvLSTM(1, (2, 1))
    x = torch.randn(3, 1, 2, 5)
    state = lstm(x, lstm.zero_state(3, (2, 5), x.device))
    two = of_images(state, torch.tensor([2, 0]))
    later, alone = lstm(x, state), lstm(x[[2, 0]], two)
    torch.testing.assert_close(alone[1][0], later[1][0][[2, 0]])


@pytest.mark.parametrize(
    ("widths", "kernel", "message"),
    [((), 3, "widths"), ((4, 0), 3, "widths"), ((4,), 2, "kernel 2")],
)
def test_impossible_layers_are_refused(widths, kernel, message):
    with pytest.raises(ValueError, match=message):
        ConvLSTM(1, widths, kernel)


def test_the_cell_stays_in_single_precision():
    lstm = ConvLSTM(1, (2, 1))
    x = torch.randn(1, 1, 4, 4, dtype=torch.bfloat16)
    state = lstm.zero_state(1, (4, 4), x.device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            state = lstm(x, state)
    assert all(h.dtype == c.dtype == torch.float32 for h, c in state)
