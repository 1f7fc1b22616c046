"""The PyTorch port of the Pose Residual Network: `dens1`, `bneck`, `dens2`, COCO's keypoint order.

Source: salihkaragoz/pose-residual-network-pytorch; spec section 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpn_d2.convert.moving import ASSEMBLER, Converted, Moving, State
from mpn_d2.convert.prn import NETWORK, SKELETON, prn_settings, reordered


def move_prn(moving: Moving, prefix: str, names: Sequence[str]) -> None:
    """Moves the three layers.

    Args:
        moving: of a state with `<prefix>dens1` ...
        prefix: before the names.
        names: of the keypoints in their order there.
    """
    moving.move(
        f"{prefix}dens1.weight", f"{NETWORK}hidden.0.weight", lambda x: reordered(x, names, 1)
    )
    moving.move(f"{prefix}dens1.bias", f"{NETWORK}hidden.0.bias")
    moving.layer(f"{prefix}bneck", f"{NETWORK}hidden.1")
    moving.layer(f"{prefix}dens2", f"{NETWORK}output", lambda x: reordered(x, names, 0))


def convert_prn_pytorch(state: State) -> Converted:
    """The assembler of two hidden layers."""
    moving = Moving(state)
    move_prn(moving, "", SKELETON.keypoint_names)
    return moving.finish({ASSEMBLER: {**prn_settings(), "MODEL.PRN.NUM_HIDDEN": 2}})
