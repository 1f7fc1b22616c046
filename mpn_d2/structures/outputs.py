"""Raw outputs that travel between heads, codecs and assembly.

Letters: N images, K keypoint types, C candidates of one image, P people (boxes) of one image,
H, W cells. Frames: "network input" is the resized, unpadded image in continuous pixels
(cell i of stride s spans [i s, (i + 1) s), design 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from detectron2.structures import Instances


@dataclass
class HeatmapOutputs:
    """What the keypoint head predicts for a batch.

    Attributes:
        maps: (N, K + 1, H, W) linear values; channels 0..K-1 heatmaps, channel K person mask.
        intermediate: level name ("k2" ...) to (N, K + 1, H_l, W_l) maps at the level's own
            stride; empty at inference.
        stride: cell size of `maps`, network-input pixels.
    """

    maps: torch.Tensor
    stride: int
    intermediate: dict[str, torch.Tensor] = field(default_factory=dict)


class DenseOutputs(NamedTuple):
    """All that a network's convolutions say of a batch, before anything is read off.

    Attributes:
        maps: (N, K + 1, H, W) or (N, K, H, W), see HeatmapOutputs.
        logits: per person pyramid level (N, A, H_l, W_l), A anchors a cell; none where the network
            finds no boxes.
        deltas: per level (N, 4 A, H_l, W_l), the boxes relative to their anchors.
    """

    maps: torch.Tensor
    logits: list[torch.Tensor]
    deltas: list[torch.Tensor]


@dataclass
class Candidates:
    """Keypoint candidates of one image, in any order.

    Attributes:
        points: (C, 2) x, y; network-input frame (or any frame shared with the boxes).
        types: (C,) int64 keypoint type, 0..K-1.
        scores: (C,) in (0, 1].
    """

    points: torch.Tensor
    types: torch.Tensor
    scores: torch.Tensor

    def __len__(self) -> int:
        return len(self.points)

    def to(self, device: torch.device) -> Candidates:
        """The same candidates on another device."""
        return Candidates(*(x.to(device) for x in (self.points, self.types, self.scores)))


@dataclass
class ImageEvidence:
    """What a network sees in one image, before anybody is assembled.

    Frame of everything: the network input, or one that several views of the image share.

    Attributes:
        maps: (K + 1, H, W) as in HeatmapOutputs; H and W may reach beyond the image (padding).
        stride: cell size of `maps`, pixels of the frame.
        people: person boxes: `pred_boxes`, `scores`, `pred_classes`; `image_size` (height, width)
            is that of the image in the frame.
        candidates: keypoints that replace those of the maps (annotated ones), else None.
    """

    maps: torch.Tensor
    stride: int
    people: Instances
    candidates: Candidates | None = None


@dataclass
class AssembledPoses:
    """One pose per box of one image.

    Attributes:
        keypoints: (P, K, 3) x, y, score in the frame of the candidates; (0, 0, 0) where a joint
            was not assigned. Scores of assigned joints lie in (0, 1].
        scores: (P,) pose score in [0, 1]; 0 for a box without any keypoint.
        candidate_ids: (P, K) int64 index into the image's candidates, -1 where none.
    """

    keypoints: torch.Tensor
    scores: torch.Tensor
    candidate_ids: torch.Tensor


@dataclass
class TagOutputs:
    """Heatmaps and grouping tags of a batch.

    Attributes:
        heatmaps: (N, S, K, H, W) linear, of each of S stacks; the last one's are the result.
        tags: (N, S, K, H, W) numbers that are alike on the joints of one person.
        stride: cell size, network-input pixels.
    """

    heatmaps: torch.Tensor
    tags: torch.Tensor
    stride: int


@dataclass
class TaggedJoints:
    """Cells of the annotated joints of one image.

    Attributes:
        owners: (J,) int64 person, 0 to P - 1; every number occurs.
        types, rows, columns: (J,) int64 keypoint type and cell.
    """

    owners: torch.Tensor
    types: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


@dataclass
class LocationOutputs:
    """What a head predicts at every location of every pyramid level, a whole pose among it.

    Each list has one tensor a level, fine to coarse, (N, channels, H_l, W_l).

    Attributes:
        cls_logits: 1 channel: somebody's pose can be told from here.
        first_offsets: 2K channels, x, y by joint from the location, in strides (codecs/offsets.py).
        final_offsets: the same of the second stage; None where there is but one.
        score_logits: 1 channel: OKS of the last pose; None where it is not predicted.
        centerness_logits: 1 channel; None where it is not predicted.
        joint_logits: (N, K, H, W) of the finest level: a joint of type k is in the cell; None
            where it is not predicted (at test time never).
    """

    cls_logits: list[torch.Tensor]
    first_offsets: list[torch.Tensor]
    final_offsets: list[torch.Tensor] | None = None
    score_logits: list[torch.Tensor] | None = None
    centerness_logits: list[torch.Tensor] | None = None
    joint_logits: torch.Tensor | None = None

    @property
    def pose_offsets(self) -> list[torch.Tensor]:
        """Of the last stage: the poses to use."""
        return self.first_offsets if self.final_offsets is None else self.final_offsets

    def level(self, number: int) -> LocationOutputs:
        """The outputs of one level alone."""

        def one(levels: list[torch.Tensor] | None) -> list[torch.Tensor] | None:
            return None if levels is None else [levels[number]]

        return LocationOutputs(
            one(self.cls_logits),
            one(self.first_offsets),
            one(self.final_offsets),
            one(self.score_logits),
            one(self.centerness_logits),
        )
