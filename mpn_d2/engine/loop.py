"""One training step: autocast, micro-batches, finite losses and gradients, averaged weights."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mpn_d2.engine.ema import WeightAverage

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Ids that an error names; a batch of the assembly has hundreds of people.
_MOST_IDS = 40
_GRADIENT = "the gradient"


class TrainingLoop(SimpleTrainer):
    """Detectron2's SimpleTrainer whose step can be cut into micro-batches and run in low precision.

    A batch of this process is cut into `accumulation` micro-batches of equal size; their
    gradients are summed, each weighted by its share of the batch, before the one step of the
    optimiser. That is the gradient of the whole batch for losses that are means over images of
    equal padded size or over people. For others (the detector divides by positive anchors) a model
    may give weights of its own: `micro_batch_weights(micro_batches)`, {head of loss_<head>_<what>:
    a weight for each}.

    Dropout draws from a stream seeded by (seed, iteration, process) at every step, so that a
    resumed run goes on as if it had never stopped.

    Attributes:
        bare_model: the model without the wrapper that exchanges gradients.
        ema: averaged weights, None without them.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        accumulation: int = 1,
        amp_dtype: torch.dtype | None = None,
        ema_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            model: returns {"loss_...": scalar}; may be wrapped in DistributedDataParallel.
            data_loader: endless iterable of lists of samples.
            optimizer: steps once per batch of the loader.
            accumulation: micro-batches per step; divides the length of the loader's lists.
            amp_dtype: type of autocast, None for float32 throughout.
            ema_decay: of the averaged weights, 0 for none.
            seed: of dropout.
        """
        super().__init__(model, data_loader, optimizer)
        self.bare_model = model.module if isinstance(model, DistributedDataParallel) else model
        self.device = next(model.parameters()).device
        self.accumulation = accumulation
        self.amp_dtype = amp_dtype
        self.seed = seed
        # float16 gradients underflow without it; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=amp_dtype is torch.float16 and self.device.type != "cpu"
        )
        self.ema = WeightAverage(self.bare_model, ema_decay) if ema_decay > 0 else None

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        torch.manual_seed(step_seed(self.seed, self.iter, comm.get_rank()))
        self.optimizer.zero_grad()
        losses = self._accumulate_gradients(batch)
        self.after_backward()
        self._write_metrics(losses, data_time)
        # Clipping happens in the optimiser's step (SOLVER.CLIP_GRADIENTS): on true gradients.
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update()

    def _accumulate_gradients(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        """Gradients of a batch; returns its losses, detached.

        Raises:
            FloatingPointError: on every process, if any has a loss or gradient that is not finite.
        """
        size = -(-len(batch) // self.accumulation)
        parts = [batch[first : first + size] for first in range(0, len(batch), size)]
        totals: dict[str, Any] = defaultdict(float)
        broken = []
        for part, weights in zip(parts, self._own_weights(parts), strict=True):
            with self._no_sync_before(part is parts[-1]):
                with self.autocast():
                    losses = self.model(part)
                share = len(part) / len(batch)
                losses = {k: weights.get(_head(k), share) * v for k, v in losses.items()}
                self.scaler.scale(sum(losses.values())).backward()
            names = [k for k, v in losses.items() if not torch.isfinite(v)]
            if names:
                broken.append((names, sample_names(part)))
            for name, loss in losses.items():
                totals[name] = totals[name] + loss.detach()
        if not broken and not self._gradients_are_finite():
            broken.append(([_GRADIENT], sample_names(batch)))
        raise_if_broken(broken, self.iter, self.device)
        return totals

    def _own_weights(self, parts: list[list[dict]]) -> list[dict[str, float]]:
        """Of each micro-batch, the weights that the model itself gives."""
        if len(parts) == 1 or not hasattr(self.bare_model, "micro_batch_weights"):
            return [{} for _ in parts]
        found = self.bare_model.micro_batch_weights(parts)
        return [{head: weights[i] for head, weights in found.items()} for i in range(len(parts))]

    def _gradients_are_finite(self) -> bool:
        """Also True with float16's scaler, which leaves out the step if they are not."""
        if self.scaler.is_enabled():
            return True
        groups = self.optimizer.param_groups
        gradients = [p.grad for g in groups for p in g["params"] if p.grad is not None]
        # Extremes, NaN where there is one: a sum may overflow where every gradient is finite.
        extremes = [x for gradient in gradients if gradient.numel() for x in gradient.aminmax()]
        return not extremes or bool(torch.stack(extremes).isfinite().all())

    def autocast(self) -> AbstractContextManager:
        """The precision that the model runs in."""
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)

    def _no_sync_before(self, last: bool) -> AbstractContextManager:
        """Processes exchange gradients with the last micro-batch alone."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def averaged_weights(self) -> AbstractContextManager:
        """Inside, the model holds what is evaluated and saved: its averages, if there are any."""
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def start_averaging(self) -> None:
        """Averages begin at the weights that the model holds now."""
        if self.ema is not None:
            self.ema.reset()

    def state_dict(self) -> dict:
        state = super().state_dict()
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if self.scaler.is_enabled() and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
        if self.ema is None and "ema" in state_dict:
            raise ValueError(
                "the checkpoint was trained with averaged weights: resume with the "
                "SOLVER.EMA.DECAY that it was trained with"
            )
        if self.ema is not None and "ema" in state_dict:
            self.ema.load_state_dict(state_dict["ema"])
        else:
            self.start_averaging()


def build_training_loop(
    cfg: CfgNode, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer
) -> TrainingLoop:
    """The loop of SOLVER.{ACCUMULATION, AMP, EMA} and SEED (-1 counts as 0)."""
    return TrainingLoop(
        model,
        data_loader,
        optimizer,
        accumulation=cfg.SOLVER.ACCUMULATION,
        amp_dtype=AMP_DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None,
        ema_decay=cfg.SOLVER.EMA.DECAY,
        seed=max(cfg.SEED, 0),
    )


def _head(name: str) -> str:
    """The head that a loss belongs to: loss_<head>_<what>."""
    return name.split("_")[1] if "_" in name else name


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """Seed of one process at one step; different for all that a training meets."""
    # Odd multipliers of SplitMix64 and MurmurHash spread neighbours over 63 bits.
    mixed = seed * 0x9E3779B97F4A7C15 + iteration * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    mixed = (mixed ^ (mixed >> 31)) * 0xFF51AFD7ED558CCD
    return (mixed ^ (mixed >> 29)) & 0x7FFFFFFFFFFFFFFF


def sample_names(samples: list[dict]) -> list[str]:
    """What to call the samples of a batch: "image 12", "image 12 person 3"."""
    names = []
    for sample in samples:
        name = f"image {sample.get('image_id', 'without id')}"
        names.append(f"{name} person {sample['owner']}" if "owner" in sample else name)
    return names


def raise_if_broken(
    broken: list[tuple[list[str], list[str]]], iteration: int, device: torch.device
) -> None:
    """The same one-line error on all processes if one of them has such losses or gradients."""
    found = torch.tensor(len(broken), device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(found)
    if not found:
        return
    everywhere = [entry for process in comm.all_gather(broken) for entry in process]
    # Gradients are those of all processes: a broken loss of one of them is the cause.
    everywhere = [entry for entry in everywhere if entry[0] != [_GRADIENT]] or everywhere
    losses = sorted({name for names, _ in everywhere for name in names})
    samples = [name for _, names in everywhere for name in names]
    more = len(samples) - _MOST_IDS
    raise FloatingPointError(
        f"{', '.join(losses)} became NaN or infinite at iteration {iteration} on a batch of "
        + ", ".join(samples[:_MOST_IDS])
        + (f" and {more} more" if more > 0 else "")
        + ": look at these annotations, lower SOLVER.BASE_LR or set SOLVER.CLIP_GRADIENTS"
    )
