"""Associative embedding: people from heatmaps and grouping tags of stacked hourglasses.

Newell, Huang, Deng, NIPS 2017, as in its code (princeton-vl/pose-ae-train); spec of unified
association, sections 2 and 7. The baseline of the recurrent decoder, and its base network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import nn

from mpn_d2.modeling.heads.bottom_up_features import BottomUpMaps
from mpn_d2.modeling.heads.tag_head import AssociativeEmbeddingHead
from mpn_d2.modeling.meta_arch.bottom_up_poses import (
    instances_of_poses,
    look_again,
    view_scales,
)
from mpn_d2.modeling.meta_arch.common import (
    final_size,
    finish_instances,
    group_by_padded_size,
    in_groups,
    require_training_fields,
)
from mpn_d2.structures.skeleton import get_skeleton

PART = "tags"


@META_ARCH_REGISTRY.register()
class AssociativeEmbedding(nn.Module):
    """Backbone of stacked outputs and the head without weights that reads them."""

    # It reads TEST.REFINE, TEST.FLIP and TEST.MULTISCALE.
    refines_by_tags = True

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        keypoint_head: AssociativeEmbeddingHead,
        train_parts: Sequence[str],
        flip_indices: Sequence[int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        refine: bool = False,
        flip: bool = False,
        multiscale: bool = False,
    ) -> None:
        """
        Args:
            backbone: StackedHourglass.
            keypoint_head: of its outputs.
            train_parts: "tags" alone.
            flip_indices: K indices, see Skeleton.
            pixel_mean, pixel_std: one number a channel.
            refine: look for missing joints by the person's mean tag.
            flip: heatmaps are means of image and mirror image, joints have the tags of both.
            multiscale: heatmaps are means over several scales and flip, tags as with `flip`.
        """
        super().__init__()
        if list(train_parts) != [PART]:
            raise ValueError(
                f"MODEL.TRAIN_PARTS is {list(train_parts)}: associative embedding has one part, "
                f"{PART} (--stage joint)"
            )
        self.backbone, self.keypoint_head = backbone, keypoint_head
        self.train_parts = tuple(train_parts)
        self.flip_indices = tuple(flip_indices)
        self.refine = refine
        self.scales = view_scales(flip=flip, multiscale=multiscale)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "keypoint_head": AssociativeEmbeddingHead(cfg, backbone.output_shape()),
            "train_parts": cfg.MODEL.TRAIN_PARTS,
            "flip_indices": get_skeleton(cfg.MODEL.SKELETON).flip_indices,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "refine": cfg.TEST.REFINE,
            "flip": cfg.TEST.FLIP,
            "multiscale": cfg.TEST.MULTISCALE,
        }

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.pixel_mean.device

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of the only part."""
        return {PART: [self.backbone, self.keypoint_head]}

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses while training, people otherwise.

        Args:
            batched_inputs: as PoseDatasetMapper makes them.

        Returns:
            Training: {"loss_tags_heatmap", "loss_tags_pull", "loss_tags_push": scalar}. Otherwise
            per image {"instances"} in pixels of the file, see `instances_of_poses`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        require_training_fields(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        outputs = self.keypoint_head.layers(self.backbone(images.tensor))
        return self.keypoint_head.losses(
            outputs,
            [x["instances"].gt_keypoints.tensor.to(self.device) for x in batched_inputs],
            [x["ignore_mask"].to(self.device) for x in batched_inputs],
        )

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalised images, padded to the size divisibility of the backbone."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """See `forward`; an image scores the same alone and in any batch (design 7.2)."""
        groups = group_by_padded_size(
            [x["image"] for x in batched_inputs], self.backbone.size_divisibility
        )
        return in_groups(self._group_of_one_size, groups, batched_inputs)

    def _look(self, images: torch.Tensor) -> BottomUpMaps:
        features = self.backbone(images)
        outputs = self.keypoint_head.layers(features)
        return BottomUpMaps(images, outputs.heatmaps[:, -1], outputs.tags[:, -1])

    def _group_of_one_size(self, batched_inputs: list[dict]) -> list[dict]:
        images = self.preprocess_image(batched_inputs)
        seen = self._look(images.tensor)
        step = self.backbone.size_divisibility
        heatmaps, tags = look_again(
            self._look, images.tensor, seen, step, self.flip_indices, self.scales
        )
        people = self.keypoint_head.inference(heatmaps, tags, images.image_sizes, fill=self.refine)
        results = []
        for x, size, (poses, scores) in zip(
            batched_inputs, images.image_sizes, people, strict=True
        ):
            margin = self.keypoint_head.stride
            found = instances_of_poses(poses, scores, tuple(size), margin)
            results.append({"instances": finish_instances(found, *final_size(x))})
        return results
