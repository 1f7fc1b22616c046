"""The Pose Residual Network of other code.

Letters: n units, h x w cells, K keypoint types. All flatten the grid as (h, w, K), keypoint
fastest, and so does ours; the order of the keypoints may be another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpn_d2.convert.moving import ASSEMBLER
from mpn_d2.structures.skeleton import get_skeleton

NETWORK = f"{ASSEMBLER}evidence.network."
SIZE = (56, 36)
SKELETON = get_skeleton("coco")
ENTRIES = SIZE[0] * SIZE[1] * SKELETON.num_keypoints


def prn_settings(softmax: str = "global") -> dict[str, object]:
    """Settings of a PRN on COCO's people; `softmax` as MODEL.PRN.SOFTMAX."""
    return {
        "MODEL.SKELETON": SKELETON.name,
        "MODEL.ASSEMBLER.EVIDENCE": "prn",
        "MODEL.PRN.SOFTMAX": softmax,
        "MODEL.PRN.INPUT_MODE": "peaks",
        "MODEL.PRN.CROP": list(SIZE),
    }


def reordered(tensor: torch.Tensor, names: Sequence[str], dim: int) -> torch.Tensor:
    """A dimension of h * w * K entries in the skeleton's order of keypoints.

    Args:
        tensor: weight (n, h * w * K) or (h * w * K, n), or bias (h * w * K,).
        names: of the keypoints in their order there.
        dim: 0 or 1.

    Raises:
        ValueError: another number of entries or dimensions.
    """
    if tensor.ndim <= dim:
        raise ValueError(f"a PRN layer needs {dim + 1} dimensions or more")
    if tensor.shape[dim] != ENTRIES:
        raise ValueError(
            f"a PRN layer of {tensor.shape[dim]} entries: {SIZE[0]} x {SIZE[1]} cells of "
            f"{SKELETON.num_keypoints} keypoints are {ENTRIES}"
        )
    index = [list(names).index(name) for name in SKELETON.keypoint_names]
    grid = tensor.unflatten(dim, (SIZE[0] * SIZE[1], len(names)))
    order = torch.tensor(index, device=tensor.device)
    return grid.index_select(dim + 1, order).flatten(dim, dim + 1)
