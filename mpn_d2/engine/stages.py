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
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from mpn_d2.config import check_values, merge_options
from mpn_d2.data.loader import trains_without_images
from mpn_d2.engine.build import check_training_config
from mpn_d2.engine.checkpoint import TAG, PoseCheckpointer, read_progress, some_names
from mpn_d2.engine.inference_model import (
    build_inference_model,
    check_inference_config,
    check_inference_files,
)
from mpn_d2.engine.source_budget import source_budget
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.modeling.meta_arch.multiposenet import PARTS
from mpn_d2.utils.files import replaced_when_done, write_text_atomically

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
        options: KEY VALUE pairs of the command line, which win over the stage's keys;
            STAGES.<STAGE>.KEY wins over KEY.

    Raises:
        ValueError: unknown stage, or a stage key that no config has.
    """
    if stage not in stage_names(cfg):
        raise ValueError(
            f"unknown stage {stage!r} (--stage or STAGES.ORDER): this config has "
            f"{', '.join(stage_names(cfg))} and all"
        )
    prefix = f"STAGES.{stage.upper()}."
    staged = cfg.clone()
    staged.defrost()
    try:
        staged.merge_from_other_cfg(cfg.STAGES[stage.upper()])
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(f"{prefix[:-1]}: {error.args[0]}") from error
    for key, value in zip(options[::2], options[1::2], strict=True):
        if not key.startswith("STAGES."):
            merge_options(staged, [key, value])
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key.startswith(prefix):
            merge_options(staged, [key.removeprefix(prefix), value])
    check_values(staged)
    staged.freeze()
    return staged


def train(cfg: CfgNode, stage: str, options: list[str], *, resume: bool) -> dict:
    """Trains a stage, or with "all" the chain of STAGES.ORDER; returns the last evaluation.

    A single stage works in OUTPUT_DIR; without MODEL.WEIGHTS on the command line it starts from
    what the stage before it left there. The chain gives each stage the folder
    OUTPUT_DIR/<stage>, starts each from the last one's weights, evaluates at the end (in and after
    a stage only if its TEST.EVAL_PERIOD says so), and leaves the weights of all parts in
    OUTPUT_DIR/model_final.pth. With `resume`, stages that reached their SOLVER.MAX_ITER are
    skipped and the first one that did not goes on; what was trained on top of it before starts
    anew. A stage outside STAGES.ORDER (joint) stands on no other.

    Raises:
        ValueError: a config that cannot be trained, or weights that leave frozen parts of
            earlier stages untrained.
    """
    if cfg.DATASETS.TEST:
        # Not after hours of training.
        check_inference_config(cfg)
        check_inference_files(cfg)
    if stage == "all":
        return _train_chain(cfg, options, resume=resume)
    staged = stage_config(cfg, stage, options)
    check_training_config(staged)
    order = _order(cfg)
    before = order[: order.index(stage)] if stage in order else []
    given = "MODEL.WEIGHTS" in options[::2] or "WEIGHTS" in cfg.STAGES[stage.upper()].MODEL
    weights = _left_by(before[-1], staged.OUTPUT_DIR) if before and not given else ""
    if weights:
        staged.defrost()
        staged.MODEL.WEIGHTS = weights
        staged.freeze()
    earlier = {part for name in before for part in cfg.STAGES[name.upper()].MODEL.TRAIN_PARTS}
    if staged.MODEL.JOINT_LEVEL > 0 and "assembly" in staged.MODEL.TRAIN_PARTS:
        # It learns from what all others predict, in a stage without earlier ones too.
        earlier.update(PARTS)
    needed = sorted(earlier.difference(staged.MODEL.TRAIN_PARTS))
    return _train_stage(staged, resume=resume, needed=needed)


def _train_chain(cfg: CfgNode, options: list[str], *, resume: bool) -> dict:
    stages = _chain_configs(cfg, options)
    weights = ""
    for i, staged in enumerate(stages):
        title = f"Stage {i + 1} of {len(stages)}, {cfg.STAGES.ORDER[i]}"
        if weights:
            staged.defrost()
            staged.MODEL.WEIGHTS = weights
            staged.freeze()
        if resume and _seen_by_all(staged.OUTPUT_DIR, _is_finished(staged)):
            logger.info("%s: finished before", title)
        else:
            logger.info("%s: training", title)
            # They stand on weights that change now.
            for later in stages[i + 1 :]:
                _forget_progress(later.OUTPUT_DIR)
            _train_stage(staged, resume=resume, strict=bool(weights))
        weights = os.path.join(staged.OUTPUT_DIR, FINAL)
    final = os.path.join(cfg.OUTPUT_DIR, FINAL)
    if comm.is_main_process():
        with replaced_when_done(final) as partial:
            shutil.copyfile(weights, partial)
        write_text_atomically(os.path.join(cfg.OUTPUT_DIR, TAG), FINAL)
    comm.synchronize()
    return evaluate(cfg, weights=final) if cfg.DATASETS.TEST else {}


def _order(cfg: CfgNode) -> list[str]:
    order = list(cfg.STAGES.ORDER)
    unknown = [name for name in order if name not in stage_names(cfg)]
    if unknown or not order:
        raise ValueError(
            f"STAGES.ORDER is {order}: it needs one or more of {', '.join(stage_names(cfg))}"
        )
    return order


def _chain_configs(cfg: CfgNode, options: list[str]) -> list[CfgNode]:
    """The configs of all stages in order, checked before hours go into the first one."""
    stages = []
    for name in _order(cfg):
        staged = stage_config(cfg, name, options)
        check_training_config(staged)
        staged.defrost()
        staged.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, name)
        if staged.TEST.EVAL_PERIOD < 1:
            # Of use only while it trains: the whole model is evaluated at the end of the chain.
            staged.DATASETS.TEST = ()
        staged.freeze()
        stages.append(staged)
    return stages


def _train_stage(
    cfg: CfgNode, *, resume: bool, strict: bool = False, needed: Sequence[str] = ()
) -> dict:
    """Trains in cfg.OUTPUT_DIR up to SOLVER.MAX_ITER and evaluates on DATASETS.TEST, if any.

    Args:
        resume: go on from the last checkpoint of this stage, if there is one.
        strict: MODEL.WEIGHTS must fit whole.
        needed: frozen parts that MODEL.WEIGHTS must fill.
    """
    resume = resume and _seen_by_all(cfg.OUTPUT_DIR, _has_progress(cfg))
    if not resume:
        _forget_progress(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        write_text_atomically(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
    # Each stage starts from the seed, whatever ran before it in this process.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    trainer = PoseTrainer(cfg)
    trainer.resume_or_load(resume=resume, strict=strict)
    if not resume:
        # Some models have frozen parts that no stage trains.
        needed = [*needed, *getattr(trainer.checkpointer.model, "needed_parts", ())]
        _check_loaded(cfg, trainer.checkpointer, needed)
        _warn_of_cold_start(cfg, trainer.checkpointer)
    if trainer.start_iter < trainer.max_iter:
        trainer.train()
        return trainer.last_results
    logger.info("Training is finished (%d iterations)", trainer.start_iter)
    final = os.path.join(cfg.OUTPUT_DIR, FINAL)
    if trainer.checkpointer.get_checkpoint_file() != final:
        # Stopped between its last two files, or MAX_ITER was lowered.
        trainer.checkpointer.save(Path(FINAL).stem, iteration=trainer.iter)
    comm.synchronize()
    return evaluate(cfg, weights=final) if cfg.DATASETS.TEST else {}


def _left_by(stage: str, folder: str) -> str:
    """The newer of what a stage left in OUTPUT_DIR (alone, or the chain) and in its own folder."""
    files = [os.path.join(folder, FINAL), os.path.join(folder, stage, FINAL)]
    return max(filter(os.path.isfile, files), key=os.path.getmtime, default="")


def _check_loaded(cfg: CfgNode, checkpointer: PoseCheckpointer, parts: Sequence[str]) -> None:
    """Frozen parts of earlier stages must be trained ones: random features teach nothing.

    The assembly needs nothing of the image parts (spec section 9) where it learns from
    annotations: a warning is enough there.
    """
    if not parts:
        return
    frozen = _names_in_parts(checkpointer.model, parts)
    missing = [name for name in frozen if name in checkpointer.not_loaded]
    if not missing:
        return
    message = (
        f"{' and '.join(parts)} parts would stay untrained, MODEL.WEIGHTS "
        f"{cfg.MODEL.WEIGHTS!r} has no {some_names(missing)}: give the checkpoint of the stage "
        "before, trained with the same MODEL keys"
    )
    if not trains_without_images(cfg):
        raise ValueError(message)
    logger.warning("%s (%s will hold random values for them)", message, FINAL)


def _warn_of_cold_start(cfg: CfgNode, checkpointer: PoseCheckpointer) -> None:
    """Parts that train together above level 0 are meant to be trained ones (review notes, 4.2)."""
    parts = cfg.MODEL.TRAIN_PARTS
    if cfg.MODEL.JOINT_LEVEL == 0 or len(parts) < 2:
        return
    missing = checkpointer.not_loaded
    cold = [x for x in parts if not missing.isdisjoint(_names_in_parts(checkpointer.model, [x]))]
    if cold:
        logger.warning(
            "MODEL.JOINT_LEVEL %d starts from untrained parts (%s), which MODEL.WEIGHTS %r does "
            "not hold: to start from trained ones, train the stages first (--stage all) and give "
            "MODEL.WEIGHTS <their OUTPUT_DIR>/%s",
            cfg.MODEL.JOINT_LEVEL,
            ", ".join(cold),
            cfg.MODEL.WEIGHTS,
            FINAL,
        )


def _names_in_parts(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """State names of the parts' modules; of a model that does not tell, all frozen parameters."""
    if not hasattr(model, "part_modules"):
        return [name for name, p in model.named_parameters() if not p.requires_grad]
    modules = model.part_modules()
    held = {
        id(tensor)
        for part in parts
        for module in modules.get(part, ())
        for tensor in module.state_dict(keep_vars=True).values()
    }
    return [
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        # Older checkpoints lack this counter, which nothing reads in eval mode.
        if id(tensor) in held and not name.endswith("num_batches_tracked")
    ]


def _progress(folder: str) -> dict | None:
    """Iteration and parts of a folder's last checkpoint; None where there is none."""
    tag = Path(folder) / TAG
    return read_progress(str(tag.parent / tag.read_text().strip())) if tag.is_file() else None


def _has_progress(cfg: CfgNode) -> bool:
    """Whether OUTPUT_DIR has a checkpoint of this stage (and not of another one)."""
    progress = _progress(cfg.OUTPUT_DIR)
    return progress is not None and progress["train_parts"] in (None, list(cfg.MODEL.TRAIN_PARTS))


def _is_finished(cfg: CfgNode) -> bool:
    """Whether OUTPUT_DIR has a model_final.pth that was trained for SOLVER.MAX_ITER."""
    tag = Path(cfg.OUTPUT_DIR) / TAG
    if not tag.is_file() or tag.read_text().strip() != FINAL:
        return False
    return _progress(cfg.OUTPUT_DIR)["iteration"] >= cfg.SOLVER.MAX_ITER - 1


def _seen_by_all(folder: str, answer: bool) -> bool:
    """What every process found in a folder; nobody goes on and changes it before all have looked.

    Raises:
        ValueError: on every process, if they found different things.
    """
    answers = comm.all_gather(answer)
    if len(set(answers)) > 1:
        raise ValueError(
            f"OUTPUT_DIR {folder}: some processes see a checkpoint there and others do not; it "
            "must be a folder that all machines share"
        )
    return answer


def _forget_progress(folder: str) -> None:
    """Nothing in this folder is to be resumed any more; its files stay."""
    if comm.is_main_process():
        (Path(folder) / TAG).unlink(missing_ok=True)
    comm.synchronize()


def trained_weights(cfg: CfgNode) -> str:
    """The weights in OUTPUT_DIR: last_checkpoint's, else model_final.pth, else configured."""
    tag = Path(cfg.OUTPUT_DIR) / TAG
    if tag.is_file():
        return str(tag.parent / tag.read_text().strip())
    final = os.path.join(cfg.OUTPUT_DIR, FINAL)
    return final if os.path.isfile(final) else cfg.MODEL.WEIGHTS


def evaluate(cfg: CfgNode, *, weights: str) -> dict:
    """Evaluates weights on every dataset of DATASETS.TEST: {dataset: {task: metrics}}.

    Raises:
        ValueError: no weights, no test dataset, or weights that do not fit the config.
        FileNotFoundError: no such weights.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("nothing to evaluate on: DATASETS.TEST is empty")
    model = build_inference_model(cfg, weights)
    if cfg.EVAL.ERROR_BUDGET and not hasattr(model, "look"):
        raise ValueError(
            "EVAL.ERROR_BUDGET needs a network with heatmaps and boxes, which "
            f"{cfg.MODEL.META_ARCHITECTURE} is not: set it to False"
        )
    source = weights or cfg.MODEL.ASSEMBLER.WEIGHTS or "no weights"
    logger.info("Evaluating %s on %s", source, ", ".join(cfg.DATASETS.TEST))
    results = PoseTrainer.test(cfg, model)
    if cfg.EVAL.ERROR_BUDGET:
        for name, of_dataset in results.items():
            loader = PoseTrainer.build_test_loader(cfg, name, with_annotations=True)
            budget = source_budget(cfg, model, name, loader)
            if budget:
                of_dataset["error_budget"] = budget
    return results


def save_results(results: dict, path: str) -> None:
    """Writes evaluation results as JSON, whole or not at all."""
    write_text_atomically(path, json.dumps(results, indent=1, allow_nan=False) + "\n")
