"""What backward passes keep: counted by hand, freed with each chunk."""

from __future__ import annotations

import pytest
import torch

from mpn_d2.engine.sequence_memory import (
    chunk_bytes,
    seconds_per_person,
    step_bytes,
)
from mpn_d2.modeling.heads.part_sequence import PartSequenceDecoder
from mpn_d2.modeling.meta_arch.sequence_training import (
    SequenceRules,
    SequenceTargets,
    SequenceTraining,
)
from mpn_d2.utils.saved_bytes import SavedBytes


def decoder(**options):
    options = {"widths": (8, 4), "second_widths": (4,), **options}
    return PartSequenceDecoder(in_channels=6, num_keypoints=3, **options)


def test_memory_is_counted_once_and_until_it_is_freed():
    model = torch.nn.Linear(10, 5, bias=False)
    kept, x = SavedBytes(), torch.rand(7, 10)
    with kept.watching(model):
        # The input twice (by two layers), the first output's tanh; weights do not count.
        loss = (model(x).tanh() + model(x)).sum()
    assert kept.now == kept.peak == 4 * (7 * 10 + 7 * 5)
    loss.backward()
    assert kept.now == 0 and kept.peak == 4 * (7 * 10 + 7 * 5)


def test_chunks_free_what_earlier_ones_kept():
    net = decoder()
    torch.nn.init.constant_(net.stop.bias, 4.0)
    training = SequenceTraining(net, SequenceRules(most_steps=8))
    targets = SequenceTargets(torch.rand(8, 3, 16, 16), torch.ones(1, 1, 16, 16))
    features = torch.rand(1, 6, 16, 16)
    peaks = {n: chunk_bytes(training, features, targets, n) for n in (1, 2, 4, 8, None)}
    assert peaks[8] == peaks[None]
    for steps in (1, 2, 4):
        assert peaks[steps] == pytest.approx(peaks[8] * steps / 8, rel=0.1)


def test_bytes_of_a_step_are_those_of_a_real_one():
    net = decoder(noise=0.1)
    torch.nn.init.constant_(net.stop.bias, 4.0)
    targets = SequenceTargets(torch.rand(4, 3, 16, 16), torch.ones(1, 1, 16, 16))
    training = SequenceTraining(net, SequenceRules(most_steps=5))
    measured = chunk_bytes(training, torch.rand(1, 6, 16, 16), targets, None)
    with torch.device("meta"):
        counted = step_bytes(decoder(), 6, 4, (16, 16))
    assert counted == pytest.approx(measured, rel=0.1)


def test_eight_people_at_512_fit(paper_config):
    cfg = paper_config("UnifiedAssociation/unified.yaml")
    with torch.device("meta"):
        net = PartSequenceDecoder(cfg, 136)
    assert step_bytes(net, 136, 8, (128, 128)) < 4 * 2**30


def test_time_per_person():
    found = seconds_per_person(decoder().eval(), 6, (8, 8), rounds=2)
    assert set(found) == {"lstm1", "lstm2"} and min(found.values()) > 0
    assert set(seconds_per_person(decoder(second_widths=()).eval(), 6, (8, 8))) == {"lstm1"}
