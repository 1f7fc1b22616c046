"""What autograd keeps for backward passes, in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

MIB = 2**20


class SavedBytes:
    """Bytes that autograd keeps for backward passes, each tensor's memory once.

    Attributes:
        now: kept at this moment.
        peak: the most so far.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._users: dict[int, int] = {}
        self._parameters: set[int] = set()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Inside, what is saved is counted, until it is freed; the model's own weights are not."""
        self._parameters = {_memory(p)[0] for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor
        ):
            yield

    def add(self, tensor: torch.Tensor) -> None:
        key, size = _memory(tensor)
        if key in self._parameters:
            return
        self._users[key] = self._users.get(key, 0) + 1
        if self._users[key] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)

    def drop(self, tensor: torch.Tensor) -> None:
        key, size = _memory(tensor)
        if key in self._parameters:
            return
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.now -= size


class _Kept:
    """A saved tensor, counted as long as autograd holds it."""

    def __init__(self, tensor: torch.Tensor, counter: SavedBytes) -> None:
        self.tensor, self._counter = tensor, counter
        counter.add(tensor)

    def __del__(self) -> None:
        self._counter.drop(self.tensor)


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    """Identity and bytes of the memory under a tensor; views share it."""
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()
