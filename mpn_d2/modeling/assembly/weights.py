"""Trained weights of assemblers that come with the package, or lie in a file of their own."""

from __future__ import annotations

import os
from importlib.resources import files

import torch
from detectron2.config import CfgNode
from torch import nn

from mpn_d2.modeling.weight_settings import Settings, check_settings, check_table, settings_of
from mpn_d2.utils.safe_files import KERAS, check_tensor, read_torch

# Where models hold their assembler.
PREFIX = "assembler."


def load_assembler_weights(assembler: nn.Module, name: str, cfg: CfgNode | None = None) -> None:
    """Fills an assembler; every tensor must be in the file and fit. Half precision becomes single.

    Args:
        assembler: to be filled, in place.
        name: path of a checkpoint with keys `assembler.*`, or the bare name of a file in
            mpn_d2/weights. Kept as `assembler.weights_name`; the settings that the file carries as
            `assembler.weights_settings`.
        cfg: of the assembler, which settings in the file must agree with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, one of another assembler, or one trained under other
            settings.
    """
    path = name if os.path.basename(name) != name else str(files("mpn_d2") / "weights" / name)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"MODEL.ASSEMBLER.WEIGHTS {name}: {path} not found")
    if path.lower().endswith(KERAS):
        raise ValueError(
            f"MODEL.ASSEMBLER.WEIGHTS {name} is a file of Keras or HDF5: convert it first "
            "(tools/convert_checkpoint.py)"
        )
    try:
        content = read_torch(path)
        state = {}
        for key, value in content["model"].items():
            check_tensor(key, value)
            if key.startswith(PREFIX):
                tensor = torch.as_tensor(value)
                tensor = tensor.float() if tensor.is_floating_point() else tensor
                state[key.removeprefix(PREFIX)] = tensor
    except Exception as error:  # bytes that are no pickle fail in any way
        raise ValueError(
            f"MODEL.ASSEMBLER.WEIGHTS {name} is no checkpoint: {why_unreadable(error)}"
        ) from error
    settings, names = content.get("settings") or {}, [PREFIX + key for key in state]
    check_table(settings, name)
    if cfg is not None:
        check_settings(settings, names, cfg, name)
    try:
        assembler.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ValueError(
            f"MODEL.ASSEMBLER.WEIGHTS {name} does not fit MODEL.ASSEMBLER: "
            f"{' '.join(lines[1:3] or lines[:1]).strip()}"
        ) from error
    assembler.weights_name = name  # type: ignore[assignment]  # not a module
    assembler.weights_settings = settings_of(settings, names)  # type: ignore[assignment]


def why_unreadable(error: Exception) -> str:
    """One line on why `torch.load` refused a file, without its advice to load any pickle."""
    if str(error).startswith("Weights only load failed"):
        return "it is no torch file, or holds more than tensors and plain values"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def filled_names(model: nn.Module) -> set[str]:
    """State names of a model's assembler if `load_assembler_weights` filled it, else none."""
    if not getattr(getattr(model, "assembler", None), "weights_name", ""):
        return set()
    return {name for name in model.state_dict() if name.startswith(PREFIX)}


def filled_settings(model: nn.Module) -> Settings:
    """Settings of the weights that `load_assembler_weights` filled a model's assembler with."""
    if not filled_names(model):
        return {}
    return getattr(model.assembler, "weights_settings", {})


def has_weights(assembler: nn.Module) -> bool:
    """Whether anything in it is learned: parameters of more than one number, or buffers."""
    tensors = [*assembler.parameters(), *assembler.buffers()]
    return any(tensor.numel() > 1 for tensor in tensors)
