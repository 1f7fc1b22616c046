"""Grid networks: how strongly a box claims each cell of its grid, per keypoint type.

Letters: B boxes, K keypoint types, h x w cells. Every network maps input grids X (B, K, h, w)
(blurred candidates or cropped heatmaps) to Y of the same shape. Pose Residual Network and its
baselines: MultiPoseNet section 3.3 and 4.2; spec sections 5.1 to 5.5.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from detectron2.utils import comm
from torch import nn

from mpn_d2.codecs.person_grid import blur

SOFTMAX_SCOPES = ("channel", "global", "slice17")
# Probabilities are kept this far from 0 and 1 in the loss (spec 5.5).
_CLAMP = 1e-7


class GridNetwork(nn.Module):
    """Base of all grid networks: `forward(X) -> Y` and `loss(X, label)`."""

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Training loss of input grids and label grids, both (B, K, h, w); a scalar."""
        raise NotImplementedError


class PoseResidualNetwork(GridNetwork):
    """Fully connected network over the whole grid, its output added to the input, softmax.

    The grid is flattened as (h, w, K), keypoint fastest, as in the published weights. ReLU
    follows every layer, the last one too (before the addition). Dropout works in training mode
    only. The softmax runs in float32 over

    - "channel": the h * w cells of each keypoint type;
    - "global": all entries;
    - "slice17": K contiguous slices of the flattened vector, each a band of rows of all types;
      what the authors' code does, kept for parity (17 slices for COCO).

    Args:
        num_keypoints: K.
        size: (h, w).
        nodes: units of each hidden layer.
        num_hidden: hidden layers, at least 1 (authors: 1; later implementations: 2).
        dropout: probability after each hidden layer.
        residual: add the input before the softmax.
        softmax: scope, see above.
    """

    def __init__(
        self,
        *,
        num_keypoints: int,
        size: tuple[int, int],
        nodes: int = 1024,
        num_hidden: int = 1,
        dropout: float = 0.5,
        residual: bool = True,
        softmax: str = "channel",
    ) -> None:
        super().__init__()
        if softmax not in SOFTMAX_SCOPES:
            scopes = ", ".join(SOFTMAX_SCOPES)
            raise ValueError(f"MODEL.PRN.SOFTMAX is {softmax!r}; choose one of {scopes}")
        if num_hidden < 1 or nodes < 1:
            raise ValueError(
                f"MODEL.PRN.NUM_HIDDEN and NODES must be at least 1, not {num_hidden} and {nodes}"
            )
        self.residual = residual
        self.softmax = softmax
        entries = size[0] * size[1] * num_keypoints
        widths = [entries] + [nodes] * num_hidden
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(nodes, entries)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, K, h, w) to (B, K, h, w) float32 probabilities."""
        channels_last = inputs.float().permute(0, 2, 3, 1)
        flat = channels_last.flatten(1)
        features = flat
        for layer in self.hidden:
            features = self.dropout(layer(features).relu())
        logits = self.output(features).relu().float()
        if self.residual:
            logits = logits + flat
        return self._probabilities(logits, channels_last.shape).permute(0, 3, 1, 2)

    def _probabilities(self, logits: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """(B, h * w * K) logits to probabilities of `shape` (B, h, w, K)."""
        batch, height, width, channels = shape
        if self.softmax == "channel":
            grouped, dim = logits.view(batch, height * width, channels), 1
        elif self.softmax == "global":
            grouped, dim = logits, 1
        else:
            grouped, dim = logits.view(batch, channels, height * width), 2
        return grouped.softmax(dim).view(shape)

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy, mean over all cells, types and boxes."""
        return grid_cross_entropy(self(inputs), labels)


def grid_cross_entropy(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy in float32, probabilities clamped to [1e-7, 1 - 1e-7].

    0 (with a gradient graph) for an empty batch.
    """
    if probabilities.numel() == 0:
        return probabilities.sum() * 0.0
    chance = probabilities.float().clamp(_CLAMP, 1.0 - _CLAMP)
    labels = labels.float()
    return -(labels * chance.log() + (1.0 - labels) * torch.log1p(-chance)).mean()


class PlainNetwork(GridNetwork):
    """Base of networks without weights: its loss is 0.

    A placeholder parameter hangs on that 0, so that optimisers and `backward()` work unchanged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.zeros(()))

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Zero, with a zero gradient for the placeholder."""
        return self.placeholder * 0.0


class IdentityNetwork(PlainNetwork):
    """Y = X: every candidate counts as much as any other."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, K, h, w) to the same."""
        return inputs


class MaxNetwork(PlainNetwork):
    """Baseline Max: one Gaussian at the largest value of each channel, none in an empty one.

    Args:
        sigma: of the Gaussian, cells (as wide as the PRN's label).
    """

    def __init__(self, *, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, K, h, w) to the same; the first of equal cells wins."""
        flat = inputs.flatten(2)
        # Rounded: two joints that blur into each other tie exactly, not in the last float bit.
        top, cell = torch.round(flat * 1e6).max(dim=2, keepdim=True)
        peaks = torch.zeros_like(flat).scatter_(2, cell, (top > 0).to(flat.dtype))
        return blur(peaks.view_as(inputs), self.sigma, "constant")


class PriorNetwork(PlainNetwork):
    """Baseline UCR: input times the prior of where each joint lies in a box.

    The prior is the mean label of the training people, summed up in two buffers by `loss` in
    training mode (over all processes): one pass over the training people learns all of it.
    Before that it is 1 everywhere, which is identity evidence.

    Args:
        num_keypoints: K.
        size: (h, w).
    """

    def __init__(self, *, num_keypoints: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("label_sum", torch.zeros(num_keypoints, *size))
        self.register_buffer("num_people", torch.zeros(()))

    def prior(self) -> torch.Tensor:
        """(K, h, w) mean label, ones while nobody was seen."""
        mean = self.label_sum / self.num_people.clamp(min=1.0)
        return torch.where(self.num_people > 0, mean, torch.ones_like(mean))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, K, h, w) to the same."""
        return inputs * self.prior()

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Adds the labels to the prior (training mode only) and returns zero."""
        if self.training:
            self._accumulate(labels.detach().float())
        return super().loss(inputs, labels)

    def _accumulate(self, labels: torch.Tensor) -> None:
        seen = labels.sum(dim=0)
        count = torch.full_like(self.num_people, len(labels))
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(seen)
            torch.distributed.all_reduce(count)
        self.label_sum += seen
        self.num_people += count
