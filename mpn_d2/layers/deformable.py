"""Features read where a pose lies (spec section 5; paper eq. 6-7, `F* = Align(F, Sample(P))`).

Both modes are torchvision's deformable convolution, which runs forward and backward on CPU and GPU
(Detectron2's own has no CPU backward). Letters: N images, C channels, K keypoint types, H x W
cells. Offsets are x, y by joint in cells of the level, as in codecs/offsets.py.

Export: neither of PyTorch's ONNX exporters translates torchvision::deform_conv2d. Two ways: a
translation of our own to ONNX's DeformConv (opset 19; its inputs are X, W, offset, B, its offsets
are y, x by group and tap as here), or one GridSample (opset 16, bilinear, zeros, align_corners 0)
and one 1x1 convolution per tap and group, as the slow reference in tests/layers/test_deformable.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.ops import deform_conv2d

_SIDE = 3


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
        taps = 2 * groups * _SIDE**2
        self.to_taps = nn.Conv2d(2 * num_keypoints, taps, kernel_size=1, bias=False)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, _SIDE, _SIDE))
        nn.init.normal_(self.to_taps.weight, std=0.1)
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) features and (N, 2K, H, W) offsets in cells -> (N, C', H, W), not negative.

        Both may have any floating type; the result is float32.
        """
        with torch.autocast(features.device.type, enabled=False):
            taps = self.to_taps(offsets.float())
            read = deform_conv2d(features.float(), taps, self.weight, padding=_SIDE // 2)
        return read.relu()


class JointAlignment(nn.Module):
    """One tap exactly at each predicted joint, a C x C' matrix for each; their sum. [inferred]"""

    def __init__(self, in_channels: int, out_channels: int, num_keypoints: int) -> None:
        super().__init__()
        self.num_keypoints = num_keypoints
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, num_keypoints, 1))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """As MappedAlignment's. Between cells features are bilinear, outside the map 0."""
        count = self.num_keypoints
        # A column of K taps: tap k of an undeformed kernel lies k - before rows away.
        before = count // 2
        rows = torch.arange(count, device=offsets.device, dtype=torch.float32) - before
        dx, dy = offsets.float().unflatten(1, (count, 2)).unbind(dim=2)
        taps = torch.stack([dy - rows[:, None, None], dx], dim=2).flatten(1, 2)
        if count % 2 == 0:
            # An even kernel has one more row of outputs, which nobody reads.
            taps = nn.functional.pad(taps, (0, 0, 0, 1))
        with torch.autocast(features.device.type, enabled=False):
            read = deform_conv2d(features.float(), taps, self.weight.float(), padding=(before, 0))
        return read[:, :, : features.shape[2]].relu()
