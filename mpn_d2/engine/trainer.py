"""Detectron2's DefaultTrainer with our data, optimiser, evaluators and checkpoints."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.data.loader import build_pose_train_loader
from mpn_d2.data.person_crops import SinglePersonMapper, people_to_evaluate
from mpn_d2.data.workers import detection_test_loader
from mpn_d2.engine.assembly_evaluation import evaluate_annotations, evaluates_annotations
from mpn_d2.engine.build import build_pose_model, check_training_config
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.chunk_loop import build_loop
from mpn_d2.engine.hooks import add_long_run_hooks, build_event_writers
from mpn_d2.engine.optimizer import build_pose_optimizer
from mpn_d2.engine.plateau import LOSS, PlateauMultiplier, build_scheduler, shared_metric
from mpn_d2.engine.processes import broadcast_buffers, share_among_processes
from mpn_d2.engine.validation import validation_loss
from mpn_d2.evaluation import build_evaluator, drop_missing

logger = logging.getLogger(__name__)


class PoseTrainer(DefaultTrainer):
    """Trains the parts in MODEL.TRAIN_PARTS on DATASETS.TRAIN, evaluates on DATASETS.TEST.

    Attributes:
        last_results: of the last evaluation, {dataset: {task: {metric: 0 to 100 or None}}}.
    """

    last_results: dict[str, dict] = {}  # noqa: RUF012  replaced, never changed in place

    def __init__(self, cfg: CfgNode) -> None:
        check_training_config(cfg)
        # Not DefaultTrainer's own constructor: its step knows neither micro-batches nor a CPU's
        # autocast, and its model can be shared among GPUs alone.
        super(DefaultTrainer, self).__init__()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = build_loop(
            cfg, share_among_processes(model), self.build_train_loader(cfg), optimizer
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = PoseCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            cfg=cfg,
            while_saving=self._trainer.averaged_weights,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_pose_model(cfg)
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(
            "%s: %s parameters, %s of them trained (%s)",
            cfg.MODEL.META_ARCHITECTURE,
            f"{total:,}",
            f"{trained:,}",
            ", ".join(cfg.MODEL.TRAIN_PARTS),
        )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_pose_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return build_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start: int = 0) -> Iterable[list[dict]]:
        """Batches of images; of people without images while only the assembly trains.

        Args:
            start: batches that were already trained on; the order continues there.
        """
        return build_pose_train_loader(cfg, start)

    @classmethod
    def build_test_loader(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        *,
        full_size: bool = False,
        with_annotations: bool = False,
    ) -> Iterable[list[dict]]:
        """Images of a dataset one by one, resized for testing unless `full_size`; or crops of its
        people, with SINGLE_PERSON.ENABLED."""
        dicts = load_pose_dicts([dataset_name], is_train=False)
        if cfg.SINGLE_PERSON.ENABLED:
            return detection_test_loader(
                people_to_evaluate(cfg, dicts),
                mapper=SinglePersonMapper(cfg, is_train=False),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
                batch_size=cfg.SINGLE_PERSON.TEST_BATCH,
            )
        cfg = cfg.clone()
        cfg.defrost()
        if full_size:
            cfg.INPUT.MIN_SIZE_TEST = 0
        if with_annotations:
            cfg.EVAL.BOX_SOURCE = "gt"
        return detection_test_loader(
            dicts,
            mapper=PoseDatasetMapper(cfg, is_train=False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(
            cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, dict]:
        """Evaluates on every dataset of DATASETS.TEST: {dataset: {task: {metric: value}}}.

        Values are 0 to 100, None where a dataset has no ground truth for a metric (Detectron2's
        own method cannot print those); processes other than the main one get empty dicts. Without
        images, annotated keypoints are assembled (engine/assembly_evaluation.py).
        """
        results = {}
        for i, name in enumerate(cfg.DATASETS.TEST):
            if not evaluators and evaluates_annotations(model, name):
                folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
                results[name] = evaluate_annotations(cfg, model, name, folder)
            else:
                evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
                full_size = getattr(model, "full_size_input", False)
                loader = cls.build_test_loader(cfg, name, full_size=full_size)
                results[name] = inference_on_dataset(model, loader, evaluator) or {}
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(drop_missing(results[name]))
        return results

    def build_hooks(self) -> list[HookBase]:
        hooks = super().build_hooks()
        # Detectron2's evaluation takes numbers only and comes after the checkpoint, which would
        # miss what the evaluation does to the learning rate.
        hooks = [hook for hook in hooks if not isinstance(hook, EvalHook)]
        is_late = [isinstance(hook, PeriodicCheckpointer | PeriodicWriter) for hook in hooks]
        place = is_late.index(True) if True in is_late else len(hooks)
        hooks.insert(place, Evaluation(self.cfg.TEST.EVAL_PERIOD, self._evaluate))
        if comm.is_main_process():
            add_long_run_hooks(self.cfg, hooks, self.checkpointer)
        return hooks

    def build_writers(self) -> list[EventWriter]:
        return build_event_writers(self.cfg, self.max_iter)

    def _evaluate(self) -> dict[str, dict]:
        """Evaluates the weights that would be saved now, and tells the plateau of it."""
        model = self._trainer.bare_model
        with self._trainer.averaged_weights():
            broadcast_buffers(model)
            self.last_results = self.test(self.cfg, model) if self.cfg.EVAL.TASKS else {}
            scalars = {name: drop_missing(tasks) for name, tasks in self.last_results.items()}
            if isinstance(self.scheduler, PlateauMultiplier):
                if self.scheduler.metric == LOSS:
                    value = validation_loss(self.cfg, model)
                    scalars["validation"] = {"loss": value}
                else:
                    value = shared_metric(scalars, self.cfg.DATASETS.TEST[0], self.scheduler.metric)
                self.scheduler.observe(value)
        return scalars

    def resume_or_load(self, resume: bool = True, strict: bool = False) -> None:
        """Continues from OUTPUT_DIR's last checkpoint if `resume`, else loads MODEL.WEIGHTS.

        Args:
            strict: MODEL.WEIGHTS must fit whole (weights handed on from another stage).
        """
        self.checkpointer.strict = strict or (resume and self.checkpointer.has_checkpoint())
        super().resume_or_load(resume=resume)
        if self.start_iter == 0:
            self._trainer.start_averaging()
        if 0 < self.start_iter < self.max_iter:
            loader = self.build_train_loader(self.cfg, start=self.start_iter)
            self._trainer.reset_data_loader(lambda: loader)

    def state_dict(self) -> dict:
        # A checkpoint tells whose it is: stages of one OUTPUT_DIR do not resume one another.
        return {**super().state_dict(), "train_parts": list(self.cfg.MODEL.TRAIN_PARTS)}


class Evaluation(EvalHook):
    """Detectron2's EvalHook, but the last evaluation comes before the last checkpoint.

    So do all others: what an evaluation changes (learning rate, best model) is in the checkpoint,
    and a run that is killed in it evaluates again when resumed. Without a period the one evaluation
    stays behind the checkpoint. A training that failed in its last iteration is not evaluated.
    """

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and (done % self._period == 0 or done == self.trainer.max_iter):
            self._do_eval()

    def after_train(self) -> None:
        if self.trainer.iter != self.trainer.max_iter:
            return
        if self._period > 0:
            # The next stage reads the checkpoint that the main process has just written.
            comm.synchronize()
            del self._func
        else:
            super().after_train()
