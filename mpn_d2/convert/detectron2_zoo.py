"""What the converters of Detectron2's model zoo share: the trunk, under our names already."""

from __future__ import annotations

import re

from mpn_d2.convert.moving import BOTTOM_UP, Moving, State, other_shape
from mpn_d2.convert.resnet import DEPTHS, convolution_widths

# Buffers that a config decides, in old files.
_BUFFERS = ("pixel_mean", "pixel_std", "anchor_generator.")
# Detectron2's config files: MSRA's ResNets (the default), and FAIR's ResNeXt.
_BGR_MEAN = [103.53, 116.28, 123.675]
_STD, _RESNEXT_STD = [1.0, 1.0, 1.0], [57.375, 57.12, 58.395]
_BLOCK = re.compile(re.escape(BOTTOM_UP) + r"res([2-5])\.(\d+)\.(conv3)?")


def move_zoo_trunk(moving: Moving, state: State) -> dict[str, object]:
    """Moves the bottom-up network, names as they are, and returns its settings.

    Raises:
        ValueError: no trunk of the zoo, or one of other shapes.
    """
    for name in [n for n in moving.names() if n.startswith(BOTTOM_UP)]:
        moving.move(name, name)
    found = [match for name in state if (match := _BLOCK.match(name))]
    numbers = tuple(
        1 + max((int(m[2]) for m in found if m[1] == str(level)), default=-1)
        for level in range(2, 6)
    )
    kind = (numbers, any(m[3] for m in found))
    grouped = f"{BOTTOM_UP}res2.0.conv2.weight"
    if kind not in DEPTHS or grouped not in state:
        raise ValueError(
            f"no ResNet of Detectron2's model zoo under {BOTTOM_UP}*: blocks of res2 to res5 are "
            f"{list(numbers)}"
        )
    _note_missing(moving, state, *kind)
    channels, per_group = convolution_widths(grouped, state[grouped])
    resnext = channels != per_group
    settings = {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": _values(state, "pixel_mean", _BGR_MEAN),
        "MODEL.PIXEL_STD": _values(state, "pixel_std", _RESNEXT_STD if resnext else _STD),
        "MODEL.RESNETS.DEPTH": DEPTHS[kind],
        "MODEL.RESNETS.STRIDE_IN_1X1": not resnext,
    }
    moving.drop(*_BUFFERS)
    return settings


def move_fpn(moving: Moving, levels: range, new: str) -> None:
    """Lateral and output convolutions of Detectron2's FPN (without norms) to one of ours."""
    for level in levels:
        for kind in ("lateral", "output"):
            moving.layer(f"backbone.fpn_{kind}{level}", f"{new}fpn_{kind}{level}")


def _note_missing(moving: Moving, state: State, numbers: tuple[int, ...], deep: bool) -> None:
    """Asks for what each convolution of the trunk needs, so that what lacks is listed."""
    names = ["stem.conv1"]
    for level, count in enumerate(numbers, start=2):
        for block in range(count):
            names += [f"res{level}.{block}.conv{i}" for i in range(1, 4 if deep else 3)]
            if block == 0 and (deep or level > 2):
                names.append(f"res{level}.0.shortcut")
    for name in names:
        for leaf in ("weight", *(f"norm.{x}" for x in ("weight", "bias"))):
            if f"{BOTTOM_UP}{name}.{leaf}" not in state:
                moving.take(f"{BOTTOM_UP}{name}.{leaf}")
        # Some files of the zoo fold the statistics into weight and bias and leave them out.
        statistics = [f"{BOTTOM_UP}{name}.norm.running_{x}" for x in ("mean", "var")]
        if not all(x in state for x in statistics) and any(x in state for x in statistics):
            moving.take(next(x for x in statistics if x not in state))


def _values(state: State, name: str, default: list[float]) -> list[float]:
    """Three numbers of a buffer, or the default of a file without it."""
    if name not in state:
        return default
    if state[name].numel() != len(default):
        raise other_shape(name, state[name], f"{len(default)} numbers are needed, one a channel")
    return state[name].flatten().tolist()
