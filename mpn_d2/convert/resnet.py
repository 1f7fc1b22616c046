"""The trunk of torchvision's, timm's and LiMeng95's ResNets: one naming for all."""

from __future__ import annotations

import re

import torch

from mpn_d2.convert.moving import BOTTOM_UP, Moving, other_shape

# Blocks a layer, and whether they are bottlenecks (three convolutions, else two).
_KNOWN = (
    ((2, 2, 2, 2), False),
    ((3, 4, 6, 3), False),
    ((3, 4, 6, 3), True),
    ((3, 4, 23, 3), True),
    ((3, 8, 36, 3), True),
)
# To the depth: these convolutions, the stem and the classifier.
DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    (blocks, deep): sum(blocks) * (3 if deep else 2) + 2 for blocks, deep in _KNOWN
}
# ImageNet's, of images in 0 to 255.
RGB_MEAN, RGB_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def move_trunk(moving: Moving, prefix: str = "") -> dict[str, object]:
    """Moves stem and blocks to the bottom-up network.

    Args:
        moving: of a state with `<prefix>conv1`, `bn1`, `layer1.0.conv1` ...
        prefix: before the trunk's names.

    Returns:
        The settings that go with it: images are RGB, normalised as for ImageNet; of bottlenecks,
        the stride is in the 3x3 convolution, which has so many groups and channels.

    Raises:
        ValueError: numbers of blocks that no ResNet has.
    """
    numbers, bottleneck = _blocks(moving, prefix)
    widths = _widths(moving, prefix) if bottleneck else {}
    if (numbers, bottleneck) not in DEPTHS:
        kind = "bottlenecks" if bottleneck else "basic blocks"
        raise ValueError(
            f"layers of {list(numbers)} {kind}: no ResNet of depth "
            f"{', '.join(str(depth) for depth in DEPTHS.values())}"
        )
    moving.move(f"{prefix}conv1.weight", f"{BOTTOM_UP}stem.conv1.weight")
    moving.norm(f"{prefix}bn1", f"{BOTTOM_UP}stem.conv1.norm")
    for layer, count in enumerate(numbers, start=1):
        for block in range(count):
            old, new = f"{prefix}layer{layer}.{block}", f"{BOTTOM_UP}res{layer + 1}.{block}"
            for i in range(1, 4 if bottleneck else 3):
                moving.move(f"{old}.conv{i}.weight", f"{new}.conv{i}.weight")
                moving.norm(f"{old}.bn{i}", f"{new}.conv{i}.norm")
            # Channels change in the first bottleneck of each layer; of basic blocks not in layer 1.
            if block == 0 and (bottleneck or layer > 1):
                moving.move(f"{old}.downsample.0.weight", f"{new}.shortcut.weight")
                moving.norm(f"{old}.downsample.1", f"{new}.shortcut.norm")
    settings = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": RGB_MEAN,
        "MODEL.PIXEL_STD": RGB_STD,
        "MODEL.RESNETS.DEPTH": DEPTHS[numbers, bottleneck],
    }
    if bottleneck:
        settings["MODEL.RESNETS.STRIDE_IN_1X1"] = False
    return settings | widths


def _widths(moving: Moving, prefix: str) -> dict[str, object]:
    """Settings of a ResNeXt's groups or a wide ResNet's channels, from a 3x3 convolution.

    Raises:
        ValueError: as `convolution_widths`.
    """
    name = f"{prefix}layer1.0.conv2.weight"
    if name not in moving:
        return {}
    channels, per_group = convolution_widths(name, moving.tensor(name))
    return {
        "MODEL.RESNETS.NUM_GROUPS": channels // per_group,
        "MODEL.RESNETS.WIDTH_PER_GROUP": per_group,
    }


def convolution_widths(name: str, weight: torch.Tensor) -> tuple[int, int]:
    """Channels of a convolution, and how many channels each of its groups sees.

    Raises:
        ValueError: no weight of a convolution, or one of groups that are not alike; names it.
    """
    if weight.ndim != 4 or not weight.shape[1] or weight.shape[0] % weight.shape[1]:
        raise other_shape(
            name, weight, "that of a 3x3 convolution is (channels, channels of a group, 3, 3)"
        )
    return weight.shape[0], weight.shape[1]


def _blocks(moving: Moving, prefix: str) -> tuple[tuple[int, ...], bool]:
    """Blocks of each of the four layers, and whether they are bottlenecks."""
    pattern = re.compile(re.escape(prefix) + r"layer([1-4])\.(\d+)\.(conv3)?")
    found = [match for name in moving.names() if (match := pattern.match(name))]
    numbers = tuple(
        1 + max((int(m[2]) for m in found if m[1] == str(layer)), default=-1)
        for layer in range(1, 5)
    )
    return numbers, any(m[3] for m in found)
