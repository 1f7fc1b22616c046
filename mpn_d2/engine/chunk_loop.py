"""The training step of models that learn from one image in several backward passes.

Within-image batching (spec of unified association, section 6): a model's `training_chunks(batch)`
yields losses; each are sent backward, and the optimiser steps, before the next are computed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from mpn_d2.engine.loop import (
    AMP_DTYPES,
    TrainingLoop,
    build_training_loop,
    raise_if_broken,
    sample_names,
    step_seed,
)

UPDATES = ("chunk", "image")


class ChunkTrainingLoop(TrainingLoop):
    """TrainingLoop whose step has a backward pass for every chunk of the model's losses.

    An iteration is a batch of the loader, however many chunks it has. Losses that it records are
    sums over the chunks.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        step_every_chunk: bool = True,
        **loop: Any,
    ) -> None:
        """
        Args:
            model: has `training_chunks(batch)`; not shared among processes.
            data_loader, optimizer, loop: as TrainingLoop; `accumulation` is 1.
            step_every_chunk: the optimiser steps after every chunk, with its gradients alone; else
                once, with the sum of all.
        """
        super().__init__(model, data_loader, optimizer, **loop)
        self.step_every_chunk = step_every_chunk

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        torch.manual_seed(step_seed(self.seed, self.iter, comm.get_rank()))
        totals: dict[str, Any] = defaultdict(float)
        self.optimizer.zero_grad()
        chunks = self.bare_model.training_chunks(batch)
        while (losses := self._next(chunks)) is not None:
            total: Any = sum(losses.values())
            self.scaler.scale(total).backward()
            self._check(losses, batch)
            for name, loss in losses.items():
                totals[name] = totals[name] + loss.detach()
            if self.step_every_chunk:
                self._update()
                self.optimizer.zero_grad()
        if not self.step_every_chunk:
            self._update()
        self.after_backward()
        self._write_metrics(totals, data_time)
        if self.ema is not None:
            self.ema.update()

    def _next(self, chunks: Any) -> dict[str, torch.Tensor] | None:
        """The next chunk's losses, computed in the loop's precision; None after the last."""
        with self.autocast():
            return next(chunks, None)

    def _check(self, losses: dict[str, torch.Tensor], batch: list[dict]) -> None:
        names = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        if not names and not self._gradients_are_finite():
            names = ["the gradient"]
        broken = [(names, sample_names(batch))] if names else []
        raise_if_broken(broken, self.iter, self.device)

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def build_loop(
    cfg: CfgNode, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer
) -> TrainingLoop:
    """The loop that a model asks for: in chunks where it gives them and the config wants them.

    Raises:
        ValueError: chunks in several processes or micro-batches, or an unknown UPDATE.
    """
    in_chunks = hasattr(getattr(model, "module", model), "training_chunks")
    if not in_chunks or cfg.MODEL.SEQUENCE.EXACT_SGD:
        return build_training_loop(cfg, model, data_loader, optimizer)
    if cfg.MODEL.SEQUENCE.UPDATE not in UPDATES:
        raise ValueError(
            f"MODEL.SEQUENCE.UPDATE is {cfg.MODEL.SEQUENCE.UPDATE!r}; choose one of "
            + ", ".join(UPDATES)
        )
    if comm.get_world_size() > 1 or cfg.SOLVER.ACCUMULATION > 1:
        raise ValueError(
            "within-image batching has as many backward passes as an image has people: it runs in "
            "one process with SOLVER.ACCUMULATION 1; for more set MODEL.SEQUENCE.EXACT_SGD True"
        )
    return ChunkTrainingLoop(
        model,
        data_loader,
        optimizer,
        step_every_chunk=cfg.MODEL.SEQUENCE.UPDATE == "chunk",
        amp_dtype=AMP_DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None,
        ema_decay=cfg.SOLVER.EMA.DECAY,
        seed=max(cfg.SEED, 0),
    )
