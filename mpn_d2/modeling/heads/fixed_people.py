"""A decoder without recurrence: one forward pass gives the maps of a fixed number of people.

Spec of unified association, section 9, R13: the paper says that such a network breaks down, and
tells no number. Letters: N images, P people (the most that are written), K keypoint types, C
channels of the features, H x W cells.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from mpn_d2.layers.conv_lstm import LSTMState
from mpn_d2.modeling.heads.attending_decoder import AttendingDecoder
from mpn_d2.modeling.heads.part_sequence import PartSequenceDecoder
from mpn_d2.structures.skeleton import get_skeleton


class FixedPeopleDecoder(nn.Module):
    """Convolutions in the place of LSTM1, then one head for everybody's maps and one for scores.

    It is driven as PartSequenceDecoder is: `start` looks at the features, `write` hands out one
    person after the other. What was computed travels in the state, so that all steps of an image
    share one backward pass (EXACT_SGD). Layers, their kernels and the score of the layers' spatial
    maxima are those of LSTM1; as 32 channels are few for P K maps, widths are not halved. [ours]
    """

    # It has no recurrent networks; the second is not built on it.
    lstm1 = lstm2 = maps2 = None
    coarse = 1
    join = PartSequenceDecoder.join

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_keypoints: int,
        people: int,
        layers: int = 3,
        width: int = 128,
    ) -> None:
        """
        Args:
            in_channels: C.
            num_keypoints: K.
            people: P.
            layers: 3x3 convolutions with ReLU before the heads, 1 or more.
            width: channels of each.
        """
        super().__init__()
        if min(layers, width, people) < 1:
            raise ValueError(
                f"MODEL.SEQUENCE: LSTM1.LAYERS {layers}, LSTM1.WIDTH {width} and MAX_ITERATIONS "
                f"{people} must be 1 or more"
            )
        self.num_keypoints, self.people = num_keypoints, people
        self.layers = nn.ModuleList(
            nn.Conv2d(width if i else in_channels, width, 3, padding=1) for i in range(layers)
        )
        self.maps1 = nn.Conv2d(width, people * num_keypoints, 3, padding=1)
        self.stop = nn.Linear(layers * width, people)
        for conv in self.layers:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.maps1.weight, std=0.01)
        nn.init.zeros_(self.maps1.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, object]:
        keys = cfg.MODEL.SEQUENCE
        if keys.LSTM2.ENABLED or not keys.EXACT_SGD:
            raise ValueError(
                "MODEL.SEQUENCE.DECODER 'fixed' gives everybody at once: set LSTM2.ENABLED False "
                "and EXACT_SGD True"
            )
        return {
            "in_channels": in_channels,
            "num_keypoints": get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
            "people": keys.MAX_ITERATIONS,
            "layers": keys.LSTM1.LAYERS,
            "width": keys.LSTM1.WIDTH,
        }

    def look(self, features: torch.Tensor) -> torch.Tensor:
        """The features as they are."""
        return features

    def start(self, lstm: object, features: torch.Tensor) -> LSTMState:
        """Everybody in the images of these features (N, C, H, W).

        Returns:
            One pair: maps (N, P, K, H, W) and logits of the scores that there is somebody (N, P).
        """
        x, maxima = features, []
        for conv in self.layers:
            x = conv(x).relu()
            maxima.append(x.flatten(2).amax(dim=2))
        maps = self.maps1(x).unflatten(1, (self.people, self.num_keypoints))
        return [(maps, self.stop(torch.cat(maxima, dim=1)))]

    def write(
        self, features: torch.Tensor, state: LSTMState, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, LSTMState]:
        """The person of that step of each image: maps (N, K, H, W), logits (N,), the same state."""
        ((maps, logits),) = state
        return maps[:, step], logits[:, step], state


PeopleDecoder = PartSequenceDecoder | FixedPeopleDecoder


def build_decoder(cfg: CfgNode, in_channels: int) -> PeopleDecoder:
    """The decoder that MODEL.SEQUENCE.DECODER names, for features of so many channels.

    Raises:
        ValueError: an unknown name, or keys that do not fit it.
    """
    known = {
        "recurrent": PartSequenceDecoder,
        "attending": AttendingDecoder,
        "fixed": FixedPeopleDecoder,
    }
    name = cfg.MODEL.SEQUENCE.DECODER
    if name not in known:
        raise ValueError(f"MODEL.SEQUENCE.DECODER is {name!r}; choose one of {', '.join(known)}")
    if cfg.MODEL.SEQUENCE.COARSE != 1 and name != "attending":
        raise ValueError(
            f"MODEL.SEQUENCE.COARSE is a key of DECODER 'attending', which is {name!r}: set it to 1"
        )
    return known[name](cfg, in_channels)
