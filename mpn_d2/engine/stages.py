"""Training in stages: the config of each, and the chain that hands weights on.

Paper section 3.4, spec section 9: keypoints and person mask, then the person detector on the
frozen backbone, then the assembly. All stages share one meta-architecture and one checkpoint
format.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from mpn_d2.config import merge_options
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.trainer import PoseTrainer

logger = logging.getLogger(__name__)

FINAL = "model_final.pth"


def stage_names(cfg: CfgNode) -> list[str]:
    """Names of the stages that the config knows, in lower case."""
    return [name.lower() for name, node in cfg.STAGES.items() if isinstance(node, CfgNode)]


def stage_config(cfg: CfgNode, stage: str, options: list[str]) -> CfgNode:
    """The config of one stage: base, overlaid by STAGES.<STAGE>, overlaid by the command line.

    Args:
        cfg: the whole config.
        stage: lower-case name.
        options: KEY VALUE pairs of the command line, which win over the stage's keys.

    Raises:
        ValueError: unknown stage, or a stage key that no config has.
    """
    if stage not in stage_names(cfg):
        raise ValueError(
            f"unknown stage {stage!r}: this config has {', '.join(stage_names(cfg))} and all"
        )
    staged = cfg.clone()
    staged.defrost()
    try:
        staged.merge_from_other_cfg(cfg.STAGES[stage.upper()])
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"STAGES.{stage.upper()}: {error.args[0]}") from error
    merge_options(staged, options)
    staged.freeze()
    return staged


def train(cfg: CfgNode, stage: str, options: list[str], *, resume: bool) -> dict:
    """Trains a stage, or with "all" the chain of STAGES.ORDER; returns the last evaluation.

    A single stage works in OUTPUT_DIR; the chain gives each stage the folder OUTPUT_DIR/<stage>,
    starts each from the last one's weights, evaluates at the end only, and leaves the weights of
    all parts in OUTPUT_DIR/model_final.pth. With `resume`, finished stages are skipped and the
    interrupted one goes on.
    """
    if stage != "all":
        if stage in list(cfg.STAGES.ORDER)[1:] and "MODEL.WEIGHTS" not in options and not resume:
            logger.warning(
                "Stage %s builds on the stages before it: give their weights as MODEL.WEIGHTS "
                "(now: %r)",
                stage,
                cfg.MODEL.WEIGHTS,
            )
        return _train_stage(stage_config(cfg, stage, options), resume=resume)
    order = list(cfg.STAGES.ORDER)
    weights = None
    for i, name in enumerate(order):
        staged = stage_config(cfg, name, options)
        staged.defrost()
        staged.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, name)
        staged.DATASETS.TEST = ()
        if weights is not None:
            staged.MODEL.WEIGHTS = weights
        staged.freeze()
        if resume and _is_finished(staged):
            logger.info("Stage %d of %d, %s: finished before", i + 1, len(order), name)
        else:
            logger.info("Stage %d of %d: %s", i + 1, len(order), name)
            _train_stage(staged, resume=resume, strict=weights is not None)
        weights = os.path.join(staged.OUTPUT_DIR, FINAL)
    final = os.path.join(cfg.OUTPUT_DIR, FINAL)
    if comm.is_main_process():
        shutil.copyfile(weights, f"{final}.partial")
        os.replace(f"{final}.partial", final)
    comm.synchronize()
    return evaluate(cfg, weights=final) if cfg.DATASETS.TEST else {}


def _train_stage(cfg: CfgNode, *, resume: bool, strict: bool = False) -> dict:
    if comm.is_main_process():
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump())
    # Each stage starts from the seed, whatever ran before it in this process.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    trainer = PoseTrainer(cfg)
    trainer.resume_or_load(resume=resume, strict=strict)
    if trainer.start_iter >= trainer.max_iter:
        logger.info("Training is finished (%d iterations): evaluating", trainer.max_iter)
        return evaluate(cfg, weights=trainer.checkpointer.get_checkpoint_file())
    trainer.train()
    return trainer.last_results


def _is_finished(cfg: CfgNode) -> bool:
    tag = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    return tag.is_file() and tag.read_text().strip() == FINAL


def trained_weights(cfg: CfgNode) -> str:
    """The weights in OUTPUT_DIR: of the whole chain, else the last checkpoint, else configured."""
    final = os.path.join(cfg.OUTPUT_DIR, FINAL)
    if os.path.isfile(final):
        return final
    tag = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    return str(tag.parent / tag.read_text().strip()) if tag.is_file() else cfg.MODEL.WEIGHTS


def evaluate(cfg: CfgNode, *, weights: str) -> dict:
    """Evaluates weights on every dataset of DATASETS.TEST: {dataset: {task: metrics}}.

    Raises:
        ValueError: no weights, no test dataset, or weights that do not fit the config.
    """
    if not weights:
        raise ValueError(
            "nothing to evaluate: give MODEL.WEIGHTS, or an OUTPUT_DIR that holds a checkpoint"
        )
    if not cfg.DATASETS.TEST:
        raise ValueError("nothing to evaluate on: DATASETS.TEST is empty")
    model = build_model(cfg)
    PoseCheckpointer(model, strict=True).load(weights)
    return PoseTrainer.test(cfg, model)


def save_results(results: dict, path: str) -> None:
    """Writes evaluation results as JSON, whole or not at all."""
    partial = f"{path}.partial"
    with open(partial, "w") as f:
        json.dump(results, f, indent=1)
    os.replace(partial, path)
