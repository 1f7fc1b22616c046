"""A 3x3 convolution of upsampled maps, computed at the maps' own resolution.

Upsampling repeats (nearest) or mixes (bilinear) the same few cells, so that a convolution after it
is a sum of small convolutions before it: the same result up to rounding, at the borders too, for a
fraction of the work. MultiPoseNet's keypoint subnet smooths levels of stride 8, 16 and 32 that were
upsampled to stride 4.

Letters: N images, C channels in, O channels out, h x w cells of a map, s its upsampling factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

# Rows: what of three taps falls on the two cells of a window, where each cell is repeated s times.
# The window of an upsampled cell that is the first of its s, one of the middle, the last.
_FIRST = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0))
_MIDDLE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_LAST = ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))
MODES = ("nearest", "bilinear")


class UpsampledConv(nn.Module):
    """`conv3x3(upsample(x))` with zero padding of one cell, without bias.

    Args:
        weight: (O, C, 3, 3).
        factor: s of the maps that will come; others work too, slower.
        mode: of the upsampling, of MODES (bilinear: corners not aligned).

    Raises:
        ValueError: another mode, or a kernel that is not 3x3.
    """

    def __init__(self, weight: torch.Tensor, factor: int, mode: str = "nearest") -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"upsampling {mode!r}: choose one of {', '.join(MODES)}")
        if tuple(weight.shape[2:]) != (3, 3):
            raise ValueError(f"a 3x3 kernel is needed, not {tuple(weight.shape[2:])}")
        self.factor, self.mode = factor, mode
        self.register_buffer("weight", weight.detach().clone(), persistent=False)
        phases = [_FIRST, _MIDDLE, _LAST] if factor > 2 else [_FIRST, _LAST]
        taps = torch.tensor(phases, dtype=weight.dtype, device=weight.device)
        # (phase of the row, phase of the column, O) as output channels of one 2x2 convolution.
        kernels = torch.einsum("ayi,ocij,bxj->abocyx", taps, weight, taps)
        self.register_buffer("kernels", kernels.detach().flatten(0, 2), persistent=False)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """x (N, C, h, w) -> (N, O, H, W), the convolution of x upsampled to `size` (H, W)."""
        total = x.new_zeros(len(x), self.weight.shape[0], *size)
        return self.add_to(total.contiguous(memory_format=torch.channels_last), x)

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The sum of total (N, O, H, W) and the convolution of x (N, C, h, w), upsampled to total's
        size. May use total's memory."""
        height, width = x.shape[-2:]
        if tuple(total.shape[-2:]) == (height, width):
            return total.add_(F.conv2d(x, self.weight, padding=1))
        exact = tuple(total.shape[-2:]) == (self.factor * height, self.factor * width)
        if self.mode == "nearest" and exact:
            return self._add_phases(total, x)
        return total.add_(self._by_axes(x, (total.shape[-2], total.shape[-1])))

    def _add_phases(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Nearest: all upsampled cells that see the same two by two cells, in the same way, at
        once."""
        height, width = x.shape[-2:]
        windows = F.conv2d(x, self.kernels, padding=1)
        spans = self._spans()
        parts = windows.unflatten(1, (len(spans), len(spans), -1))
        if torch.compiler.is_compiling():
            # Without writing into slices, which compilers are slow with.
            return total + self._joined(parts, spans, (height, width))
        cells = total.unflatten(3, (width, self.factor)).unflatten(2, (height, self.factor))
        for i, (rows, top) in enumerate(spans):
            for j, (columns, left) in enumerate(spans):
                seen = parts[:, i, j, :, top : top + height, left : left + width]
                cells[:, :, :, rows, :, columns] += seen[:, :, :, None, :, None]
        return total

    @staticmethod
    def _joined(
        parts: torch.Tensor, spans: list[tuple[slice, int]], size: tuple[int, int]
    ) -> torch.Tensor:
        """(N, phases, phases, O, h + 1, w + 1) and (h, w) -> (N, O, s h, s w)."""
        height, width = size
        tall = []
        for i, (rows, top) in enumerate(spans):
            wide = []
            for j, (columns, left) in enumerate(spans):
                seen = parts[:, i, j, :, top : top + height, left : left + width]
                repeats = columns.stop - columns.start
                wide.append(seen[:, :, :, None, :, None].expand(-1, -1, -1, -1, -1, repeats))
            row = torch.cat(wide, dim=5)
            tall.append(row.expand(-1, -1, -1, rows.stop - rows.start, -1, -1))
        return torch.cat(tall, dim=3).flatten(4, 5).flatten(2, 3)

    def _spans(self) -> list[tuple[slice, int]]:
        """Per phase: which of the s repeated cells, and the first window that they see."""
        s = self.factor
        middle = [(slice(1, s - 1), 0)] if s > 2 else []
        return [(slice(0, 1), 0), *middle, (slice(s - 1, s), 1)]

    def _by_axes(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Any separable upsampling to any size: the nine taps first, then upsampled and shifted
        along each axis by a matrix."""
        taps = self.weight.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None]
        each = F.conv2d(x, taps).unflatten(1, (3, 3, -1))
        rows = self._shifted(x.shape[2], size[0], x)
        columns = self._shifted(x.shape[3], size[1], x)
        tall = torch.einsum("Hih,nijohw->njoHw", rows, each)
        return torch.einsum("Wjw,njoHw->noHW", columns, tall)

    def _shifted(self, cells: int, size: int, like: torch.Tensor) -> torch.Tensor:
        """(size, 3, cells) what each cell holds of tap -1, 0 and 1 of an upsampled cell."""
        mode, align = ("linear", False) if self.mode == "bilinear" else ("nearest", None)
        dtype = torch.promote_types(like.dtype, torch.float32)
        eye = torch.eye(cells, dtype=dtype, device=like.device)[None]
        up = F.pad(F.interpolate(eye, size=size, mode=mode, align_corners=align)[0], (1, 1))
        return up.unfold(1, 3, 1).permute(1, 2, 0).to(like.dtype)


class ConvOfUpsampledLevels(nn.Module):
    """A 3x3 convolution of maps that are upsampled to the finest one's size and concatenated.

    Args:
        conv: the convolution, with padding 1, perhaps Detectron2's with `norm` and `activation`.
        channels: of each map, in the order of concatenation.
        factors: s of each map; 1 for the finest.
        mode: of the upsampling, of MODES.
    """

    def __init__(
        self, conv: nn.Conv2d, *, channels: Sequence[int], factors: Sequence[int], mode: str
    ) -> None:
        super().__init__()
        weights = conv.weight.split(list(channels), dim=1)
        self.parts = nn.ModuleList(
            UpsampledConv(w, s, mode) for w, s in zip(weights, factors, strict=True)
        )
        self.finest = list(factors).index(1)
        bias = None if conv.bias is None else conv.bias.detach().clone()
        self.register_buffer("bias", bias, persistent=False)
        self.norm = getattr(conv, "norm", None)
        self.activation = getattr(conv, "activation", None)

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (N, C_l, h_l, w_l), in the order of concatenation -> (N, O, H, W)."""
        fine = self.parts[self.finest]
        total = F.conv2d(levels[self.finest], fine.weight, self.bias, padding=1)
        for number, (part, level) in enumerate(zip(self.parts, levels, strict=True)):
            if number != self.finest:
                total = part.add_to(total, level)
        if self.norm is not None:
            total = self.norm(total)
        return total if self.activation is None else self.activation(total)
