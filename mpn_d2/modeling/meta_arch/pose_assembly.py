"""An assembler by itself: trained and evaluated on annotations, without a backbone or an image.

MultiPoseNet section 3.4: its third stage needs nothing of the other two (spec section 9). Names in
the state are those of the whole network, so that either loads the other's checkpoints.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from mpn_d2.modeling.assembly import build_pose_assembler

PART = "assembly"


@META_ARCH_REGISTRY.register()
class PoseAssembly(nn.Module):
    """Gives the losses of an assembler on samples of mpn_d2.data.association.

    It predicts nothing from images; mpn_d2.evaluation.assembly evaluates its `assembler`.
    """

    # Evaluation reads annotations (engine/assembly_evaluation.py).
    reads_images = False

    @configurable
    def __init__(
        self, *, assembler: nn.Module, train_parts: list[str], loss_weight: float = 1.0
    ) -> None:
        """
        Args:
            assembler: of POSE_ASSEMBLER_REGISTRY.
            train_parts: "assembly" alone, whatever the stage.
            loss_weight: factor on the loss.
        """
        super().__init__()
        if list(train_parts) != [PART]:
            raise ValueError(
                f"MODEL.TRAIN_PARTS is {list(train_parts)}: an assembler by itself has one part, "
                f"{PART} (--stage {PART})"
            )
        self.assembler = assembler
        self.train_parts = tuple(train_parts)
        self.loss_weight = loss_weight
        self.register_load_state_dict_pre_hook(_forget_image_parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        if cfg.MODEL.JOINT_LEVEL > 0:
            raise ValueError(
                f"MODEL.JOINT_LEVEL is {cfg.MODEL.JOINT_LEVEL}: an assembler by itself learns from "
                "annotations, which is level 0"
            )
        return {
            "assembler": build_pose_assembler(cfg),
            "train_parts": cfg.MODEL.TRAIN_PARTS,
            "loss_weight": cfg.MODEL.LOSS.ASSEMBLY_WEIGHT,
        }

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.assembler.evidence.device

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of the only part."""
        return {PART: [self.assembler]}

    def forward(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        """{"loss_assembly...": scalar} of training samples.

        Raises:
            ValueError: in evaluation mode, or given images.
        """
        if not self.training or any("image" in sample for sample in samples):
            raise ValueError(
                "an assembler by itself (MODEL.META_ARCHITECTURE PoseAssembly) takes no images: "
                "give its checkpoint to a whole network's config as MODEL.WEIGHTS, or assemble "
                "keypoints with tools/assemble.py"
            )
        losses = self.assembler.losses(samples)
        return {name: self.loss_weight * loss for name, loss in losses.items()}


def _forget_image_parts(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
    """Takes what a whole network's checkpoint holds beside the assembler out of `state`."""
    for name in [name for name in state if not name.startswith(f"{prefix}assembler.")]:
        del state[name]
