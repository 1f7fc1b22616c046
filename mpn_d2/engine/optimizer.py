"""Optimisers: Adam (paper section 3.4) or Detectron2's SGD, with its or our gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

OPTIMIZERS = ("adam", "sgd")
# SOLVER.CLIP_GRADIENTS.CLIP_TYPE: Detectron2's two work on each parameter by itself.
WHOLE_MODEL = "full_model"
CLIP_TYPES = ("value", "norm", WHOLE_MODEL)


def build_pose_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that SOLVER.OPTIMIZER names, over the parameters that train.

    Raises:
        ValueError: an unknown name, or nothing to train.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"nothing to train: MODEL.TRAIN_PARTS {list(cfg.MODEL.TRAIN_PARTS)} has no "
            f"parameters (MODEL.ASSEMBLER.EVIDENCE {cfg.MODEL.ASSEMBLER.EVIDENCE!r})"
        )
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == WHOLE_MODEL:
        # Detectron2 does not know this type.
        unclipped = cfg.clone()
        unclipped.defrost()
        unclipped.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = build_pose_optimizer(unclipped, model)
        clip_whole_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
        return optimizer
    if cfg.SOLVER.OPTIMIZER == "sgd":
        return build_sgd(cfg, model)
    if cfg.SOLVER.OPTIMIZER != "adam":
        raise ValueError(
            f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; choose one of {', '.join(OPTIMIZERS)}"
        )
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
    )
    adam = maybe_add_gradient_clipping(cfg, torch.optim.Adam)
    # One pass over weights, gradients and moments: ten times faster on a CPU, where the PRN's 70
    # million are otherwise most of an iteration. Not on GPUs: a fused step would take the gradients
    # of float16 before they are unscaled, and clipping comes before the step.
    on_cpu = all(p.device.type == "cpu" for group in params for p in group["params"])
    return adam(params, lr=cfg.SOLVER.BASE_LR, fused=on_cpu or None)


def clip_whole_model(
    optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float = 2.0
) -> None:
    """Before each step, all gradients together are scaled down to a norm of at most `max_norm`."""

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)
