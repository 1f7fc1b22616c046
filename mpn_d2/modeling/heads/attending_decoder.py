"""A recurrent decoder that says where to look, and leaves the drawing to the base network.

Ours, not the paper's: PartSequenceDecoder has to write 17 sharp maps out of a few hidden channels,
which takes epochs. Here the hidden state gives a mask a joint, and a person's maps are the base's
heatmaps behind it. The LSTM may work on coarser cells than the maps: its convolutions then reach
further and cost less. Letters: N images, K keypoint types, C channels of the features, H x W cells
of the maps, d cells of them a side that are one cell of the LSTM, h x w = H/d x W/d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import nn

from mpn_d2.layers.conv_lstm import LSTMState
from mpn_d2.modeling.heads.part_sequence import PartSequenceDecoder


class AttendingDecoder(PartSequenceDecoder):
    """maps = blur(sigmoid(mask) * heatmaps) + own, where LSTM1 gives mask and own.

    There is no LSTM2.
    """

    @configurable
    def __init__(self, *, coarse: int = 1, **decoder: object) -> None:
        """
        Args:
            coarse: d.
            decoder: of PartSequenceDecoder; `in_channels` C without the heatmaps.

        Raises:
            ValueError: a second LSTM, or d below 1; names the key.
        """
        super().__init__(**decoder)
        if self.lstm2 is not None:
            raise ValueError(
                "MODEL.SEQUENCE.DECODER 'attending' has no second LSTM: set LSTM2.ENABLED False"
            )
        if coarse < 1:
            raise ValueError(f"MODEL.SEQUENCE.COARSE is {coarse}: 1 or more is needed")
        self.coarse = coarse
        count, hidden = self.num_keypoints, self.lstm1.widths[-1]
        # Own maps and masks' logits. In place of the head of PartSequenceDecoder.
        self.maps1 = nn.Conv2d(hidden, 2 * count, 3, padding=1)
        nn.init.normal_(self.maps1.weight, std=0.03)
        nn.init.zeros_(self.maps1.bias)
        # The base's peaks are narrower than the targets, and lower once cells are averaged.
        self.blur = nn.Conv2d(count, count, 3, padding=1, bias=False)
        nn.init.zeros_(self.blur.weight)
        with torch.no_grad():
            self.blur.weight[range(count), range(count), 1, 1] = 2.0

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, object]:
        options = super().from_config(cfg, in_channels)
        return {**options, "coarse": cfg.MODEL.SEQUENCE.COARSE}

    def join(self, features: torch.Tensor, heatmaps: torch.Tensor, shrink: int) -> torch.Tensor:
        """As the parent's; H and W are multiples of d.

        Returns:
            (N, C + K d^2, h, w): features averaged over d x d cells, then the heatmaps of every
            cell of the maps.
        """
        heatmaps = F.avg_pool2d(heatmaps.float(), shrink)
        features = F.avg_pool2d(features, self.coarse).float()
        return torch.cat([features, F.pixel_unshuffle(heatmaps, self.coarse)], dim=1)

    def look(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C + K d^2, h, w) of `join` -> (N, G + K d^2, h, w), see the parent's."""
        features, heatmaps = self._apart(features)
        return torch.cat([self.lstm1.share(features).float(), heatmaps.float()], dim=1)

    def write(
        self, seen: torch.Tensor, state: LSTMState, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, LSTMState]:
        """As the parent's, with maps (N, K, H, W); the fed-back ones are those of coarse cells."""
        shared, heatmaps = self._apart(seen)
        heatmaps = F.pixel_shuffle(heatmaps, self.coarse)
        coarse = F.avg_pool2d(heatmaps, self.coarse)
        maps = self._first_maps(seen, step)
        for done in range(1, self.passes + 1):
            state = self.lstm1(maps, state, shared)
            written = self.maps1(state[-1][0])
            if done < self.passes:
                maps = self._behind_masks(written, coarse)
        if self.coarse > 1:
            written = F.interpolate(
                written, scale_factor=self.coarse, mode="bilinear", align_corners=False
            )
        maxima = torch.cat([h.flatten(2).amax(dim=2) for h, _ in state], dim=1)
        return self._behind_masks(written, heatmaps), self.stop(maxima)[:, 0], state

    def _behind_masks(self, written: torch.Tensor, heatmaps: torch.Tensor) -> torch.Tensor:
        own, masks = written.chunk(2, dim=1)
        return own + self.blur(masks.sigmoid() * heatmaps)

    def _apart(self, joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features or gates, and the heatmaps behind them."""
        count = self.num_keypoints * self.coarse**2
        return joined[:, :-count], joined[:, -count:]
