"""Detectron2's DefaultTrainer with our data, optimiser, evaluators and checkpoints."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from mpn_d2.data.association import build_association_loader, build_association_samples
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.engine.build import build_pose_model, check_training_config
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.sampler import ResumableSampler
from mpn_d2.evaluation import build_evaluator, drop_missing
from mpn_d2.structures.skeleton import get_skeleton

logger = logging.getLogger(__name__)

OPTIMIZERS = ("adam", "sgd")


class PoseTrainer(DefaultTrainer):
    """Trains the parts in MODEL.TRAIN_PARTS on DATASETS.TRAIN, evaluates on DATASETS.TEST.

    Attributes:
        last_results: of the last evaluation, {dataset: {task: {metric: 0 to 100 or None}}}.
    """

    last_results: dict[str, dict] = {}  # noqa: RUF012  replaced, never changed in place

    def __init__(self, cfg: CfgNode) -> None:
        check_training_config(cfg)
        super().__init__(cfg)

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
        """Adam (paper section 3.4) or Detectron2's SGD over the parameters that train."""
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(
                f"nothing to train: MODEL.TRAIN_PARTS {list(cfg.MODEL.TRAIN_PARTS)} has no "
                f"parameters (MODEL.ASSEMBLER.EVIDENCE {cfg.MODEL.ASSEMBLER.EVIDENCE!r})"
            )
        if cfg.SOLVER.OPTIMIZER == "sgd":
            return build_sgd(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "adam":
            raise ValueError(
                f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; choose one of "
                + ", ".join(OPTIMIZERS)
            )
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        )
        adam = maybe_add_gradient_clipping(cfg, torch.optim.Adam)
        return adam(params, lr=cfg.SOLVER.BASE_LR)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start: int = 0) -> Iterable[list[dict]]:
        """Batches of images; of people without images while only the assembly trains.

        Args:
            start: batches that were already trained on; the order continues there.
        """
        assembly_only = trains_without_images(cfg)
        # The order must be the same when a run goes on: SEED -1 (random) counts as 0 here.
        seed = max(cfg.SEED, 0)
        dicts = load_pose_dicts(
            cfg.DATASETS.TRAIN,
            is_train=True,
            min_keypoints_per_image=cfg.INPUT.MIN_KEYPOINTS_PER_IMAGE,
            keep_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not assembly_only,
        )
        if assembly_only:
            samples = build_association_samples(
                dicts,
                cfg.MODEL.PRN.MIN_KEYPOINTS,
                get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
            )
            return build_association_loader(
                samples,
                cfg.SOLVER.IMS_PER_BATCH,
                cfg.MODEL.PRN.CURRICULUM,
                seed,
                start=start,
            )
        sampler = ResumableSampler(
            size=len(dicts), seed=seed, start=start * cfg.SOLVER.IMS_PER_BATCH
        )
        return build_detection_train_loader(
            dicts,
            mapper=PoseDatasetMapper(cfg, is_train=True),
            sampler=sampler,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        return build_detection_test_loader(
            load_pose_dicts([dataset_name], is_train=False),
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
        own method cannot print those); processes other than the main one get empty dicts.
        """
        results = {}
        for i, name in enumerate(cfg.DATASETS.TEST):
            evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
            loader = cls.build_test_loader(cfg, name)
            results[name] = inference_on_dataset(model, loader, evaluator) or {}
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(drop_missing(results[name]))
        return results

    def build_hooks(self) -> list[HookBase]:
        # The base class makes its checkpointer just before the hooks, which hold on to it.
        self.checkpointer = PoseCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks = super().build_hooks()
        # Detectron2's hook takes numbers only; the None of missing metrics stays in the results.
        place = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks[place] = EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate)
        return hooks

    def _evaluate(self) -> dict[str, dict]:
        self.last_results = self.test(self.cfg, self.model)
        return {name: drop_missing(tasks) for name, tasks in self.last_results.items()}

    def resume_or_load(self, resume: bool = True, strict: bool = False) -> None:
        """Continues from OUTPUT_DIR's last checkpoint if `resume`, else loads MODEL.WEIGHTS.

        Args:
            strict: MODEL.WEIGHTS must fit whole (weights handed on from another stage).
        """
        self.checkpointer.strict = strict or (resume and self.checkpointer.has_checkpoint())
        super().resume_or_load(resume=resume)
        if 0 < self.start_iter < self.max_iter:
            loader = self.build_train_loader(self.cfg, start=self.start_iter)
            self._trainer.reset_data_loader(lambda: loader)

    def state_dict(self) -> dict:
        # A checkpoint tells whose it is: stages of one OUTPUT_DIR do not resume one another.
        return {**super().state_dict(), "train_parts": list(self.cfg.MODEL.TRAIN_PARTS)}


def trains_without_images(cfg: CfgNode) -> bool:
    """Whether only the assembly trains, which needs annotations alone."""
    return list(cfg.MODEL.TRAIN_PARTS) == ["assembly"]
