"""Detectron2's keypoint head, refined by learned offsets; Gaussian targets beside its softmax.

Report of J. Ye and Z. Ma (Columbia E6691, 2021), section 3.2; spec multitask_rcnn section 5.
Letters: R boxes (regions) of all images, K keypoint types, S x S cells of a map over its box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, interpolate
from detectron2.modeling import ROI_KEYPOINT_HEAD_REGISTRY
from detectron2.modeling.roi_heads.keypoint_head import (
    KRCNNConvDeconvUpsampleHead,
    keypoint_rcnn_loss,
)
from detectron2.structures import Instances
from torch import nn

from mpn_d2.codecs.heatmap_offsets import (
    decode_box_heatmaps,
    encode_box_heatmaps,
    read_at_offsets,
    read_at_offsets_fast,
)
from mpn_d2.layers.deformable_conv import DeformableConv2d, is_recorded
from mpn_d2.structures.skeleton import get_skeleton

REFINEMENTS = ("none", "conv", "heatmap", "both")
LOSSES = ("mse", "softmax")
POSE_SCORES = ("box", "keypoints")


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class KeypointOffsetHead(KRCNNConvDeconvUpsampleHead):
    """3x3 convolutions, a transposed one and bilinear upsampling, as the framework's head, with

    - refinement "conv": the 3x3 convolutions are deformable;
    - refinement "heatmap": 2K more channels are offsets, at which the K maps are read.

    Offsets start as 0: every refinement begins as the unrefined head, whose names of parameters it
    keeps (`score_lowres` has 3K instead of K outputs). With refinement "none" and loss "softmax"
    it is the framework's head.

    Results have `pred_keypoints` (P, K, 3) x, y, score in (0, 1], and `pose_scores` (P,). The raw
    maps (`pred_keypoint_heatmaps` in the framework) are not kept: 20 MB an image of 100 people.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_keypoints: int,
        refine: str = "none",
        loss: str = "mse",
        sigma: float = 1.0,
        min_visibility: int = 1,
        prior: float = 0.01,
        pose_score: Sequence[str] = ("box",),
        **kwargs,
    ) -> None:
        """
        Args:
            input_shape: of the features of a box.
            num_keypoints: K.
            refine, loss, sigma, min_visibility, prior, pose_score: see the keys
                MODEL.ROI_KEYPOINT_HEAD in mpn_d2/rcnn_keys.py.
            kwargs: further arguments of the framework's head.

        Raises:
            ValueError: a value that is not possible; names the key.
        """
        _check(refine, loss, sigma, min_visibility, prior, pose_score)
        reads_maps = refine in ("heatmap", "both")
        outputs = 3 * num_keypoints if reads_maps else num_keypoints
        super().__init__(input_shape, num_keypoints=outputs, **kwargs)
        self._reads_maps = reads_maps
        self.num_keypoints = num_keypoints
        self.refine = refine
        self.loss = loss
        self.sigma = sigma
        self.min_visibility = min_visibility
        self.pose_score = tuple(pose_score)
        if refine in ("conv", "both"):
            for name, layer in list(self.named_children()):
                if isinstance(layer, Conv2d):
                    setattr(self, name, DeformableConv2d.from_conv(layer))
        # The transposed convolution's outputs are the second axis.
        nn.init.zeros_(self.score_lowres.weight[:, num_keypoints:])
        if loss == "mse":
            nn.init.constant_(self.score_lowres.bias[:num_keypoints], math.log(prior / (1 - prior)))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        head = cfg.MODEL.ROI_KEYPOINT_HEAD
        skeleton = get_skeleton(cfg.MODEL.SKELETON)
        if head.NUM_KEYPOINTS != skeleton.num_keypoints:
            raise ValueError(
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {head.NUM_KEYPOINTS}, but skeleton "
                f"{skeleton.name!r} has {skeleton.num_keypoints}: set it to that"
            )
        if head.BOX_SCALE != 1 and cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads":
            raise ValueError(
                f"MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE is {head.BOX_SCALE}, which StandardROIHeads do "
                "not read: set MODEL.ROI_HEADS.NAME to EnlargedKeypointROIHeads"
            )
        return {
            **super().from_config(cfg, input_shape),
            "refine": head.REFINE,
            "loss": head.LOSS,
            "sigma": head.TARGET_SIGMA,
            "min_visibility": head.MIN_VISIBILITY,
            "prior": head.PRIOR,
            "pose_score": head.POSE_SCORE,
        }

    def forward(
        self, x: torch.Tensor, instances: list[Instances]
    ) -> dict[str, torch.Tensor] | list[Instances]:
        """Losses while training, else the instances with poses.

        Args:
            x: (R, C, h, w) features of the boxes of all images.
            instances: one an image; training: with `proposal_boxes` and `gt_keypoints`, else with
                `pred_boxes` and perhaps `scores`.
        """
        maps = self.layers(x)
        if self.training:
            return {"loss_keypoint": self.loss_weight * self._loss_of(maps, instances)}
        boxes = torch.cat([i.pred_boxes.tensor for i in instances])
        joints = decode_box_heatmaps(maps, boxes, softmax=self.loss == "softmax")
        counts = [len(i) for i in instances]
        for found, of_image in zip(instances, joints.split(counts), strict=True):
            found.pred_keypoints = of_image
            found.pose_scores = self._rate(found, of_image)
        return instances

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """(R, C, h, w) features -> (R, K, S, S) refined maps: logits with loss "softmax", else
        probabilities (the sigmoid comes before the reading [inferred])."""
        *trunk, last = self.children()
        for layer in trunk:
            x = layer(x)
        # Maps and offsets by themselves: together the maps would be added up in another order than
        # those of an unrefined head.
        maps = self._upsample(x, last, slice(self.num_keypoints))
        if self.loss == "mse":
            maps = maps.sigmoid()
        if self._reads_maps:
            exactly = torch.is_grad_enabled() or is_recorded()
            read = read_at_offsets if exactly else read_at_offsets_fast
            maps = read(maps, self._upsample(x, last, slice(self.num_keypoints, None)))
        return maps

    def _upsample(self, x: torch.Tensor, last: Any, outputs: slice) -> torch.Tensor:
        """These outputs of the head, (R, outputs, S, S) float32."""
        low = F.conv_transpose2d(
            x,
            last.weight[:, outputs],
            last.bias[outputs],
            stride=last.stride,
            padding=last.padding,
        )
        return interpolate(low.float(), scale_factor=self.up_scale, mode="bilinear")

    def _loss_of(self, maps: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
        if self.loss == "softmax":
            per_image = None if self.loss_normalizer == "visible" else self.loss_normalizer
            normalizer = None if per_image is None else per_image * len(instances)
            # It views the maps as rows, which those of bfloat16 or channels-last layers are not.
            return keypoint_rcnn_loss(maps.contiguous(), instances, normalizer=normalizer)
        people = [i for i in instances if len(i)]
        if not people:
            return maps.sum() * 0
        targets = encode_box_heatmaps(
            torch.cat([i.gt_keypoints.tensor for i in people]),
            torch.cat([i.proposal_boxes.tensor for i in people]),
            maps.shape[-1],
            self.sigma,
            self.min_visibility,
        )
        return (maps - targets).square().sum() / len(maps)

    def _rate(self, people: Instances, joints: torch.Tensor) -> torch.Tensor:
        """(P,) scores of poses (P, K, 3): a product, see MODEL.ROI_KEYPOINT_HEAD.POSE_SCORE."""
        rating = joints.new_ones(len(joints))
        if "box" in self.pose_score and people.has("scores"):
            rating = rating * people.scores
        if "keypoints" in self.pose_score:
            rating = rating * joints[..., 2].mean(dim=1)
        return rating


def _check(
    refine: str,
    loss: str,
    sigma: float,
    min_visibility: int,
    prior: float,
    pose_score: Sequence[str],
) -> None:
    key = "MODEL.ROI_KEYPOINT_HEAD"
    choices: list[tuple[str, object, Sequence]]
    choices = [("REFINE", refine, REFINEMENTS), ("LOSS", loss, LOSSES)]
    choices += [("MIN_VISIBILITY", min_visibility, (1, 2))]
    choices += [("POSE_SCORE", part, POSE_SCORES) for part in pose_score]
    for name, value, known in choices:
        if value not in known:
            names = ", ".join(map(str, known))
            raise ValueError(f"{key}.{name} is {value!r}; choose of {names}")
    if not pose_score:
        raise ValueError(f"{key}.POSE_SCORE is empty; choose of {', '.join(POSE_SCORES)}")
    if not sigma > 0:
        raise ValueError(f"{key}.TARGET_SIGMA is {sigma}: more than 0 cells is needed")
    if not 0 < prior < 1:
        raise ValueError(f"{key}.PRIOR is {prior}: between 0 and 1 is needed")
