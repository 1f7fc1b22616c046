"""The exported form of networks whose locations regress whole poses: nothing is assembled.

Letters: R locations of a level, K keypoint types.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from mpn_d2.codecs.offsets import decode_offsets
from mpn_d2.export.image_network import ImageNetwork, InHalf
from mpn_d2.export.soft_suppression import TracedSuppression
from mpn_d2.modeling.meta_arch.regression_losses import by_location


class LocationNetwork(ImageNetwork):
    """`forward(image)`: (H, W, 3) uint8 to boxes, scores, pose_scores, keypoints; see the base.

    Args:
        model: an FCOS whose head is a PoseOffsetHead; copied.
        min_size, max_size: see the base.
        precision: "fp32", or "fp16": backbone and towers in half precision; places, scores and the
            alignment stay in single.
    """

    def __init__(
        self, model: nn.Module, *, min_size: int, max_size: int, precision: str = "fp32"
    ) -> None:
        model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        super().__init__(model, min_size=min_size, max_size=max_size, precision=precision)
        traced = TracedSuppression(model.box_suppression)
        model.box_suppression = traced  # type: ignore[assignment]  # as the original, no module
        if self.is_half:
            model.backbone.half()
            for name in ("cls_tower", "pose_tower"):
                setattr(model.head, name, InHalf(getattr(model.head, name)))

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        images, frame, size = self.network_input(image)
        model = self.model
        pixels = images.tensor.half() if self.is_half else images.tensor
        features = model.backbone(pixels)
        features = [features[name] for name in model.head_in_features]
        outputs = model.head.layers(features)
        poses, scores = [], []
        # Level by level: lengths of slices would be those of the image that was traced.
        for level, anchors in enumerate(model.anchor_generator(features)):
            of_level = outputs.level(level)
            cls_scores, level_scores = model.score_locations(of_level)
            points = anchors.get_centers()
            strides = torch.full_like(points[:, 0], float(model.anchor_generator.strides[level]))
            # All of them before the choice: of no places at all ONNX Runtime cannot change shapes.
            decoded = decode_offsets(by_location(of_level.pose_offsets)[0].float(), points, strides)
            chosen = model.candidates(cls_scores[0], level_scores[0])
            poses.append(decoded[chosen])
            scores.append(level_scores[0][chosen])
        people = model.people_of(torch.cat(poses), torch.cat(scores), tuple(frame))
        return self.in_image(
            people.pred_boxes.tensor,
            people.scores,
            people.pose_scores,
            people.pred_keypoints,
            frame,
            size,
        )
