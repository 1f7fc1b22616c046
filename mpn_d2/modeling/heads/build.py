"""Registry of dense keypoint heads."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

KEYPOINT_HEATMAP_HEAD_REGISTRY = Registry("KEYPOINT_HEATMAP_HEAD")
KEYPOINT_HEATMAP_HEAD_REGISTRY.__doc__ = """
Heads that predict keypoint heatmaps and a person mask from pyramid features.

A head is called `Head(cfg, input_shape)` with `input_shape` mapping feature names to ShapeSpec,
and has `layers(features)`, `make_targets(...)`, `losses(outputs, targets)` and
`inference(outputs)`; HeatmapHead has all but the first.
"""


def build_keypoint_heatmap_head(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], **options: object
) -> Any:
    """Builds the head named by MODEL.KP_SUBNET.NAME; a ValueError names the known ones.

    Args:
        cfg, input_shape: see the registry.
        options: arguments of the head that no key sets.
    """
    name = cfg.MODEL.KP_SUBNET.NAME
    if name not in KEYPOINT_HEATMAP_HEAD_REGISTRY:
        known = ", ".join(sorted(key for key, _ in KEYPOINT_HEATMAP_HEAD_REGISTRY))
        raise ValueError(f"MODEL.KP_SUBNET.NAME is {name!r}; choose one of {known}")
    return KEYPOINT_HEATMAP_HEAD_REGISTRY.get(name)(cfg, input_shape, **options)
