"""Convolutional LSTM cells, one above the other, on maps of constant resolution.

Cell (Shi et al., NIPS 2015, without peepholes; spec of unified association, section 3):
`i, f, o = sigmoid(...)`, `g = tanh(...)` of one convolution of [input, h]; `c = f c + i g`;
`h = o tanh(c)`. Letters: N images, C channels, H x W cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

# (h, c) of each layer, (N, width, H, W) each.
LSTMState = list[tuple[torch.Tensor, torch.Tensor]]


class ConvLSTM(nn.Module):
    """Layers of convolutional LSTM cells; a layer's input is the hidden state of the one before."""

    def __init__(self, in_channels: int, widths: Sequence[int], kernel: int = 3) -> None:
        """
        Args:
            in_channels: C of the input.
            widths: channels of the hidden state of each layer, first to last.
            kernel: side of all convolutions, odd.

        Raises:
            ValueError: no layer, a width below 1 or an even kernel.
        """
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"a ConvLSTM of widths {list(widths)}: one or more above 0 are needed")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"a ConvLSTM with kernel {kernel}: an odd number is needed")
        self.widths = tuple(widths)
        inputs = (in_channels, *self.widths[:-1])
        self.gates = nn.ModuleList(
            nn.Conv2d(before + width, 4 * width, kernel, padding=kernel // 2)
            for before, width in zip(inputs, self.widths, strict=True)
        )
        for conv, width in zip(self.gates, self.widths, strict=True):
            nn.init.zeros_(conv.bias)
            # Cells remember at first (Jozefowicz et al., ICML 2015); the order is i, f, o, g.
            nn.init.ones_(conv.bias[width : 2 * width])

    def zero_state(self, images: int, size: tuple[int, int], device: torch.device) -> LSTMState:
        """The state before anything was seen, for maps of (H, W); float32 whatever the input is."""
        zeros = [torch.zeros(images, width, *size, device=device) for width in self.widths]
        return [(x, x) for x in zeros]

    def share(self, constant: torch.Tensor) -> torch.Tensor:
        """What the first layer's gates take from input channels that are the same at every step.

        A convolution is a sum over its input channels: this part is computed once for all steps.

        Args:
            constant: (N, C, H, W) the first C channels of the inputs.

        Returns:
            (N, 4 * widths[0], H, W), bias included.
        """
        conv = self.gates[0]
        weight = conv.weight[:, : constant.shape[1]]
        return F.conv2d(constant, weight, conv.bias, padding=conv.padding)

    def forward(
        self, inputs: torch.Tensor, state: LSTMState, shared: torch.Tensor | None = None
    ) -> LSTMState:
        """One step.

        Args:
            inputs: (N, in_channels, H, W), without the channels that `shared` stands for.
            state: of the step before; not changed.
            shared: of `share`; None: the inputs are whole.

        Returns:
            The new state; the last layer's h is the output.
        """
        after = []
        for conv, width, (h, c) in zip(self.gates, self.widths, state, strict=True):
            inputs = torch.cat([inputs, h.to(inputs.dtype)], dim=1)
            if shared is None:
                values = conv(inputs)
            else:
                weight = conv.weight[:, -inputs.shape[1] :]
                values = shared + F.conv2d(inputs, weight, padding=conv.padding)
                shared = None
            i, f, o = values[:, : 3 * width].sigmoid().chunk(3, dim=1)
            # The cell adds up over many steps: in float32, also in autocast.
            c = f * c + i * values[:, 3 * width :].tanh()
            h = o * c.tanh()
            after.append((h, c))
            inputs = h
        return after


def detached(state: LSTMState) -> LSTMState:
    """The same values, from which no gradient goes back."""
    return [(h.detach(), c.detach()) for h, c in state]


def of_images(state: LSTMState, index: torch.Tensor) -> LSTMState:
    """The state of some images alone; `index` int64 of their places in the batch."""
    return [(h[index], c[index]) for h, c in state]
