"""A recurrent decoder at test time: people written until nobody is left, read off their maps.

Spec of unified association, section 7. Letters: N images, P people, K keypoint types, C channels,
H x W cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mpn_d2.codecs.heatmap import LEAST_SCORE
from mpn_d2.codecs.subcell import read_highest
from mpn_d2.layers.conv_lstm import of_images
from mpn_d2.modeling.heads.fixed_people import PeopleDecoder
from mpn_d2.modeling.heads.people_order import order_people
from mpn_d2.modeling.meta_arch.bottom_up_poses import mean_of_joints
from mpn_d2.modeling.meta_arch.sequence_training import rewrite

SCORES = ("joints", "stop", "product")


@dataclass
class WrittenPeople:
    """What the decoder wrote for one image.

    Attributes:
        maps: (P, K, H, W) of each step at which somebody was left, by the last LSTM.
        first_maps: (P, K, H, W) the same by LSTM1.
        stop_scores: (P,) of these steps.
        last_score: of the step after them, below omega; None where the steps ran out.
    """

    maps: torch.Tensor
    first_maps: torch.Tensor
    stop_scores: torch.Tensor
    last_score: float | None


def write_people(
    decoder: PeopleDecoder,
    features: torch.Tensor,
    *,
    omega: float,
    most: int,
    order: str,
    tau: float,
) -> list[WrittenPeople]:
    """Runs LSTM1 on each image until its stop score is below omega, then LSTM2.

    Args:
        decoder: in evaluation mode.
        features: (N, C, H, W).
        omega: stop threshold.
        most: steps at most.
        order: of LSTM2's people, see `order_people`.
        tau: see there.

    Returns:
        Of each image; one does not depend on the others.
    """
    maps: list[list[torch.Tensor]] = [[] for _ in features]
    scores: list[list[float]] = [[] for _ in features]
    last: list[float | None] = [None for _ in features]
    everything = seen = decoder.look(features)
    active, state = list(range(len(features))), decoder.start(decoder.lstm1, seen)
    for step in range(most):
        written, logits, state = decoder.write(seen, state, step)
        found = logits.float().sigmoid().tolist()
        going_on = [place for place in range(len(active)) if found[place] >= omega]
        for place, i in enumerate(active):
            if found[place] >= omega:
                maps[i].append(written[place].float())
                scores[i].append(found[place])
            else:
                last[i] = found[place]
        if len(going_on) < len(active):
            kept = torch.tensor(going_on, dtype=torch.long, device=seen.device)
            active = [active[place] for place in going_on]
            seen, state = seen[kept], of_images(state, kept)
        if not active:
            break
    results = []
    for i in range(len(features)):
        empty = features.new_zeros(0, decoder.num_keypoints, *features.shape[-2:])
        first = torch.stack(maps[i]) if maps[i] else empty
        stop_scores = features.new_tensor(scores[i])
        again = first
        if decoder.lstm2 is not None and len(first):
            again = _second(decoder, everything[i : i + 1], first, stop_scores, order, tau)
        results.append(WrittenPeople(again, first, stop_scores, last[i]))
    return results


def _second(
    decoder: Any,
    seen: torch.Tensor,
    maps: torch.Tensor,
    scores: torch.Tensor,
    order: str,
    tau: float,
) -> torch.Tensor:
    """LSTM2's maps of the people of one image, in the order of LSTM1's."""
    # The same draw for every image.
    places = order_people(order, maps, scores, tau, torch.Generator().manual_seed(len(maps)))
    state = decoder.start(decoder.lstm2, seen)
    again, _ = rewrite(decoder, seen, maps[places], state)
    back = torch.empty(len(places), dtype=torch.long, device=maps.device)
    back[places] = torch.arange(len(places), device=maps.device)
    return again.float()[back]


def read_people(
    written: WrittenPeople,
    stride: int,
    image_size: tuple[int, int],
    *,
    tau: float,
    subcell: str,
) -> torch.Tensor:
    """(P, K, 3) x, y in network-input pixels and score in (0, 1]; zeros for missing joints.

    Args:
        written: of one image.
        stride: cell side.
        image_size: (height, width) without padding.
        tau: joints whose map is nowhere that high are missing.
        subcell: see `read_highest`.
    """
    poses = read_highest(written.maps, stride, image_size, subcell)
    missing = poses[..., 2] < tau
    poses[..., 2] = poses[..., 2].clamp(LEAST_SCORE, 1)
    poses[missing] = 0
    return poses


def score_people(poses: torch.Tensor, stop_scores: torch.Tensor, score: str) -> torch.Tensor:
    """(P,) scores of poses (P, K, 3): of the found joints, of the stop head, or their product."""
    if score == "stop":
        return stop_scores.to(poses)
    joints = mean_of_joints(poses)
    return joints if score == "joints" else joints * stop_scores.to(poses)
