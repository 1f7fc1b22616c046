"""Hooks and writers of long runs: progress, events, which checkpoints are kept.

Everything here only watches the training: a run with these hooks equals one without.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer, PeriodicWriter
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.pictures import build_picture_hook
from mpn_d2.utils.files import write_text_atomically
from mpn_d2.utils.metrics_file import METRICS, START

logger = logging.getLogger(__name__)

BEST = "model_best"
_PERIODIC = re.compile(r"model_(\d{7})\.pth")


def add_long_run_hooks(cfg: CfgNode, hooks: list[HookBase], checkpointer: PoseCheckpointer) -> None:
    """Adds this module's hooks to those of Detectron2's trainer, in place; main process alone."""
    place = next(i for i, hook in enumerate(hooks) if isinstance(hook, PeriodicCheckpointer))
    best = build_best_hook(cfg, checkpointer)
    # After the evaluation and before the checkpoint: a run that is killed between the two, and
    # resumed from the checkpoint, would not see this evaluation again.
    hooks[place : place + 1] = [*([best] if best else []), build_checkpoint_hook(cfg, checkpointer)]
    place = next(i for i, hook in enumerate(hooks) if isinstance(hook, PeriodicWriter))
    pictures = build_picture_hook(cfg, to_events=has_tensorboard())
    hooks[place:place] = [StartMarker(), *([pictures] if pictures else [])]


def build_checkpoint_hook(cfg: CfgNode, checkpointer: PoseCheckpointer) -> PeriodicCheckpointer:
    """Saves every SOLVER.CHECKPOINT_PERIOD iterations, keeps the SOLVER.CHECKPOINT_KEEP newest.

    Raises:
        ValueError: a negative number to keep.
    """
    keep = cfg.SOLVER.CHECKPOINT_KEEP
    if keep < 0:
        raise ValueError(f"SOLVER.CHECKPOINT_KEEP is {keep}: 0 (all) or more is needed")
    return NewestCheckpoints(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=keep or None)


def build_best_hook(cfg: CfgNode, checkpointer: PoseCheckpointer) -> BestCheckpoint | None:
    """Keeps the best model by TEST.BEST_METRIC; None where that or DATASETS.TEST is empty."""
    if not cfg.TEST.BEST_METRIC or not cfg.DATASETS.TEST:
        return None
    return BestCheckpoint(
        checkpointer=checkpointer, metrics=cfg.TEST.BEST_METRIC, dataset=cfg.DATASETS.TEST[0]
    )


def build_event_writers(cfg: CfgNode, max_iter: int) -> list[EventWriter]:
    """Progress lines, metrics.json and, where the package is installed, TensorBoard events."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    writers = [
        ProgressPrinter(title="+".join(cfg.MODEL.TRAIN_PARTS), max_iter=max_iter),
        JSONWriter(os.path.join(cfg.OUTPUT_DIR, METRICS)),
    ]
    if has_tensorboard():
        writers.append(TensorboardXWriter(cfg.OUTPUT_DIR))
    else:
        logger.warning(
            "No TensorBoard events: the package cannot be imported (pip install tensorboard)"
        )
    return writers


@cache
def has_tensorboard() -> bool:
    """Whether events can be written for TensorBoard."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        return False
    return True


class NewestCheckpoints(PeriodicCheckpointer):
    """Detectron2's hook, which also counts the checkpoints from before a run was resumed."""

    def before_train(self) -> None:
        super().before_train()
        if self.max_to_keep is None:
            return
        older = earlier_checkpoints(self.checkpointer.save_dir, self.trainer.start_iter)
        for path in older[: -self.max_to_keep]:
            os.remove(path)
        self.recent_checkpoints = older[-self.max_to_keep :]


def earlier_checkpoints(folder: str, start_iter: int) -> list[str]:
    """Periodic checkpoints in a folder from before iteration `start_iter`, oldest first."""
    found = {}
    for path in Path(folder).glob("model_*.pth"):
        match = _PERIODIC.fullmatch(path.name)
        if match and int(match[1]) < start_iter:
            found[int(match[1])] = str(path)
    return [found[iteration] for iteration in sorted(found)]


class BestCheckpoint(HookBase):
    """Keeps the model of the best evaluation as model_best.pth; higher is better.

    model_best.json beside it tells the metric, its value (0 to 100) and the iteration, so that a
    resumed run compares with what was reached before, since its last checkpoint as well.
    last_checkpoint keeps naming the newest, to resume from.
    """

    def __init__(
        self, *, checkpointer: PoseCheckpointer, metrics: Sequence[str], dataset: str
    ) -> None:
        """
        Args:
            checkpointer: writes the file into its `save_dir`.
            metrics: "task/metric" names; of an evaluation the first that has a value counts.
            dataset: name of the test dataset.
        """
        self._checkpointer = checkpointer
        self._metrics = list(metrics)
        self._dataset = dataset
        self._state_file = Path(checkpointer.save_dir) / f"{BEST}.json"
        self._seen: dict | None = None
        self.best: dict[str, Any] | None = None

    def before_train(self) -> None:
        self._seen = self.trainer.last_results
        if self.trainer.start_iter > 0 and self._state_file.with_suffix(".pth").is_file():
            self.best = self._read()
        if self.best is None:
            self._state_file.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        """What an earlier run reached on the same dataset, None if nothing comparable."""
        try:
            best = json.loads(self._state_file.read_text())
            comparable = best["dataset"] == self._dataset and best["metric"] in self._metrics
            return {**best, "value": float(best["value"])} if comparable else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is not readable: the best model is sought anew", self._state_file)
            return None

    def after_step(self) -> None:
        self._compare()

    def after_train(self) -> None:
        self._compare()

    def _compare(self) -> None:
        # The trainer replaces its results at each evaluation, whenever that is.
        if self.trainer.last_results is self._seen:
            return
        self._seen = self.trainer.last_results
        metric, value = self._value(self._seen.get(self._dataset) or {})
        if value is None:
            logger.warning(
                "%s is not kept: the evaluation on %s has no %s (TEST.BEST_METRIC)",
                BEST,
                self._dataset,
                " or ".join(self._metrics),
            )
            return
        if self.best and self.best["metric"] == metric and value <= self.best["value"]:
            logger.info(
                "%s %.3f on %s; best so far: %.3f at iteration %d",
                metric,
                value,
                self._dataset,
                self.best["value"],
                self.best["iteration"],
            )
            return
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        self._checkpointer.save_aside(BEST, iteration=iteration)
        self.best = {
            "dataset": self._dataset,
            "metric": metric,
            "value": value,
            "iteration": iteration,
        }
        write_text_atomically(self._state_file, json.dumps(self.best) + "\n")
        logger.info("%s: %s %.3f on %s, the best so far", BEST, metric, value, self._dataset)

    def _value(self, tasks: dict[str, dict]) -> tuple[str, float | None]:
        """Name and value of the metric that counts; None without one."""
        for name in self._metrics:
            task, _, metric = name.partition("/")
            value = (tasks.get(task) or {}).get(metric)
            if value is not None:
                return name, float(value)
        return "", None


class StartMarker(HookBase):
    """Writes the iteration that this run starts at into metrics.json, for its readers."""

    def before_train(self) -> None:
        self.trainer.storage.put_scalar(START, self.trainer.start_iter, smoothing_hint=False)


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's progress line after what is trained and how far it is.

    The time left ("eta") counts iterations at their median time, evaluations come on top.
    """

    logger: Any

    def __init__(self, *, title: str, max_iter: int) -> None:
        super().__init__(max_iter)
        self.logger = _ProgressLogger(self.logger, {"title": title, "max_iter": max_iter})


class _ProgressLogger(logging.LoggerAdapter):
    """Puts "keypoint 40/2000 (2%)" before each message."""

    def process(self, msg: str, kwargs: Any) -> tuple[str, Any]:
        done, total = get_event_storage().iter + 1, self.extra["max_iter"]
        return f"{self.extra['title']} {done}/{total} ({done / total:.0%}) {msg}", kwargs
