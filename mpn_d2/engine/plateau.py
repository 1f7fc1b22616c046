"""Learning rate that falls when a validation figure stops getting better (paper section 3.4)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler, build_lr_scheduler
from detectron2.utils import comm
from fvcore.common.param_scheduler import MultiStepParamScheduler, ParamScheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

logger = logging.getLogger(__name__)

NAME = "ReduceOnPlateau"
# The metric that is no "task/name" of the evaluators: the mean loss over DATASETS.TEST.
LOSS = "loss"


class PlateauMultiplier(LRMultiplier):
    """Detectron2's LRMultiplier whose learning rates a plateau lowers on top.

    PyTorch's ReduceLROnPlateau decides: after more than `patience` observations in a row that are
    not better than the best one by the share `threshold`, the rates are multiplied by `factor`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        *,
        metric: str,
        factor: float = 0.1,
        patience: int = 3,
        threshold: float = 1e-4,
        min_share: float = 0.0,
    ) -> None:
        """
        Args:
            optimizer: its learning rates at this moment are the base rates.
            multiplier: of the base rates by progress (the warm-up).
            max_iter: iterations of the whole training.
            metric: "task/name", higher is better, or "loss", lower is better.
            factor, patience, threshold: see above.
            min_share: of the base rates below which no plateau lowers them.
        """
        self.metric = metric
        # Its learning rate is the share of the base rates; no weights hang on it.
        share = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._share = share.param_groups[0]
        self._plateau = ReduceLROnPlateau(
            share,
            mode="min" if metric == LOSS else "max",
            factor=factor,
            patience=patience,
            threshold=threshold,
            min_lr=min_share,
        )
        super().__init__(optimizer, multiplier, max_iter)

    def get_lr(self) -> list[float]:
        return [self._share["lr"] * rate for rate in super().get_lr()]

    def observe(self, value: float) -> None:
        """Takes in the metric of a validation; lowers the optimiser's rates at a plateau."""
        before = self._share["lr"]
        self._plateau.step(value)
        if self._share["lr"] < before:
            for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = rate
            logger.info(
                "%s %.4g is no better than %.4g: learning rate lowered to %.3g",
                self.metric,
                value,
                self._plateau.best,
                self.optimizer.param_groups[0]["lr"],
            )

    def state_dict(self) -> dict[str, Any]:
        plateau = {
            "share": self._share["lr"],
            "best": float(self._plateau.best),
            "bad": self._plateau.num_bad_epochs,
            "seen": self._plateau.last_epoch,
        }
        return {**super().state_dict(), "plateau": plateau}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        plateau = state.pop("plateau", None)
        super().load_state_dict(state)
        if plateau is not None:
            self._share["lr"] = plateau["share"]
            self._plateau.best = plateau["best"]
            self._plateau.num_bad_epochs = plateau["bad"]
            self._plateau.last_epoch = plateau["seen"]


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule that SOLVER.LR_SCHEDULER_NAME names: Detectron2's, or ReduceOnPlateau."""
    if cfg.SOLVER.LR_SCHEDULER_NAME != NAME:
        return build_lr_scheduler(cfg, optimizer)
    return PlateauMultiplier(
        optimizer,
        WarmupParamScheduler(
            MultiStepParamScheduler([1.0], num_updates=cfg.SOLVER.MAX_ITER),
            cfg.SOLVER.WARMUP_FACTOR,
            min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0),
            cfg.SOLVER.WARMUP_METHOD,
        ),
        cfg.SOLVER.MAX_ITER,
        metric=cfg.SOLVER.PLATEAU.METRIC,
        factor=cfg.SOLVER.PLATEAU.FACTOR,
        patience=cfg.SOLVER.PLATEAU.PATIENCE,
        threshold=cfg.SOLVER.PLATEAU.THRESHOLD,
        min_share=cfg.SOLVER.PLATEAU.MIN_LR / cfg.SOLVER.BASE_LR,
    )


def shared_metric(results: dict[str, dict], dataset: str, metric: str) -> float:
    """The metric "task/name" of a dataset, which only the main process has evaluated.

    NaN (which is no better than anything) where the dataset has no ground truth for it.

    Raises:
        ValueError: on every process, if the evaluators do not know the metric.
    """
    task, _, name = metric.partition("/")
    known = results.get(dataset, {}).get(task, {})
    value, names = comm.all_gather((known.get(name), sorted(known)))[0]
    if value is None and names:
        raise ValueError(
            f"SOLVER.PLATEAU.METRIC is {metric!r}, but the evaluation of {dataset} has "
            + ", ".join(f"{task}/{known}" for known in names)
        )
    return float("nan") if value is None else value


def check_plateau(cfg: CfgNode) -> None:
    """Raises a ValueError if SOLVER.PLATEAU asks for what no validation will tell."""
    if cfg.SOLVER.LR_SCHEDULER_NAME != NAME:
        return
    metric = cfg.SOLVER.PLATEAU.METRIC
    if cfg.TEST.EVAL_PERIOD < 1 or not cfg.DATASETS.TEST:
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME {NAME} needs validations: set TEST.EVAL_PERIOD (now "
            f"{cfg.TEST.EVAL_PERIOD}) and DATASETS.TEST (now {tuple(cfg.DATASETS.TEST)})"
        )
    task, _, name = metric.partition("/")
    if metric != LOSS and (not name or task not in cfg.EVAL.TASKS):
        raise ValueError(
            f"SOLVER.PLATEAU.METRIC is {metric!r}: it must be {LOSS} or a metric of EVAL.TASKS "
            f"{list(cfg.EVAL.TASKS)}, keypoints/AP for example"
        )
    if not 0 < cfg.SOLVER.PLATEAU.FACTOR < 1:
        raise ValueError(
            f"SOLVER.PLATEAU.FACTOR is {cfg.SOLVER.PLATEAU.FACTOR}: it must lie between 0 and 1"
        )
    for key in ("PATIENCE", "THRESHOLD", "MIN_LR"):
        if cfg.SOLVER.PLATEAU[key] < 0:
            raise ValueError(f"SOLVER.PLATEAU.{key} is {cfg.SOLVER.PLATEAU[key]}: below 0")
