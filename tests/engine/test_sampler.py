"""Order of the training images: the plain stream, from any place, shared out to processes."""

from __future__ import annotations

import itertools

import pytest
import torch

from mpn_d2.engine.sampler import ResumableSampler


def reference(size: int, seed: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    stream = []
    while len(stream) < count:
        stream += torch.randperm(size, generator=generator).tolist()
    return stream[:count]


@pytest.mark.parametrize("start", [0, 3, 5, 12])
def test_begins_where_it_is_told(start):
    sampler = ResumableSampler(size=5, seed=3, start=start)
    for _ in range(2):
        assert list(itertools.islice(sampler, 8)) == reference(5, 3, 30)[start : start + 8]


def test_processes_share_the_stream(monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        parts.append(list(itertools.islice(ResumableSampler(size=5, seed=1, start=4), 4)))
    together = [i for pair in zip(*parts, strict=True) for i in pair]
    assert together == reference(5, 1, 12)[4:]
