"""Detectron2's ROI heads whose keypoint head sees more than the box.

Annotated boxes hold what is seen of a person; hidden joints that are labelled may lie outside of
them (of COCO's too). A head whose maps span the box can neither learn nor name those.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances


@ROI_HEADS_REGISTRY.register()
class EnlargedKeypointROIHeads(StandardROIHeads):
    """StandardROIHeads whose keypoint features and maps span enlarged boxes.

    Box and mask head, and the boxes of the results, are as ever. With a scale of 1 all is as in
    StandardROIHeads.
    """

    @configurable
    def __init__(self, *, keypoint_box_scale: float = 1.0, **standard: object) -> None:
        """
        Args:
            keypoint_box_scale: MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE, see mpn_d2/rcnn_keys.py.
            standard: arguments of StandardROIHeads.

        Raises:
            ValueError: a scale below 1.
        """
        super().__init__(**standard)
        if keypoint_box_scale < 1:
            raise ValueError(
                f"MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE is {keypoint_box_scale}: 1 (the box itself) or "
                "more is needed"
            )
        self.keypoint_box_scale = keypoint_box_scale

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict) -> dict[str, object]:
        scale = cfg.MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE
        return {**super().from_config(cfg, input_shape), "keypoint_box_scale": scale}

    def _forward_keypoint(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> Any:
        if not self.keypoint_on or self.keypoint_box_scale == 1:
            return super()._forward_keypoint(features, instances)
        name = "proposal_boxes" if self.training else "pred_boxes"
        enlarged = []
        for of_image in instances:
            fields = {**of_image.get_fields()}
            fields[name] = enlarged_boxes(
                fields[name], self.keypoint_box_scale, of_image.image_size
            )
            enlarged.append(Instances(of_image.image_size, **fields))
        found = super()._forward_keypoint(features, enlarged)
        if not self.training:
            for with_poses, of_image in zip(found, instances, strict=True):
                with_poses.pred_boxes = of_image.pred_boxes
        return found


def enlarged_boxes(boxes: Boxes, scale: float, image_size: tuple[int, int]) -> Boxes:
    """Boxes of `scale` times the width and height around the same centres, inside the image.

    Args:
        boxes: R, pixels.
        scale: 1 or more.
        image_size: (height, width): no joint lies outside of it.
    """
    centres, sizes = boxes.get_centers(), boxes.tensor[:, 2:] - boxes.tensor[:, :2]
    half = sizes * (scale / 2)
    enlarged = Boxes(torch.cat([centres - half, centres + half], dim=1))
    enlarged.clip(image_size)
    return enlarged
