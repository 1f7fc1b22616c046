"""Models from configs, and what is wrong with a config in one line that names the key."""

from __future__ import annotations

import math
import re
import traceback
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    build_model,
)
from detectron2.utils import comm
from torch import nn

from mpn_d2.engine.loop import AMP_DTYPES
from mpn_d2.engine.optimizer import CLIP_TYPES
from mpn_d2.engine.plateau import check_plateau
from mpn_d2.engine.rcnn_checks import check_rcnn_parts

# What Detectron2's and PyTorch's constructors raise at values that they cannot use.
_BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ZeroDivisionError,
)
# Values that so many keys hold that they point to none.
_EVERYWHERE: tuple[object, ...] = (0, 1, 2, -1, "", [], ())


def build_pose_model(cfg: CfgNode) -> nn.Module:
    """Detectron2's build_model, on MODEL.DEVICE, without weights.

    Raises:
        ValueError: a config that no model can be built from; names the key where it is known.
    """
    _check_model_config(cfg)
    try:
        model = build_model(cfg)
    except _BUILD_ERRORS as error:
        raise ValueError(f"config: {_reason(cfg, error)}") from error
    except ValueError as error:
        if "num_groups" in str(error):
            raise ValueError(_wrong_groups(cfg, error)) from error
        raise
    return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model


def check_training_config(cfg: CfgNode) -> None:
    """Raises a ValueError that names the first key whose value cannot be trained with."""
    for key in ("IMS_PER_BATCH", "MAX_ITER", "CHECKPOINT_PERIOD"):
        if cfg.SOLVER[key] < 1:
            raise ValueError(f"SOLVER.{key} is {cfg.SOLVER[key]}: at least 1 is needed")
    world, parts = comm.get_world_size(), cfg.SOLVER.ACCUMULATION
    if parts < 1:
        raise ValueError(f"SOLVER.ACCUMULATION is {parts}: at least 1 is needed")
    if cfg.SOLVER.IMS_PER_BATCH % (world * parts):
        micro = f" times SOLVER.ACCUMULATION {parts}" if parts > 1 else ""
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}: it must be a multiple of the "
            f"{world} processes{micro}"
        )
    # Detectron2 leaves out those after MAX_ITER, and fvcore refuses the others without their key.
    steps = [step for step in cfg.SOLVER.STEPS if step <= cfg.SOLVER.MAX_ITER]
    rising = all(low < high for low, high in zip([0, *steps], [*steps, cfg.SOLVER.MAX_ITER]))
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and not rising:
        raise ValueError(
            f"SOLVER.STEPS is {tuple(cfg.SOLVER.STEPS)}: rising iterations above 0 and below "
            f"SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} are needed"
        )
    if not 0 <= cfg.SOLVER.EMA.DECAY < 1:
        raise ValueError(
            f"SOLVER.EMA.DECAY is {cfg.SOLVER.EMA.DECAY}: it must be 0 (off) or below 1"
        )
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE not in CLIP_TYPES:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; choose one of "
            + ", ".join(CLIP_TYPES)
        )
    _check_precision(cfg)
    check_plateau(cfg)


def _check_precision(cfg: CfgNode) -> None:
    dtype, device = cfg.SOLVER.AMP.DTYPE, cfg.MODEL.DEVICE
    if dtype not in AMP_DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {dtype!r}; choose one of {', '.join(AMP_DTYPES)}")
    if cfg.SOLVER.AMP.ENABLED and dtype == "float16" and not device.startswith("cuda"):
        raise ValueError(
            f"SOLVER.AMP.DTYPE float16 needs a GPU, but MODEL.DEVICE is {device!r}: give "
            "SOLVER.AMP.DTYPE bfloat16"
        )


def _check_model_config(cfg: CfgNode) -> None:
    for key, registry in (
        ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
        ("MODEL.POSE_FPN.BOTTOM_UP", BACKBONE_REGISTRY),
        ("MODEL.ANCHOR_GENERATOR.NAME", ANCHOR_GENERATOR_REGISTRY),
    ):
        value = _value(cfg, key)
        if value not in registry:
            known = ", ".join(sorted(name for name, _ in registry))
            raise ValueError(f"{key} is {value!r}; choose one of {known}")
    check_rcnn_parts(cfg)
    crop = cfg.MODEL.PRN.CROP
    if len(crop) != 2 or not all(isinstance(side, int) and side > 0 for side in crop):
        raise ValueError(
            f"MODEL.PRN.CROP is {tuple(crop)}: a height and a width in cells are needed"
        )
    _check_lists(cfg)
    _check_device(cfg.MODEL.DEVICE)


def _check_lists(cfg: CfgNode) -> None:
    """Lists of which an empty one, or one of texts, fits Detectron2's parts until they run."""
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if not mean or len(mean) != len(std):
        raise ValueError(
            f"MODEL.PIXEL_MEAN has {len(mean)} numbers and MODEL.PIXEL_STD {len(std)}: one each a "
            "channel of the image is needed"
        )
    for key in ("SIZES", "ASPECT_RATIOS"):
        levels = cfg.MODEL.ANCHOR_GENERATOR[key]
        each = [x if isinstance(x, list | tuple) else [x] for x in levels]
        if not each or not all(x and all(_is_positive(y) for y in x) for x in each):
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.{key} is {levels!r:.80}: numbers above 0 for each level "
                "are needed, as in [[32], [64]]"
            )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is {name!r}: {_first_line(error)}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"MODEL.DEVICE is {name!r}, but PyTorch sees {torch.cuda.device_count()} GPUs here: "
            "check the driver, or give MODEL.DEVICE cpu"
        )


def _reason(cfg: CfgNode, error: Exception) -> str:
    """One line; a failed look-up tells only the value, so the keys that hold it are named."""
    if isinstance(error, KeyError) and error.args:
        keys = _keys_holding(cfg, error.args[0])
        if keys:
            return f"nothing is called {error.args[0]!r}, which {' or '.join(keys)} names"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}: {frame.line}"
    keys = _keys_at_fault(cfg, error)
    said = f"{type(error).__name__} {_first_line(error)} ({place})"
    return f"{said}; look at {' or '.join(keys)}" if keys else said


def _keys_at_fault(cfg: CfgNode, error: Exception) -> list[str]:
    """Keys whose values the functions held that raised, the innermost that held some.

    Of each, those in the failing line first.
    """
    frames = reversed(list(traceback.walk_tb(error.__traceback__)))
    for frame, summary in zip(frames, reversed(traceback.extract_tb(error.__traceback__))):
        for line in (summary.line or "", None):
            found: list[str] = []
            for name, value in frame[0].f_locals.items():
                known = isinstance(value, str | int | float | list | tuple)
                if known and value not in _EVERYWHERE and (line is None or _word(name, line)):
                    found += _keys_holding(cfg, list(value) if isinstance(value, tuple) else value)
            if 0 < len(set(found)) <= 4:
                return sorted(set(found))
    return []


def _word(name: str, line: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", line) is not None


def _wrong_groups(cfg: CfgNode, error: ValueError) -> str:
    """What PyTorch's GroupNorm refuses, by the keys that it may come from."""
    norms = " or ".join(_keys_holding(cfg, "GN")) or "a norm"
    # GroupNorm itself names no number.
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    groups, channels = (frames[-1].get(name) for name in ("num_groups", "num_channels"))
    keys = _keys_holding(cfg, channels)
    named = f" ({' or '.join(keys)})" if keys else ""
    return f"{norms} is GN, {groups} groups, and {channels} channels{named} are no multiple of it"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "without a message").splitlines()[0]


def _value(cfg: CfgNode, key: str) -> object:
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _keys_holding(cfg: CfgNode, value: object, prefix: str = "") -> list[str]:
    """Keys whose value is `value` or a list with it; the overlays of stages left aside."""
    keys = []
    for name, held in cfg.items():
        if isinstance(held, CfgNode):
            if prefix or name != "STAGES":
                keys += _keys_holding(held, value, f"{prefix}{name}.")
        elif value in (held if isinstance(held, list | tuple) else [held]) or held == value:
            keys.append(prefix + name)
    return keys
