"""Weights of an assembler alone, out of any checkpoint that holds one."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.engine.checkpoint import PoseCheckpointer, read_settings, read_weights, some_names
from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.modeling.assembly.weights import PREFIX, has_weights
from mpn_d2.utils.files import replaced_when_done

# Where Detectron2 has its backbones' weights, which no assembler is among.
_BACKBONES = "detectron2://"


class _Holder(nn.Module):
    """The assembler under the name that it has in every model."""

    def __init__(self, assembler: nn.Module) -> None:
        super().__init__()
        self.assembler = assembler


def load_assembler(cfg: CfgNode, weights: str | None = None) -> nn.Module:
    """The assembler of a config on MODEL.DEVICE, in evaluation mode.

    Args:
        cfg: MODEL.ASSEMBLER and MODEL.PRN.
        weights: checkpoint of a whole model or of the assembly stage; None: MODEL.WEIGHTS (one of
            Detectron2's backbones, detectron2://..., does not count), else
            MODEL.ASSEMBLER.WEIGHTS. Not looked at for evidence without weights.

    Raises:
        ValueError: evidence that needs weights and none are named, or a checkpoint of another
            assembler.
        FileNotFoundError: there is no such file.
    """
    path = weights or cfg.MODEL.WEIGHTS
    if not weights and path.startswith(_BACKBONES):
        path = ""
    if path:
        # That checkpoint's assembler, or an error.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ASSEMBLER.WEIGHTS = ""
    assembler = build_pose_assembler(cfg).to(cfg.MODEL.DEVICE).eval()
    if not has_weights(assembler) or (not path and cfg.MODEL.ASSEMBLER.WEIGHTS):
        return assembler
    if not path:
        raise ValueError(
            f"MODEL.ASSEMBLER.EVIDENCE {cfg.MODEL.ASSEMBLER.EVIDENCE} needs weights: give the "
            "checkpoint of its training (train_net.py --stage assembly) as --weights"
        )
    checkpointer = PoseCheckpointer(_Holder(assembler), cfg=cfg)
    checkpointer.load(path)
    if checkpointer.not_loaded:
        raise ValueError(
            f"checkpoint {path} does not hold this assembler (missing or of another shape: "
            f"{some_names(sorted(checkpointer.not_loaded))}): use its config"
        )
    return assembler


def assembler_options(
    config_file: str, opts: list[str], evidence: str | None, matching: str | None
) -> list[str]:
    """Config options that put another evidence or matching into a config, for command lines.

    Args:
        config_file: of the assembler.
        opts: KEY VALUE pairs of the user, which win where they name weights.
        evidence, matching: None leaves the config's.
    """
    changed = []
    if evidence is not None:
        if evidence != load_config(config_file, opts).MODEL.ASSEMBLER.EVIDENCE:
            # The config's weights are those of its own evidence.
            changed += ["MODEL.ASSEMBLER.WEIGHTS", ""]
        changed += ["MODEL.ASSEMBLER.EVIDENCE", evidence]
    if matching is not None:
        changed += ["MODEL.ASSEMBLER.MATCHING", matching]
    return [*changed, *opts]


def save_half(path_in: str, path_out: str) -> None:
    """Writes the assembler of a checkpoint alone, in half precision: a sixth of a training's file.

    What loads checkpoints turns it into float32 again. Single numbers and tensors that half
    precision cannot hold stay as they are, and so do the settings that a converted file carries for
    its assembler. Whole or not at all.

    Args:
        path_in: .pth checkpoint of a whole model or of the assembly stage.
        path_out: .pth file.

    Raises:
        ValueError: no checkpoint, or one without an assembler.
        FileNotFoundError: there is no such file.
    """
    weights, settings = read_weights(path_in), read_settings(path_in)
    halved = {name: _half(value) for name, value in weights.items() if name.startswith(PREFIX)}
    if not halved:
        raise ValueError(f"checkpoint {path_in} holds no assembler")
    content: dict[str, dict] = {"model": halved}
    if PREFIX in settings:
        content["settings"] = {PREFIX: settings[PREFIX]}
    with replaced_when_done(path_out) as partial:
        torch.save(content, partial)


def _half(value: torch.Tensor) -> torch.Tensor:
    half = value.half()
    fits = value.is_floating_point() and value.numel() > 1 and bool(half.isfinite().all())
    return half if fits else value
