"""Features read where a pose lies (spec section 5; paper eq. 6-7, `F* = Align(F, Sample(P))`).

Both modes read the features bilinearly at taps and mix what they read, one matrix a tap, as a
deformable convolution does. PyTorch's grid_sample does it forward and backward on CPU and GPU and
has an ONNX operator (GridSample, opset 16). torchvision's deform_conv2d gives the same numbers (it
is the reference in the tests) but has none, and takes six times as long backward on a CPU;
Detectron2's has no CPU backward. Letters: N images, C channels, G groups of them, T taps, K
keypoint types, H x W cells. Offsets are x, y by joint in cells of the level, as in
codecs/offsets.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_SIDE = 3


def mix_at_taps(features: torch.Tensor, shifts: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Reads features at taps around every cell, bilinearly, 0 outside the map, and mixes them.

    Args:
        features: (N, C, H, W).
        shifts: (N, G, T, 2, H, W) x, y from a cell to each of its taps, in cells; group g of C / G
            channels is read at its own.
        weight: (C', C, T).

    Returns:
        (N, C', H, W).
    """
    count, channels, height, width = features.shape
    groups, taps = shifts.shape[1:3]
    columns = torch.arange(width, device=shifts.device, dtype=shifts.dtype) + 0.5
    rows = torch.arange(height, device=shifts.device, dtype=shifts.dtype) + 0.5
    # grid_sample's frame: the map spans -1 to 1.
    x = (shifts[:, :, :, 0] + columns) * (2 / width) - 1
    y = (shifts[:, :, :, 1] + rows[:, None]) * (2 / height) - 1
    places = torch.stack([x, y], dim=-1).view(count * groups, taps * height, width, 2)
    by_group = features.reshape(count * groups, channels // groups, height, width)
    read = F.grid_sample(by_group, places, align_corners=False)
    mixed = weight.flatten(1) @ read.view(count, channels * taps, height * width)
    return mixed.view(count, -1, height, width)


class MappedAlignment(nn.Module):
    """A 3x3 deformable convolution whose taps a 1x1 convolution finds from the pose. [ref:SMPR]"""

    def __init__(
        self, in_channels: int, out_channels: int, num_keypoints: int, groups: int = 4
    ) -> None:
        """
        Args:
            in_channels, out_channels: of the features.
            num_keypoints: K.
            groups: channels are read in that many groups, each at taps of its own; divides
                `in_channels`.

        Raises:
            ValueError: groups that do not divide the channels.
        """
        super().__init__()
        if groups < 1 or in_channels % groups:
            raise ValueError(
                f"MODEL.POSE_REGRESSION.ALIGN.GROUPS is {groups}: it must divide the "
                f"{in_channels} channels of the pyramid"
            )
        taps = _SIDE**2
        self.groups = groups
        # Channels: x, y by group and tap.
        self.to_shifts = nn.Conv2d(2 * num_keypoints, 2 * groups * taps, 1, bias=False)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, taps))
        nn.init.normal_(self.to_shifts.weight, std=0.1)
        nn.init.normal_(self.weight, std=0.01)
        y, x = torch.meshgrid(*[torch.arange(_SIDE) - _SIDE // 2] * 2, indexing="ij")
        grid = torch.stack([x.flatten(), y.flatten()], dim=1)
        self.register_buffer("undeformed", grid.float()[:, :, None, None], persistent=False)

    def forward(self, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) features and (N, 2K, H, W) offsets in cells -> (N, C', H, W), not negative.

        Both may have any floating type; the result is float32.
        """
        with torch.autocast(features.device.type, enabled=False):
            shifts = self.to_shifts(offsets.float()).unflatten(1, (self.groups, -1, 2))
            return mix_at_taps(features.float(), shifts + self.undeformed, self.weight).relu()


class JointAlignment(nn.Module):
    """One tap exactly at each predicted joint, a C x C' matrix for each; their sum. [inferred]"""

    def __init__(self, in_channels: int, out_channels: int, num_keypoints: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, num_keypoints))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """As MappedAlignment's."""
        with torch.autocast(features.device.type, enabled=False):
            shifts = offsets.float().unflatten(1, (1, -1, 2))
            return mix_at_taps(features.float(), shifts, self.weight).relu()
