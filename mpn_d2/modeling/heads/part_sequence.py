"""The recurrent decoder: one person a step, K maps and a score that there is somebody.

Spec of unified association, section 3; the pattern of the LSTM stack is that of recurrent instance
segmentation (imatge-upc/rsis). Letters: N images, K keypoint types, C channels of the features,
G gates that read them, H x W cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from mpn_d2.layers.conv_lstm import ConvLSTM, LSTMState
from mpn_d2.structures.skeleton import get_skeleton

LOOPS = (0, 2, 3)


def halved_widths(layers: int, width: int, key: str) -> tuple[int, ...]:
    """Channels of each layer, halved after each; a ValueError names the keys if that is not it."""
    if layers < 1 or width < 1 or width % 2 ** (layers - 1):
        raise ValueError(
            f"MODEL.SEQUENCE.{key}: WIDTH {width} cannot be halved {layers - 1} times (LAYERS "
            f"{layers})"
        )
    return tuple(width // 2**i for i in range(layers))


class PartSequenceDecoder(nn.Module):
    """LSTM1 writes people, LSTM2 (if there is one) writes them again, better.

    Feedback loop, without weights of its own: LSTM1 runs `loop` times a person on the features and
    K maps: first noise, then what its last pass wrote; the state goes on through all passes, and
    the last one's maps and stop score count. LSTM2 gets LSTM1's maps first.
    """

    # Cells of the maps a side that are one cell of LSTM1.
    coarse = 1

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_keypoints: int,
        widths: Sequence[int] = (128, 64, 32),
        second_widths: Sequence[int] = (64, 32),
        loop: int = 2,
        second_feedback: bool = True,
        noise: float = 0.1,
    ) -> None:
        """
        Args:
            in_channels: C.
            num_keypoints: K.
            widths: channels of LSTM1's layers.
            second_widths: of LSTM2's; () for none.
            loop: passes per person; 0: one, with zeros in the place of fed-back maps.
            second_feedback: LSTM2 runs as often as LSTM1, else once.
            noise: the first pass's maps are drawn from 0 to that.
        """
        super().__init__()
        if loop not in LOOPS:
            raise ValueError(f"MODEL.SEQUENCE.LOOP is {loop}; choose one of {LOOPS}")
        if noise < 0:
            raise ValueError(f"MODEL.SEQUENCE.NOISE is {noise}: 0 or more is needed")
        self.num_keypoints = num_keypoints
        self.loop, self.second_feedback, self.noise = loop, second_feedback, noise
        channels = in_channels + num_keypoints
        self.lstm1 = ConvLSTM(channels, widths)
        self.maps1 = _map_head(widths[-1], num_keypoints)
        # Of the spatial maxima of every layer.
        self.stop = nn.Linear(sum(widths), 1)
        self.lstm2 = self.maps2 = None
        if second_widths:
            self.lstm2 = ConvLSTM(channels, second_widths)
            self.maps2 = _map_head(second_widths[-1], num_keypoints)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, object]:
        widths = halved_widths(
            cfg.MODEL.SEQUENCE.LSTM1.LAYERS, cfg.MODEL.SEQUENCE.LSTM1.WIDTH, "LSTM1"
        )
        second_widths: tuple[int, ...] = ()
        if cfg.MODEL.SEQUENCE.LSTM2.ENABLED:
            second_widths = halved_widths(
                cfg.MODEL.SEQUENCE.LSTM2.LAYERS, cfg.MODEL.SEQUENCE.LSTM2.WIDTH, "LSTM2"
            )
        return {
            "in_channels": in_channels,
            "num_keypoints": get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
            "widths": widths,
            "second_widths": second_widths,
            "loop": cfg.MODEL.SEQUENCE.LOOP,
            "second_feedback": cfg.MODEL.SEQUENCE.LSTM2.FEEDBACK,
            "noise": cfg.MODEL.SEQUENCE.NOISE,
        }

    @property
    def passes(self) -> int:
        """Of LSTM1 per person."""
        return max(self.loop, 1)

    def join(self, features: torch.Tensor, heatmaps: torch.Tensor, shrink: int) -> torch.Tensor:
        """What `look` is given, of the features (N, C, H, W) and the base's heatmaps.

        Args:
            features: of cells of the maps.
            heatmaps: (N, K, H * shrink, W * shrink); not read here, they are among the features.
            shrink: cells of the base a side that are one of the maps.
        """
        return features

    def look(self, features: torch.Tensor) -> torch.Tensor:
        """What all steps take from the features (N, C, H, W) of the images, to be computed once.

        Returns:
            (N, G, H, W): parts of the gates of LSTM1's first layer, then of LSTM2's.
        """
        lstms = [lstm for lstm in (self.lstm1, self.lstm2) if lstm is not None]
        return torch.cat([lstm.share(features) for lstm in lstms], dim=1)

    def start(self, lstm: ConvLSTM, seen: torch.Tensor) -> LSTMState:
        """Zeros for images of which this was seen, (N, G, H, W)."""
        return lstm.zero_state(len(seen), (seen.shape[-2], seen.shape[-1]), seen.device)

    def write(
        self, seen: torch.Tensor, state: LSTMState, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, LSTMState]:
        """One more person of each image.

        Args:
            seen: (N, G, H, W), see `look`.
            state: of LSTM1 after the last person.
            step: how many people were written before.

        Returns:
            maps (N, K, H, W), logits of the stop score (N,), the new state.
        """
        maps, shared = self._first_maps(seen, step), seen[:, : 4 * self.lstm1.widths[0]]
        for _ in range(self.passes):
            state = self.lstm1(maps, state, shared)
            maps = self.maps1(state[-1][0])
        maxima = torch.cat([h.flatten(2).amax(dim=2) for h, _ in state], dim=1)
        return maps, self.stop(maxima)[:, 0], state

    def write_again(
        self, seen: torch.Tensor, maps: torch.Tensor, state: LSTMState
    ) -> tuple[torch.Tensor, LSTMState]:
        """LSTM2 on one person of each image: LSTM1's (N, K, H, W) -> its own, and the new state."""
        shared = seen[:, 4 * self.lstm1.widths[0] :]
        for _ in range(self.passes if self.second_feedback else 1):
            state = self.lstm2(maps, state, shared)
            maps = self.maps2(state[-1][0])
        return maps, state

    def _first_maps(self, seen: torch.Tensor, step: int) -> torch.Tensor:
        count, _, *size = seen.shape
        shape = (self.num_keypoints, *size)
        if self.loop == 0:
            return seen.new_zeros(count, *shape)
        if self.training:
            return self.noise * torch.rand(count, *shape, device=seen.device)
        # The same for an image alone and in any batch, today and tomorrow; drawn on the CPU, whose
        # numbers do not depend on the device.
        generator = torch.Generator().manual_seed(step)
        noise = torch.rand(shape, generator=generator).to(seen.device)
        return (self.noise * noise).expand(count, *shape)


def _map_head(channels: int, num_keypoints: int) -> nn.Conv2d:
    """Linear 3x3 convolution."""
    conv = nn.Conv2d(channels, num_keypoints, 3, padding=1)
    # Maps are almost everywhere 0 at the start, like their targets.
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv
