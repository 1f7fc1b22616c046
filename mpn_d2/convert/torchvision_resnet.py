"""torchvision's classification ResNets and ResNeXts: the trunk.

Source: torchvision.models.resnet50 ... (`model.state_dict()`, or the files of its weights).
"""

from __future__ import annotations

from mpn_d2.convert.moving import BOTTOM_UP, Converted, Moving, State
from mpn_d2.convert.resnet import move_trunk


def convert_torchvision_resnet(state: State) -> Converted:
    """The trunk; the classifier (`fc`) is unused."""
    moving = Moving(state)
    settings = move_trunk(moving)
    moving.drop("fc.")
    return moving.finish({BOTTOM_UP: settings})
