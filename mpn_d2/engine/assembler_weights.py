"""Weights of an assembler alone, out of any checkpoint that holds one."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from mpn_d2.engine.checkpoint import PoseCheckpointer, some_names
from mpn_d2.modeling.assembly import build_pose_assembler


class _Holder(nn.Module):
    """The assembler under the name that it has in every model."""

    def __init__(self, assembler: nn.Module) -> None:
        super().__init__()
        self.assembler = assembler


def load_assembler(cfg: CfgNode, weights: str | None = None) -> nn.Module:
    """The assembler of a config on MODEL.DEVICE, in evaluation mode.

    Args:
        cfg: MODEL.ASSEMBLER and MODEL.PRN.
        weights: checkpoint of a whole model or of the assembly stage; None: MODEL.WEIGHTS. Not
            looked at for evidence without weights.

    Raises:
        ValueError: evidence that needs weights and none are named, or a checkpoint of another
            assembler.
        FileNotFoundError: there is no such file.
    """
    assembler = build_pose_assembler(cfg).to(cfg.MODEL.DEVICE).eval()
    if not has_weights(assembler):
        return assembler
    path = weights or cfg.MODEL.WEIGHTS
    if not path:
        raise ValueError(
            f"MODEL.ASSEMBLER.EVIDENCE {cfg.MODEL.ASSEMBLER.EVIDENCE} needs weights: give the "
            "checkpoint of its training (train_net.py --stage assembly) as --weights"
        )
    checkpointer = PoseCheckpointer(_Holder(assembler))
    checkpointer.load(path)
    if checkpointer.not_loaded:
        raise ValueError(
            f"checkpoint {path} does not hold this assembler (missing or of another shape: "
            f"{some_names(sorted(checkpointer.not_loaded))}): use its config"
        )
    return assembler


def has_weights(assembler: nn.Module) -> bool:
    """Whether anything in it is learned: parameters of more than one number, or buffers."""
    tensors = [*assembler.parameters(), *assembler.buffers()]
    return any(tensor.numel() > 1 for tensor in tensors)
