"""timm's ResNets that are built like torchvision's: resnet18, 34, 50, 101, 152, resnext50_32x4d ...

Source: `timm.create_model("resnet50", pretrained=True).state_dict()` saved with `torch.save`.
Variants with another stem, shortcut or attention (resnet50d, seresnet50 ...) have names that are
unknown here. Weights that were trained on images normalised in another way than ImageNet's usual
one (a few have mean and deviation 0.5) look the same: timm's `default_cfg` of the model tells.
"""

from __future__ import annotations

from mpn_d2.convert.moving import BOTTOM_UP, Converted, Moving, State
from mpn_d2.convert.resnet import move_trunk


def convert_timm_resnet(state: State) -> Converted:
    """The trunk; the classifier (`fc`) is unused."""
    moving = Moving(state)
    settings = move_trunk(moving)
    moving.drop("fc.")
    return moving.finish({BOTTOM_UP: settings})
