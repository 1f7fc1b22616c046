"""The dense head that regresses a whole pose from every location of every pyramid level.

Multi-Person Pose Regression via Pose Filtering and Scoring; spec sections 4 and 5. All levels
share the layers; one learned factor per level and offset output. Letters: N images, C channels, K
keypoint types, H x W cells of a level.
"""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import nn

from mpn_d2.layers.deformable import JointAlignment, MappedAlignment
from mpn_d2.modeling.heads.pose_scoring import PoseScorer
from mpn_d2.structures.outputs import LocationOutputs
from mpn_d2.structures.skeleton import get_skeleton

ALIGNMENTS = ("map", "keypoint", "none")


class PoseOffsetHead(nn.Module):
    """Classification, first pose, aligned features, final pose and scores, level by level.

    With one stage there is no second pose. The aligned features F* are those of the pose tower
    (mode none), or these read where the first pose lies; no gradient flows from them or from the
    final pose into the first (spec sections 4 and 5).
    """

    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_keypoints: int,
        num_convs: int = 4,
        norm: str = "GN",
        num_stages: int = 2,
        alignment: str = "map",
        align_cls: bool = False,
        align_groups: int = 4,
        scoring: bool = True,
        centerness: bool = False,
        joint_map_dim: int = 0,
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            input_shape: of the levels, fine to coarse, with one number of channels.
            num_keypoints: K.
            num_convs: 3x3 convolutions of each tower.
            norm: Detectron2's name of the norm of towers and joint maps, "" for none.
            num_stages: 1 or 2.
            alignment: "map", "keypoint" or "none", see MODEL.POSE_REGRESSION.ALIGN.MODE.
            align_cls: the classification reads aligned features of its tower, too.
            align_groups: of mode "map".
            scoring: predict the OKS of the final pose (PSM).
            centerness: predict FCOS's centre-ness.
            joint_map_dim: channels of the branch of joint maps (training alone); 0: no branch.
            prior_prob: that classification and joint maps start from.

        Raises:
            ValueError: a key that has no such value.
        """
        super().__init__()
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(f"all pyramid levels must have as many channels, not {channels}")
        if alignment not in ALIGNMENTS:
            raise ValueError(
                f"MODEL.POSE_REGRESSION.ALIGN.MODE is {alignment!r}; choose one of "
                + ", ".join(ALIGNMENTS)
            )
        if num_stages not in (1, 2):
            raise ValueError(f"MODEL.POSE_REGRESSION.NUM_STAGES is {num_stages}: 1 or 2 is needed")
        if align_cls and alignment == "none":
            raise ValueError(
                "MODEL.POSE_REGRESSION.ALIGN.CLS needs an alignment, but ALIGN.MODE is none"
            )
        if alignment != "none" and num_stages == 1 and not scoring and not align_cls:
            raise ValueError(
                f"MODEL.POSE_REGRESSION.ALIGN.MODE {alignment} has nothing to align: set it to "
                "none, or NUM_STAGES 2, TRAIN_PSM True or ALIGN.CLS True"
            )
        if num_convs < 0:
            raise ValueError(f"MODEL.RETINANET.NUM_CONVS is {num_convs}: 0 or more is needed")
        if not 0 < prior_prob < 1:
            raise ValueError(
                f"MODEL.RETINANET.PRIOR_PROB is {prior_prob}: a probability between 0 and 1 is "
                "needed"
            )
        width = channels.pop()
        bias = -math.log((1 - prior_prob) / prior_prob)
        # Our spec's names; no tower is called as Detectron2's detectors call theirs, so that their
        # checkpoints fill trunk and pyramid alone.
        self.cls_tower = _tower(width, width, num_convs, norm)
        self.pose_tower = _tower(width, width, num_convs, norm)
        self.cls_output = _output(width, 1, bias)
        self.first_output = _output(width, 2 * num_keypoints)
        self.first_scales = nn.Parameter(torch.ones(len(input_shape)))
        self.alignment = _alignment(alignment, width, num_keypoints, align_groups)
        self.cls_alignment = None
        if align_cls:
            self.cls_alignment = _alignment(alignment, width, num_keypoints, align_groups)
        self.final_output = self.final_scales = None
        if num_stages == 2:
            self.final_output = _output(width, 2 * num_keypoints)
            self.final_scales = nn.Parameter(torch.ones(len(input_shape)))
        self.scorer = PoseScorer(width) if scoring else None
        self.centerness_output = _output(width, 1) if centerness else None
        self.joint_maps = None
        if joint_map_dim > 0:
            self.joint_maps = nn.Sequential(
                _tower(width, joint_map_dim, 2, norm), _output(joint_map_dim, num_keypoints, bias)
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> PoseOffsetHead:
        """The head that MODEL.POSE_REGRESSION means, on levels of the given shapes."""
        keys = cfg.MODEL.POSE_REGRESSION
        if keys.HEATMAP.ENABLED and keys.HEATMAP.DIM < 1:
            raise ValueError(
                f"MODEL.POSE_REGRESSION.HEATMAP.DIM is {keys.HEATMAP.DIM}: at least 1 is needed "
                "(no branch: HEATMAP.ENABLED False)"
            )
        return cls(
            input_shape=input_shape,
            num_keypoints=get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
            num_convs=cfg.MODEL.RETINANET.NUM_CONVS,
            norm=cfg.MODEL.RETINANET.NORM,
            num_stages=keys.NUM_STAGES,
            alignment=keys.ALIGN.MODE,
            align_cls=keys.ALIGN.CLS,
            align_groups=keys.ALIGN.GROUPS,
            scoring=keys.TRAIN_PSM,
            centerness=keys.TRAIN_CENTERNESS,
            joint_map_dim=keys.HEATMAP.DIM if keys.HEATMAP.ENABLED else 0,
            prior_prob=cfg.MODEL.RETINANET.PRIOR_PROB,
        )

    def layers(self, features: list[torch.Tensor]) -> LocationOutputs:
        """Levels (N, C, H_l, W_l), fine to coarse -> outputs at every location."""
        outputs = LocationOutputs([], [])
        final, scores, centerness = [], [], []
        for level, feature in enumerate(features):
            pose_feature, cls_feature = self.pose_tower(feature), self.cls_tower(feature)
            # float32 whatever the autocast type: places far from a location need its digits.
            first = self.first_output(pose_feature).float() * self.first_scales[level]
            aligned = pose_feature
            if self.alignment is not None:
                aligned = self.alignment(pose_feature, first.detach())
            if self.cls_alignment is not None:
                cls_feature = self.cls_alignment(cls_feature, first.detach())
            outputs.cls_logits.append(self.cls_output(cls_feature))
            outputs.first_offsets.append(first)
            if self.final_output is not None:
                change = self.final_output(aligned).float() * self.final_scales[level]
                final.append(first.detach() + change)
            if self.scorer is not None:
                scores.append(self.scorer(aligned))
            if self.centerness_output is not None:
                centerness.append(self.centerness_output(pose_feature))
        outputs.final_offsets = final or None
        outputs.score_logits = scores or None
        outputs.centerness_logits = centerness or None
        if self.joint_maps is not None and self.training:
            outputs.joint_logits = self.joint_maps(features[0])
        return outputs


def _tower(in_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
    """3x3 convolutions, norm and ReLU each."""
    layers = []
    for i in range(num_convs):
        conv = Conv2d(
            channels if i else in_channels,
            channels,
            kernel_size=3,
            padding=1,
            bias=norm == "",
            norm=get_norm(norm, channels),
            activation=nn.functional.relu,
        )
        nn.init.normal_(conv.weight, std=0.01)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers.append(conv)
    return nn.Sequential(*layers)


def _output(in_channels: int, channels: int, bias: float = 0.0) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv


def _alignment(mode: str, channels: int, num_keypoints: int, groups: int) -> nn.Module | None:
    if mode == "map":
        return MappedAlignment(channels, channels, num_keypoints, groups)
    if mode == "keypoint":
        return JointAlignment(channels, channels, num_keypoints)
    return None
