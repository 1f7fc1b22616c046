"""Detectron2 model zoo, COCO-Keypoints/keypoint_rcnn_*_FPN: trunk and keypoint pyramid.

Its proposals and heads look at boxes cut out of the pyramid; our networks have no such parts.
"""

from __future__ import annotations

from mpn_d2.convert.detectron2_zoo import move_fpn, move_zoo_trunk
from mpn_d2.convert.moving import BOTTOM_UP, KEYPOINT_FPN, Converted, Moving, State


def convert_detectron2_keypoint_rcnn(state: State) -> Converted:
    """Trunk and pyramid; proposals and heads are unused."""
    moving = Moving(state)
    trunk = move_zoo_trunk(moving, state)
    move_fpn(moving, range(2, 6), KEYPOINT_FPN)
    moving.drop("proposal_generator.", "roi_heads.")
    pyramid = {
        "MODEL.FPN.FUSE_TYPE": "sum",
        "MODEL.POSE_FPN.KEYPOINT_TOP_CONV": True,
        "MODEL.POSE_FPN.SHARED": False,
    }
    return moving.finish(
        {BOTTOM_UP: {**trunk, "MODEL.POSE_FPN.SHARED": False}, KEYPOINT_FPN: pyramid}
    )
