"""The RetinaNet head of other code: its class of people, its order of anchors.

Letters: A = R x S anchors a cell, R ratios, S scales; C classes.
"""

from __future__ import annotations

import torch

from mpn_d2.convert.moving import Moving

RATIOS = (0.5, 1.0, 2.0)
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
BASE_SIZES = (32, 64, 128, 256, 512)
# 1 / standard deviations of box deltas, as in the paper's configs.
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
NUM_ANCHORS = len(RATIOS) * len(SCALES)
NUM_CONVS = 4


def head_settings(offset: float) -> dict[str, object]:
    """Settings of a RetinaNet head with the usual anchors.

    Args:
        offset: of an anchor's centre from its cell's corner, cells.
    """
    return {
        "MODEL.ANCHOR_GENERATOR.OFFSET": offset,
        "MODEL.ANCHOR_GENERATOR.SIZES": [
            [round(base * s, 4) for s in SCALES] for base in BASE_SIZES
        ],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(RATIOS)],
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": list(DELTA_WEIGHTS),
        "MODEL.RETINANET.NUM_CONVS": NUM_CONVS,
        "MODEL.RETINANET.NORM": "",
        "MODEL.POSE_FPN.SHARED": False,
    }


def first_class(outputs: torch.Tensor) -> torch.Tensor:
    """Of (A * C, ...) class outputs, anchors slowest, the first class: (A, ...).

    Raises:
        ValueError: outputs that are no multiple of the anchors.
    """
    if not _channels(outputs) or _channels(outputs) % NUM_ANCHORS:
        raise ValueError(
            f"class outputs of {_channels(outputs)} channels: no multiple of {NUM_ANCHORS} anchors"
        )
    return outputs.unflatten(0, (NUM_ANCHORS, -1))[:, 0]


def normalised(outputs: torch.Tensor) -> torch.Tensor:
    """(A * 4, ...) outputs that are box deltas as such -> deltas over their standard deviations.

    Raises:
        ValueError: another number of outputs.
    """
    if _channels(outputs) != 4 * NUM_ANCHORS:
        raise ValueError(
            f"box outputs of {_channels(outputs)} channels: {NUM_ANCHORS} anchors have "
            f"{4 * NUM_ANCHORS}"
        )
    weights = outputs.new_tensor(DELTA_WEIGHTS).repeat(NUM_ANCHORS)
    return outputs * weights.view(-1, *[1] * (outputs.ndim - 1))


def scale_major(outputs: torch.Tensor) -> torch.Tensor:
    """(R * S * n, ...) outputs, ratios slowest -> (S * R * n, ...), scales slowest.

    Detectron2's anchors of a cell go through the ratios of each scale.

    Raises:
        ValueError: outputs that are no multiple of the anchors.
    """
    if not _channels(outputs) or _channels(outputs) % NUM_ANCHORS:
        raise ValueError(
            f"outputs of {_channels(outputs)} channels: no multiple of {NUM_ANCHORS} anchors"
        )
    by_anchor = outputs.unflatten(0, (len(RATIOS), len(SCALES), -1))
    return by_anchor.transpose(0, 1).flatten(0, 2)


def _channels(outputs: torch.Tensor) -> int:
    return outputs.shape[0] if outputs.ndim else 0


def move_towers(moving: Moving, old: dict[str, str], new_prefix: str) -> None:
    """Convolutions of both towers, numbered from 1 there and by module (0, 2, 4 ...) here.

    Args:
        moving: of the source.
        old: tower of ours ("cls_subnet", "bbox_subnet") to its name there, up to the number.
        new_prefix: of the head.
    """
    for ours, theirs in old.items():
        for i in range(NUM_CONVS):
            moving.layer(f"{theirs}{i + 1}", f"{new_prefix}{ours}.{2 * i}")
