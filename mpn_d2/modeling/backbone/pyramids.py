"""One bottom-up network under a keypoint pyramid and a person detection pyramid.

Paper section 3: the two FPNs share the bottom-up features and no weights. Spec section 2.
Feature names: k2..k5 (keypoints), p3..p7 (persons).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

Features = dict[str, torch.Tensor]


class FeatureRelay(Backbone):
    """A bottom-up without parameters that hands on features computed elsewhere.

    An FPN of Detectron2 runs its own bottom-up network; two FPNs over this one run it once.
    """

    def __init__(self, shapes: dict[str, ShapeSpec]):
        super().__init__()
        self._shapes = dict(shapes)

    def forward(self, features: Features) -> Features:
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes


class AnyStrideFPN(FPN):
    """FPN whose neighbouring levels may have equal strides (dilated bottom-up networks).

    Detectron2's FPN asks for doubling strides and always upsamples by two; this one is named
    and built by level and upsamples to the size that the next level really has.
    """

    _out_feature_strides: dict[str, int]

    def __init__(self, shapes: dict[str, ShapeSpec], in_features: list[str], **kwargs):
        finest = shapes[in_features[0]].stride
        nominal = {
            name: ShapeSpec(channels=shapes[name].channels, stride=finest * 2**i)
            for i, name in enumerate(in_features)
        }
        super().__init__(FeatureRelay(nominal), in_features, **kwargs)
        strides = [shapes[name].stride for name in in_features]
        levels = list(self._out_feature_strides)
        while len(strides) < len(levels):
            strides.append(2 * strides[-1])
        self._out_feature_strides = dict(zip(levels, strides, strict=True))
        self._size_divisibility = max(shapes[name].stride for name in in_features)

    def forward(self, features: Features) -> Features:
        names = self.in_features[::-1]
        merged = self.lateral_convs[0](features[names[0]])
        results = [self.output_convs[0](merged)]
        for i in range(1, len(names)):
            lateral = self.lateral_convs[i](features[names[i]])
            merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            if self._fuse_type == "avg":
                merged = merged / 2
            results.insert(0, self.output_convs[i](merged))
        if self.top_block is not None:
            results.extend(self.top_block(features[self.top_block.in_feature]))
        return dict(zip(self._out_features, results, strict=True))


@BACKBONE_REGISTRY.register()
class PosePyramids(Backbone):
    """Bottom-up network, keypoint FPN (k levels) and person FPN (p levels).

    With `shared`, one FPN from the finest keypoint level up serves both. Without
    `person_in_features` there is no person FPN.
    """

    @configurable
    def __init__(
        self,
        *,
        bottom_up: Backbone,
        keypoint_in_features: list[str],
        person_in_features: list[str],
        out_channels: int = 256,
        norm: str = "",
        fuse_type: str = "sum",
        shared: bool = False,
        keypoint_top_conv: bool = True,
    ):
        """
        Args:
            bottom_up: gives the named features, fine to coarse.
            keypoint_in_features: features under the keypoint pyramid.
            person_in_features: features under the person pyramid; p6 and p7 come from the last.
                Empty: no person pyramid.
            out_channels, norm, fuse_type: as Detectron2's FPN.
            shared: one pyramid for both.
            keypoint_top_conv: the coarsest keypoint level has its 3x3 convolution.
        """
        super().__init__()
        shapes = bottom_up.output_shape()
        for name in (*keypoint_in_features, *person_in_features):
            if name not in shapes:
                raise ValueError(
                    f"the bottom-up network has no feature {name!r}, only {list(shapes)}: set "
                    "MODEL.RESNETS.OUT_FEATURES to all features that MODEL.POSE_FPN names"
                )
        last = person_in_features[-1] if person_in_features else None
        common: dict[str, Any] = {
            "out_channels": out_channels,
            "norm": norm,
            "fuse_type": fuse_type,
        }
        top_block = None
        if last is not None:
            top_block = LastLevelP6P7(shapes[last].channels, out_channels, in_feature=last)
        self.bottom_up = bottom_up
        self.fpn = self.keypoint_fpn = self.person_fpn = None
        if shared:
            if not keypoint_top_conv:
                raise ValueError(
                    "MODEL.POSE_FPN.KEYPOINT_TOP_CONV False is for a keypoint pyramid of its own: "
                    "set MODEL.POSE_FPN.SHARED False"
                )
            if keypoint_in_features[-1] != last:
                raise ValueError("a shared pyramid needs the same coarsest feature for both parts")
            self.fpn = _build_fpn(shapes, keypoint_in_features, top_block=top_block, **common)
        else:
            self.keypoint_fpn = _build_fpn(shapes, keypoint_in_features, **common)
            if not keypoint_top_conv:
                _drop_top_conv(self.keypoint_fpn)
            if last is not None:
                self.person_fpn = _build_fpn(
                    shapes, person_in_features, top_block=top_block, **common
                )
        self._num_keypoint_only = len(keypoint_in_features) - len(person_in_features)
        self._num_keypoint = len(keypoint_in_features)
        self._size_divisibility = max(shapes[n].stride for n in keypoint_in_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        builder = BACKBONE_REGISTRY.get(cfg.MODEL.POSE_FPN.BOTTOM_UP)
        return {
            "bottom_up": builder(cfg, input_shape),
            "keypoint_in_features": cfg.MODEL.POSE_FPN.KEYPOINT_IN_FEATURES,
            "person_in_features": cfg.MODEL.POSE_FPN.PERSON_IN_FEATURES,
            "out_channels": cfg.MODEL.FPN.OUT_CHANNELS,
            "norm": cfg.MODEL.FPN.NORM,
            "fuse_type": cfg.MODEL.FPN.FUSE_TYPE,
            "shared": cfg.MODEL.POSE_FPN.SHARED,
            "keypoint_top_conv": cfg.MODEL.POSE_FPN.KEYPOINT_TOP_CONV,
        }

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, images: torch.Tensor) -> Features:
        """Images (N, 3, H, W), H and W multiples of `size_divisibility` -> k and p features."""
        return self.pyramids(self.bottom_up(images))

    def pyramids(
        self,
        features: Features,
        *,
        keypoint: bool = True,
        person: bool = True,
        detach_person: bool = False,
    ) -> Features:
        """Bottom-up features -> k2..k5 if `keypoint`, p3..p7 if `person`.

        With `detach_person` gradients of the p features end at `person_modules()`: they reach
        neither the bottom-up network nor a shared pyramid.
        """
        if self.fpn is not None:
            pyramid = self._split_shared(self.fpn(features))
            if person and detach_person:
                pyramid.update(self._detached_person_levels(features, pyramid))
            return {n: f for n, f in pyramid.items() if (keypoint if n[0] == "k" else person)}
        result = {}
        if keypoint:
            result.update({f"k{n[1:]}": f for n, f in self.keypoint_fpn(features).items()})
        if person and self.person_fpn is not None:
            if detach_person:
                features = {name: feature.detach() for name, feature in features.items()}
            result.update(self.person_fpn(features))
        return result

    def _detached_person_levels(self, features: Features, pyramid: Features) -> Features:
        """p levels of a shared pyramid without its gradients; p6 and p7 anew, they train."""
        names = [name for name in pyramid if name[0] == "p"]
        top = self.fpn.top_block(features[self.fpn.top_block.in_feature].detach())
        lower = [pyramid[name].detach() for name in names[: -len(top)]]
        return dict(zip(names, [*lower, *top], strict=True))

    def person_modules(self) -> list[nn.Module]:
        """What belongs to person detection alone (trained in the person stage)."""
        if self.fpn is not None:
            return [self.fpn.top_block]
        return [] if self.person_fpn is None else [self.person_fpn]

    def keypoint_modules(self) -> list[nn.Module]:
        """The keypoint pyramid alone; of a shared pyramid all but its p6 and p7."""
        if self.fpn is None:
            return [self.keypoint_fpn]
        return [*self.fpn.lateral_convs, *self.fpn.output_convs]

    def _split_shared(self, pyramid: Features) -> Features:
        names = list(pyramid)
        keypoint = {f"k{name[1:]}": pyramid[name] for name in names[: self._num_keypoint]}
        return {**keypoint, **{name: pyramid[name] for name in names[self._num_keypoint_only :]}}

    def output_shape(self) -> dict[str, ShapeSpec]:
        if self.fpn is not None:
            return self._split_shared(self.fpn.output_shape())
        keypoint = {f"k{n[1:]}": s for n, s in self.keypoint_fpn.output_shape().items()}
        return {**keypoint, **(self.person_fpn.output_shape() if self.person_fpn else {})}


def _build_fpn(
    shapes: dict[str, ShapeSpec],
    in_features: list[str],
    top_block: nn.Module | None = None,
    **kwargs,
) -> FPN:
    strides = [shapes[name].stride for name in in_features]
    doubling = all(b == 2 * a for a, b in itertools.pairwise(strides))
    if doubling:
        relay = FeatureRelay(shapes)
        return FPN(relay, in_features, top_block=top_block, **kwargs)
    return AnyStrideFPN(shapes, in_features, top_block=top_block, **kwargs)


def _drop_top_conv(fpn: FPN) -> None:
    """The coarsest level becomes its lateral convolution's output as it is."""
    [name] = [name for name, module in fpn.named_children() if module is fpn.output_convs[0]]
    # Detectron2's FPN holds its convolutions twice: by name and, coarse to fine, in a list.
    fpn.output_convs[0] = nn.Identity()
    setattr(fpn, name, fpn.output_convs[0])
