"""Memory and time of a recurrent decoder: what backward passes keep, seconds per person.

Letters: P people, C channels, H x W cells.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

from mpn_d2.modeling.heads.part_sequence import PartSequenceDecoder
from mpn_d2.modeling.meta_arch.sequence_training import SequenceTargets, SequenceTraining
from mpn_d2.utils.saved_bytes import SavedBytes


def step_bytes(
    decoder: PartSequenceDecoder, channels: int, people: int, size: tuple[int, int]
) -> int:
    """What a training step on one image keeps for its backward pass; nothing is computed.

    Args:
        decoder: on the meta device.
        channels: C of its features.
        people: that are written, and one step more for the stop score.
        size: (H, W).
    """
    kept = SavedBytes()
    features = torch.empty(1, channels, *size, device="meta")
    targets = torch.empty(people, decoder.num_keypoints, *size, device="meta")
    with kept.watching(decoder):
        seen = decoder.look(features)
        state, total, logits, written = decoder.start(decoder.lstm1, seen), [], [], []
        for step in range(people + 1):
            maps, logit, state = decoder.write(seen, state, step)
            logits.append(logit)
            written.append(maps)
        total.append((torch.cat(written[:people]) - targets).square().sum())
        if decoder.lstm2 is not None:
            state, again = decoder.start(decoder.lstm2, seen), []
            for maps in written[:people]:
                maps, state = decoder.write_again(seen, maps, state)
                again.append(maps)
            total.append((torch.cat(again) - targets).square().sum())
        loss = sum(total) + nn.functional.softplus(torch.cat(logits)).sum()
    found = kept.peak
    del loss, total, logits, written, state, seen
    return found


def chunk_bytes(
    training: SequenceTraining, features: torch.Tensor, targets: SequenceTargets, chunk: int | None
) -> int:
    """The most that is kept at any moment while one image trains in chunks: measured.

    Args:
        training: of a decoder with real weights.
        features: (1, C, H, W).
        targets: of the image.
        chunk: steps between two backward passes; None: one pass over all.
    """
    kept = SavedBytes()
    with kept.watching(training.decoder):
        for losses in training.chunks(lambda: features, [targets], chunk):
            total: Any = sum(losses.values())
            total.backward()
            del losses, total
    return kept.peak


@torch.no_grad()
def seconds_per_person(
    decoder: PartSequenceDecoder, channels: int, size: tuple[int, int], rounds: int = 3
) -> dict[str, float]:
    """Median seconds that each LSTM takes for one person of one image, all its passes.

    Without what is computed once an image, whatever the number of people (`look`).

    Args:
        decoder: in evaluation mode.
        channels: C of its features.
        size: (H, W).
        rounds: measurements, after one that does not count.
    """
    seen = decoder.look(torch.rand(1, channels, *size))
    state = decoder.start(decoder.lstm1, seen)
    times: dict[str, list[float]] = {"lstm1": [], "lstm2": []}
    state2 = decoder.start(decoder.lstm2, seen) if decoder.lstm2 is not None else None
    for step in range(rounds + 1):
        start = time.perf_counter()
        maps, _, state = decoder.write(seen, state, step)
        times["lstm1"].append(time.perf_counter() - start)
        if state2 is not None:
            start = time.perf_counter()
            _, state2 = decoder.write_again(seen, maps, state2)
            times["lstm2"].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items() if found}
