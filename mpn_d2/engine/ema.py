"""Running average of the weights while they are trained (exponential moving average).

Averaged: the parameters that train, and the running statistics of norm layers that train (they
belong to the weights that they were measured with). Everything else, frozen parts and counters
among it, is the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """`average = d * average + (1 - d) * weight` after every step, d warmed up.

    d = min(decay, (1 + t) / (10 + t)) at update t = 0, 1, ...: the first steps, far from where
    training ends, are forgotten quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: in training mode with its frozen parts in eval mode; not wrapped (DDP).
            decay: in (0, 1), SOLVER.EMA.DECAY.
        """
        self.decay = decay
        self.updates = 0
        self._weights = _averaged_tensors(model)
        self._swapped = False
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Begins again at the model's weights."""
        self.updates = 0
        self._averages = {name: tensor.clone() for name, tensor in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's weights; to be called after each step of the optimiser."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average = get_ema_multi_avg_fn(decay)
        average(list(self._averages.values()), list(self._weights.values()), None)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """While inside, the model holds the averages; its own weights are kept and come back."""
        if self._swapped:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(kept)
        self._swapped = not self._swapped

    def state_dict(self) -> dict[str, Any]:
        """The trained weights themselves; the averages are what the checkpoint's "model" has.

        To be called inside `swapped`, as checkpoints are saved.
        """
        if not self._swapped:
            raise RuntimeError("a checkpoint with averaged weights is saved inside swapped()")
        return {"updates": self.updates, "trained_weights": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; the model holds the averages of the same checkpoint already."""
        trained = state["trained_weights"]
        if set(trained) != set(self._weights):
            raise ValueError(
                "the checkpoint's averaged weights are those of other parts: resume with the "
                "MODEL.TRAIN_PARTS that it was trained with"
            )
        self.reset()
        self.updates = int(state["updates"])
        for name, weight in self._weights.items():
            weight.copy_(trained[name])


def _averaged_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's own tensors (no copies) that are averaged, by name."""
    tensors = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase) and module.training:
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if buffer.is_floating_point():
                    tensors[name] = buffer
    return tensors
