"""What a recurrent decoder reads of a bottom-up network: one interface for all of them.

Spec of unified association, section 2: the decoder does not depend on the base network. A reader
looks at the features of a backbone through the network's keypoint head and gives `BottomUpMaps`;
`channels` and `stride` tell what comes. Readers hold no weights of their own, so that the state of
backbone and head keeps its names and the base's checkpoint fits. Letters: N images, K keypoint
types, C channels, H x W cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from mpn_d2.modeling.heads.build import build_keypoint_heatmap_head
from mpn_d2.modeling.heads.heatmap_head import HeatmapHead
from mpn_d2.modeling.heads.tag_head import AssociativeEmbeddingHead

Features = dict[str, torch.Tensor]
TAG_CHANNELS = ("supervised", "free", "all")


@dataclass
class BottomUpMaps:
    """Of a batch.

    Attributes:
        features: (N, C, H, W) what the decoder reads.
        heatmaps: (N, K, H, W) of everybody's joints.
        tags: (N, K, H, W) grouping tags; None from a network without them.
    """

    features: torch.Tensor
    heatmaps: torch.Tensor
    tags: torch.Tensor | None


class BottomUpReader(Protocol):
    """The interface.

    Attributes:
        channels: C.
        stride: of the cells, network-input pixels.
    """

    channels: int
    stride: int

    def __call__(self, features: Features) -> BottomUpMaps:
        """Backbone features by name -> maps."""
        ...


class TagReader:
    """Outputs of all stacks of an associative embedding network, one behind the other.

    Which channels: "supervised" (heatmaps and tags: c = 4 * 34 = 136 for four stacks and COCO),
    "free" (those without a loss of their own, as many), or "all". The paper's text leaves open
    which 34 of the 68 it means.
    """

    def __init__(self, head: AssociativeEmbeddingHead, shapes: dict[str, ShapeSpec], which: str):
        if which not in TAG_CHANNELS:
            raise ValueError(
                f"MODEL.SEQUENCE.TAG_CHANNELS is {which!r}; choose one of {', '.join(TAG_CHANNELS)}"
            )
        self._head = head
        supervised, total = 2 * head.num_keypoints, shapes[head.in_features[0]].channels
        first, last = (supervised if which == "free" else 0), total
        self._part = slice(first, supervised if which == "supervised" else last)
        self.channels = len(head.in_features) * (self._part.stop - self._part.start)
        self.stride = head.stride

    def __call__(self, features: Features) -> BottomUpMaps:
        outputs = self._head.layers(features)
        read = torch.cat([features[name][:, self._part] for name in self._head.in_features], dim=1)
        return BottomUpMaps(read, outputs.heatmaps[:, -1], outputs.tags[:, -1])


class HeatmapReader:
    """Pyramid levels of a heatmap network, all at the finest one's resolution, and its maps."""

    def __init__(self, head: HeatmapHead, shapes: dict[str, ShapeSpec], levels: list[str]):
        unknown = [name for name in levels if name not in shapes]
        if unknown:
            raise ValueError(
                f"MODEL.SEQUENCE.IN_FEATURES names {unknown[0]!r}, the backbone has {list(shapes)}"
            )
        self._head, self._levels = head, list(levels)
        self.channels = sum(shapes[name].channels for name in levels) + head.num_maps
        self.stride = head.stride

    def __call__(self, features: Features) -> BottomUpMaps:
        maps = self._head.layers(features).maps
        size = maps.shape[-2:]
        read = [
            features[name]
            if features[name].shape[-2:] == size
            else F.interpolate(features[name], size=size, mode="bilinear", align_corners=False)
            for name in self._levels
        ]
        heatmaps = maps[:, : self._head.num_keypoints]
        return BottomUpMaps(torch.cat([*read, maps], dim=1), heatmaps, None)


READERS = ("tags", "heatmaps")


def build_bottom_up(cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> tuple[nn.Module, BottomUpReader]:
    """The keypoint head of the base network, and the reader that MODEL.SEQUENCE.FEATURES names.

    Args:
        cfg: of the whole.
        shapes: features of the backbone.

    Raises:
        ValueError: an unknown reader, or features that the backbone does not have.
    """
    if cfg.MODEL.SEQUENCE.FEATURES == "tags":
        head = AssociativeEmbeddingHead(cfg, shapes)
        return head, TagReader(head, shapes, cfg.MODEL.SEQUENCE.TAG_CHANNELS)
    if cfg.MODEL.SEQUENCE.FEATURES == "heatmaps":
        head = build_keypoint_heatmap_head(cfg, shapes)
        return head, HeatmapReader(head, shapes, cfg.MODEL.SEQUENCE.IN_FEATURES)
    raise ValueError(
        f"MODEL.SEQUENCE.FEATURES is {cfg.MODEL.SEQUENCE.FEATURES!r}; choose one of "
        + ", ".join(READERS)
    )
