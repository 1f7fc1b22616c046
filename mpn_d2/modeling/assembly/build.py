"""Registries and builders of keypoint assembly: assembler, grid input, evidence, matching.

An assembler gathers keypoint candidates into one pose per box, in steps that combine freely:
evidence rates all (box, candidate) pairs of an image, matching decides from that who gets what.
Grid evidence turns the keypoints of a box into a grid first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

from mpn_d2.modeling.assembly.weights import has_weights, load_assembler_weights


class KeyedRegistry(Registry):
    """A Detectron2 registry whose entries are found by a short key, the value in configs."""

    def register_as(self, key: str) -> Callable:
        """Decorator that registers what it decorates as `key`; raises if the key is taken."""

        def register(entry: Callable) -> Callable:
            self._do_register(key, entry)
            return entry

        return register

    def build(self, key: str, config_name: str, *arguments: object) -> nn.Module:
        """Calls the entry of `key`; a ValueError names `config_name` and the known keys."""
        if key not in self:
            known = ", ".join(sorted(name for name, _ in self))
            raise ValueError(f"{config_name} is {key!r}; choose one of {known}")
        return self.get(key)(*arguments)


POSE_ASSEMBLER_REGISTRY = KeyedRegistry("POSE_ASSEMBLER")
POSE_ASSEMBLER_REGISTRY.__doc__ = """
Assemblers, called as `Assembler(cfg)`, with `losses(samples) -> dict`,
`losses_on_predictions(candidates, boxes, owners, maps) -> dict` and
`inference(candidates, boxes, box_scores, maps) -> list`.
"""

GRID_INPUT_REGISTRY = KeyedRegistry("GRID_INPUT")
GRID_INPUT_REGISTRY.__doc__ = """
Functions of cfg that return a `GridInput`: keypoints and boxes to (B, K, h, w) input grids.
"""

EVIDENCE_REGISTRY = KeyedRegistry("EVIDENCE")
EVIDENCE_REGISTRY.__doc__ = """
Functions of cfg that return an `Evidence`: boxes and candidates of a batch to a `Rating`.
"""

MATCHING_REGISTRY = KeyedRegistry("MATCHING")
MATCHING_REGISTRY.__doc__ = """
Functions of cfg that return a `Matching`: a `MatchingProblem` to the chosen candidates.
"""


def build_pose_assembler(cfg: CfgNode) -> nn.Module:
    """Builds the assembler named by MODEL.ASSEMBLER.NAME, with MODEL.ASSEMBLER.WEIGHTS if any.

    Evidence without weights (identity, max) does not look at them.
    """
    key = "MODEL.ASSEMBLER.NAME"
    assembler = POSE_ASSEMBLER_REGISTRY.build(cfg.MODEL.ASSEMBLER.NAME, key, cfg)
    if cfg.MODEL.ASSEMBLER.WEIGHTS and has_weights(assembler):
        load_assembler_weights(assembler, cfg.MODEL.ASSEMBLER.WEIGHTS, cfg)
    return assembler


def build_grid_input(cfg: CfgNode) -> Any:
    """Builds the grid input named by MODEL.PRN.INPUT_MODE."""
    key = "MODEL.PRN.INPUT_MODE"
    return GRID_INPUT_REGISTRY.build(cfg.MODEL.PRN.INPUT_MODE, key, cfg)


def build_evidence(cfg: CfgNode) -> nn.Module:
    """Builds the evidence named by MODEL.ASSEMBLER.EVIDENCE."""
    key = "MODEL.ASSEMBLER.EVIDENCE"
    return EVIDENCE_REGISTRY.build(cfg.MODEL.ASSEMBLER.EVIDENCE, key, cfg)


def build_matching(cfg: CfgNode) -> nn.Module:
    """Builds the matching named by MODEL.ASSEMBLER.MATCHING."""
    key = "MODEL.ASSEMBLER.MATCHING"
    return MATCHING_REGISTRY.build(cfg.MODEL.ASSEMBLER.MATCHING, key, cfg)
