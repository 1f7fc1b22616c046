"""LiMeng95/MultiPoseNet.pytorch: the whole network, into configs/MultiPoseNet/compat.

Facts on names, shapes and conventions: docs/checkpoints.md.
"""

from __future__ import annotations

from mpn_d2.convert.moving import (
    ASSEMBLER,
    BOTTOM_UP,
    KEYPOINT_FPN,
    KEYPOINT_HEAD,
    PERSON_FPN,
    PERSON_HEAD,
    Converted,
    Moving,
    State,
)
from mpn_d2.convert.person_head import first_class, head_settings, move_towers, scale_major
from mpn_d2.convert.prn import prn_settings
from mpn_d2.convert.prn_pytorch import move_prn
from mpn_d2.convert.resnet import move_trunk
from mpn_d2.structures.skeleton import OPENPOSE_NAMES

# Keypoint pyramid: lateral convolutions of res5 to res2, then 3x3 ones; k5 has none.
_KEYPOINT_FPN = {
    "toplayer": "fpn_lateral5",
    "flatlayer1": "fpn_lateral4",
    "flatlayer2": "fpn_lateral3",
    "flatlayer3": "fpn_lateral2",
    "smooth1": "fpn_output4",
    "smooth2": "fpn_output3",
    "smooth3": "fpn_output2",
}
_PERSON_FPN = {
    "latlayer1": "fpn_lateral5",
    "latlayer2": "fpn_lateral4",
    "latlayer3": "fpn_lateral3",
    "toplayer0": "fpn_output5",
    "toplayer1": "fpn_output4",
    "toplayer2": "fpn_output3",
    "conv6": "top_block.p6",
    "conv7": "top_block.p7",
}
_PRN_NAMES = tuple(name for name in OPENPOSE_NAMES if name != "neck")


def convert_multiposenet_pytorch(state: State) -> Converted:
    """All of the network; of 80 classes the first, person."""
    moving = Moving(state)
    trunk = move_trunk(moving, "fpn.")
    for old, new in _KEYPOINT_FPN.items():
        moving.layer(f"fpn.{old}", f"{KEYPOINT_FPN}{new}")
    for old, new in _PERSON_FPN.items():
        moving.layer(f"fpn.{old}", f"{PERSON_FPN}{new}")
    _move_keypoint_head(moving)
    towers = {"cls_subnet": "classificationModel.conv", "bbox_subnet": "regressionModel.conv"}
    move_towers(moving, towers, PERSON_HEAD)
    moving.layer(
        "classificationModel.output",
        f"{PERSON_HEAD}cls_score",
        lambda x: scale_major(first_class(x)),
    )
    moving.layer("regressionModel.output", f"{PERSON_HEAD}bbox_pred", scale_major)
    move_prn(moving, "prn.", _PRN_NAMES)
    return moving.finish(
        {
            BOTTOM_UP: trunk,
            KEYPOINT_FPN: {
                "MODEL.POSE_FPN.KEYPOINT_TOP_CONV": False,
                "MODEL.FPN.FUSE_TYPE": "sum",
            },
            PERSON_FPN: {"MODEL.FPN.FUSE_TYPE": "sum"},
            KEYPOINT_HEAD: {
                "MODEL.KP_SUBNET.NAME": "OpenPoseSubnet",
                "MODEL.KP_SUBNET.D_RELU": False,
                "MODEL.KP_SUBNET.UPSAMPLE": "nearest",
            },
            PERSON_HEAD: head_settings(offset=0.5),
            ASSEMBLER: {**prn_settings(), "MODEL.PRN.NUM_HIDDEN": 2},
        }
    )


def _move_keypoint_head(moving: Moving) -> None:
    # 1 to 4 there belong to k5 to k2.
    for i, level in enumerate(("k5", "k4", "k3", "k2"), start=1):
        moving.layer(f"convt{i}", f"{KEYPOINT_HEAD}d_convs.{level}.0")
        moving.layer(f"convs{i}", f"{KEYPOINT_HEAD}d_convs.{level}.1")
        moving.layer(f"convfin_{level}", f"{KEYPOINT_HEAD}intermediate.{level}")
    moving.layer("conv2", f"{KEYPOINT_HEAD}smooth")
    moving.layer("convfin", f"{KEYPOINT_HEAD}predictor")
