"""Deformable convolution (Dai et al., ICCV 2017) on CPU and GPU, forward and backward.

`y(p0) = sum_n w(p_n) x(p0 + p_n + dp_n)` (report eq. 5; spec multitask_rcnn section 4): every tap n
of the kernel is read where its offset moves it, bilinearly, 0 outside the map. Detectron2's own has
no CPU backward, and is missing where its compiled part is; torchvision's has one. Letters: N
images, C channels, T taps, H x W cells. Offsets are in cells, (dy, dx) of tap 0, (dy, dx) of tap
1 ..., as in both libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn
from torchvision.ops import deform_conv2d


class DeformableConv2d(nn.Module):
    """A convolution whose taps are moved by offsets that a plain one finds in the same features.

    The offsets start as 0: the layer begins as the convolution that it was made from, whose names
    of parameters it keeps (`weight`, `bias`, `norm`); its own are `offset.weight`, `offset.bias`.
    The result is float32. Where all offsets are 0 and no gradient is asked for, it is the plain
    convolution to the last bit: deformed ones add up in another order.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        norm: nn.Module | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """
        Args:
            weight: (C', C / groups, rows, columns) of taps.
            bias: (C',), or None.
            stride, padding, dilation, groups: as nn.Conv2d's, two numbers each.
            norm, activation: applied to the result, in this order.
        """
        super().__init__()
        self.weight = weight
        # Registered also where it is None, as in nn.Conv2d.
        self.register_parameter("bias", bias)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups = groups
        self.norm = norm
        self.activation = activation
        self.offset = nn.Conv2d(
            weight.shape[1] * groups,
            2 * weight[0, 0].numel(),
            kernel_size=(weight.shape[2], weight.shape[3]),
            stride=stride,
            padding=padding,
            dilation=dilation,
        )
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    @classmethod
    def from_conv(cls, conv: Conv2d) -> DeformableConv2d:
        """One with the parameters themselves, norm and activation of a layer of Detectron2."""
        return cls(
            conv.weight,
            conv.bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            norm=conv.norm,
            activation=conv.activation,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        return self.convolve(x, self.offset(x))

    def convolve(self, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """The convolution at given offsets (N, 2T, H', W'), cells; norm and activation too."""
        with torch.autocast(x.device.type, enabled=False):
            x = self._convolve(x.float(), offsets.float())
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)

    def _convolve(self, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        plain = (self.stride, self.padding, self.dilation, self.groups)
        if x.shape[0] == 0:
            # torchvision wants an image; the sum keeps the graph of the offsets whole.
            return F.conv2d(x, self.weight, self.bias, *plain) + offsets.sum() * 0
        if not is_recorded():
            needs_gradient = torch.is_grad_enabled() and (
                x.requires_grad or offsets.requires_grad or self.weight.requires_grad
            )
            if not needs_gradient and not offsets.any():
                return F.conv2d(x, self.weight, self.bias, *plain)
            if x.device.type == "cpu" and self.groups == 1 and tuple(self.stride) == (1, 1):
                return convolve_then_read(
                    x, offsets, self.weight, self.bias, self.padding, self.dilation
                )
        return deform_conv2d(
            x,
            offsets,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )


def convolve_then_read(
    x: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    """A deformable convolution of stride 1, on a CPU faster than torchvision's: twice forward, five
    times forward and backward (one core, 4 x 128 x 40 x 60 and 64 x 128 x 14 x 14).

    Reading is linear: the C x C' product of each tap is taken at whole cells first, by the
    library's convolution, and what the taps find there is read and added up. One row of taps at a
    time: the products of all take so much memory that the system clears new pages for them in each
    call, a fifth of the time of the whole (20 x 512 x 14 x 14). Arguments as `deform_conv2d`'s; one
    group of channels.
    """
    count, channels, height, width = x.shape
    out_channels, _, *kernel = weight.shape
    # (T, C', C): as a matrix, which PyTorch turns faster than four axes.
    by_tap = weight.reshape(out_channels * channels, -1).t().reshape(-1, out_channels, channels)
    x = x.contiguous(memory_format=torch.channels_last)
    rows, columns = _tap_places(offsets, kernel, padding, dilation)
    cells, shares = _corners(rows, columns, (height, width))
    first = torch.arange(count, device=x.device).view(-1, 1, 1, 1, 1) * (height * width)
    in_row = torch.arange(kernel[1], device=x.device)[:, None]
    total = None
    for start in range(0, len(by_tap), kernel[1]):
        taps = slice(start, start + kernel[1])
        products = F.conv2d(x, by_tap[taps].reshape(-1, channels, 1, 1))
        # (cells of all images x taps of the row, C')
        products = products.permute(0, 2, 3, 1).reshape(-1, out_channels)
        places = (cells[..., taps, :] + first) * kernel[1] + in_row
        read = F.embedding_bag(
            places.flatten(0, 2).flatten(1),
            products,
            mode="sum",
            per_sample_weights=shares[..., taps, :].flatten(0, 2).flatten(1),
        )
        # Not in the loop's next turn, beside the next ones.
        del products
        total = read if total is None else total.add_(read)
    total = total if bias is None else total.add_(bias)
    return total.view(count, *offsets.shape[2:], out_channels).permute(0, 3, 1, 2)


def _tap_places(
    offsets: torch.Tensor, kernel: list[int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns (N, H', W', T) where the taps of each output cell read."""
    height, width = offsets.shape[2:]
    dy, dx = offsets.unflatten(1, (-1, 2)).permute(2, 0, 3, 4, 1)
    options: dict[str, Any] = {"device": offsets.device, "dtype": offsets.dtype}
    down = torch.arange(kernel[0], **options) * dilation[0] - padding[0]
    right = torch.arange(kernel[1], **options) * dilation[1] - padding[1]
    rows = torch.arange(height, **options)[:, None, None] + down.repeat_interleave(kernel[1])
    columns = torch.arange(width, **options)[:, None] + right.repeat(kernel[0])
    return rows + dy, columns + dx


def _corners(
    rows: torch.Tensor, columns: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The four cells around each place and their bilinear shares, (..., 4) each; cells outside the
    map of `size` (H, W) have share 0."""
    top, left = rows.floor(), columns.floor()
    cells, shares = [], []
    for row, of_row in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for column, of_column in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
            y, x = _index(row, size[0]), _index(column, size[1])
            cells.append(y * size[1] + x)
            shares.append(of_row * of_column * inside)
    return torch.stack(cells, dim=-1), torch.stack(shares, dim=-1)


def _index(place: torch.Tensor, size: int) -> torch.Tensor:
    """Whole numbers of 0 to size - 1. NaN, which a training that diverges has, is no index: it
    becomes 0, and the share, which is NaN too, makes the result NaN."""
    return place.clamp(0, size - 1).nan_to_num(0.0).long()


def is_recorded() -> bool:
    """Whether a tracer or compiler records what is computed: it must not depend on the values."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
