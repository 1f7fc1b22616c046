"""Detectron2 model zoo, COCO-Detection/retinanet_R_*_FPN: trunk, detection pyramid, head.

Class 0 of its 80 is person.
"""

from __future__ import annotations

from mpn_d2.convert.detectron2_zoo import move_fpn, move_zoo_trunk
from mpn_d2.convert.moving import BOTTOM_UP, PERSON_FPN, PERSON_HEAD, Converted, Moving, State
from mpn_d2.convert.person_head import NUM_CONVS, first_class, head_settings, normalised


def convert_detectron2_retinanet(state: State) -> Converted:
    """Everything of it but the other 79 classes; its anchors sit on the corners of the cells.

    Its box deltas are not divided by standard deviations, ours are: the last layer is scaled.
    """
    moving = Moving(state)
    trunk = move_zoo_trunk(moving, state)
    move_fpn(moving, range(3, 6), PERSON_FPN)
    for level in ("p6", "p7"):
        moving.layer(f"backbone.top_block.{level}", f"{PERSON_FPN}top_block.{level}")
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in range(NUM_CONVS):
            moving.layer(f"head.{tower}.{2 * i}", f"{PERSON_HEAD}{tower}.{2 * i}")
    moving.layer("head.cls_score", f"{PERSON_HEAD}cls_score", first_class)
    moving.layer("head.bbox_pred", f"{PERSON_HEAD}bbox_pred", normalised)
    return moving.finish(
        {
            BOTTOM_UP: trunk,
            PERSON_FPN: {"MODEL.FPN.FUSE_TYPE": "sum"},
            PERSON_HEAD: head_settings(offset=0.0),
        }
    )
