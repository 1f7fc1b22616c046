"""Detectron2's own models, so that an image's result does not depend on its batch (design 7.2)."""

from __future__ import annotations

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import nn

from mpn_d2.modeling.meta_arch.common import group_by_padded_size, in_groups


class SizeGroups(nn.Module):
    """Runs a model on groups of images that have one size once padded; for inference.

    Detectron2 pads all images of a batch to the largest, and padding is not nothing: it has
    anchors, and biases and norms make it non-zero.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: with a `backbone` that has a `size_divisibility`; in evaluation mode.
        """
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """The model's results, in the order of the inputs."""
        divisibility = self.model.backbone.size_divisibility
        groups = group_by_padded_size([x["image"] for x in batched_inputs], divisibility)
        return in_groups(self.model, groups, batched_inputs)


def same_in_any_batch(model: nn.Module) -> nn.Module:
    """A model whose results of an image are the same alone and in any batch: ours are by
    themselves, an R-CNN of Detectron2's gets a SizeGroups around it."""
    return SizeGroups(model).eval() if isinstance(model, GeneralizedRCNN) else model
