"""Detectron2's mask head for people of whom not all have a mask."""

from __future__ import annotations

import torch
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances


@ROI_MASK_HEAD_REGISTRY.register()
class PersonMaskHead(MaskRCNNConvUpsampleHead):
    """The framework's head: its loss (mean binary cross-entropy of the person's channel) is that
    of boxes whose person has a mask; `gt_has_mask` tells, see PoseDatasetMapper."""

    def forward(
        self, x: torch.Tensor, instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """As the framework's.

        Args:
            x: (R, C, h, w) features of the boxes of all images.
            instances: one an image; where an image has boxes, training wants `proposal_boxes`,
                `gt_masks` and perhaps `gt_has_mask` (P,) bool, without which all have one.
        """
        if self.training:
            kept = [_with_mask(i, x.device) for i in instances]
            x = x[torch.cat(kept)]
            instances = [i[k] for i, k in zip(instances, kept, strict=True)]
        return super().forward(x, instances)


def _with_mask(people: Instances, device: torch.device) -> torch.Tensor:
    if people.has("gt_has_mask"):
        return people.gt_has_mask
    return torch.ones(len(people), dtype=torch.bool, device=device)
