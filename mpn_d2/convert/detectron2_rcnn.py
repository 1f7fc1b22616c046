"""Detectron2 model zoo, Keypoint R-CNN and Mask R-CNN over an FPN: the whole network.

Names stay; what a network of ours has more or less of (classes, levels, anchors, offsets) is fitted
to it by `fit_rcnn_weights`.
"""

from __future__ import annotations

from mpn_d2.convert.detectron2_zoo import move_fpn, move_zoo_trunk
from mpn_d2.convert.moving import BOTTOM_UP, Converted, Moving, State

_FPN = "backbone.fpn_"


def convert_detectron2_rcnn(state: State) -> Converted:
    """Trunk, pyramid, proposals and heads."""
    moving = Moving(state)
    trunk = move_zoo_trunk(moving, state)
    move_fpn(moving, range(2, 6), "backbone.")
    for name in moving.names():
        if name.startswith(("proposal_generator.", "roi_heads.")):
            moving.move(name, name)
    for layer in ("proposal_generator.rpn_head.conv", "roi_heads.box_predictor.cls_score"):
        for leaf in ("weight", "bias"):
            if f"{layer}.{leaf}" not in state:
                moving.take(f"{layer}.{leaf}")
    return moving.finish({BOTTOM_UP: trunk, _FPN: {"MODEL.FPN.FUSE_TYPE": "sum"}})
