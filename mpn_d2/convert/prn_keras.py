"""The authors' Pose Residual Network in Keras: a whole model's or its weights' `.h5`.

Source: mkocabas/pose-residual-network; spec sections 5.2 and 5.3. Names depend on the version of
Keras (`dense_1/dense_1/kernel:0`, `layers/dense/vars/0` ...): layers are found by their shapes, one
matrix and one vector in a group of the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import torch

from mpn_d2.convert.moving import ASSEMBLER, Converted, Moving, State
from mpn_d2.convert.prn import ENTRIES, NETWORK, SKELETON, prn_settings, reordered

# What a whole model's file holds besides.
_OPTIMIZER = ("optimizer_weights/", "optimizer/", "training_config/")


def convert_prn_keras(state: State, softmax: str = "global") -> Converted:
    """The assembler; Keras' matrices are (inputs, outputs).

    Args:
        state: paths in the file to tensors.
        softmax: "global" for the class PRN there, "slice17" for PRN_Seperate; the weights are
            alike.
    """
    moving = Moving(state)
    moving.drop(*_OPTIMIZER)
    layers = _chain(moving)
    for i, (kernel, bias) in enumerate(layers):
        dims = [1] if i == 0 else []  # those of the weight that are the grid's entries
        name = f"{NETWORK}hidden.{i}"
        if i == len(layers) - 1:
            dims.append(0)
            name = f"{NETWORK}output"
        moving.move(kernel, f"{name}.weight", partial(_turned, dims=dims))
        moving.move(bias, f"{name}.bias", partial(_in_order, dims=[d for d in dims if d == 0]))
    settings = {**prn_settings(softmax), "MODEL.PRN.NUM_HIDDEN": len(layers) - 1}
    return moving.finish({ASSEMBLER: settings})


def _turned(kernel: torch.Tensor, dims: Iterable[int]) -> torch.Tensor:
    return _in_order(kernel.T, dims)


def _in_order(tensor: torch.Tensor, dims: Iterable[int]) -> torch.Tensor:
    for dim in dims:
        tensor = reordered(tensor, SKELETON.keypoint_names, dim)
    return tensor


def _chain(moving: Moving) -> list[tuple[str, str]]:
    """Names of (kernel, bias) from the input to the output.

    Raises:
        ValueError: no such chain of layers.
    """
    tensors: dict[str, list[str]] = defaultdict(list)
    shapes: dict[str, torch.Size] = {}
    for name in moving.names():
        shapes[name] = moving.shape(name)
        tensors[name.rpartition("/")[0]].append(name)
    layers = []
    for group in tensors.values():
        kernels = [name for name in group if len(shapes[name]) == 2]
        biases = [name for name in group if len(shapes[name]) == 1]
        if len(kernels) == 1 and len(biases) == 1:
            layers.append((kernels[0], biases[0]))
    first = [x for x in layers if shapes[x[0]][0] == ENTRIES]
    last = [x for x in layers if shapes[x[0]][1] == ENTRIES]
    middle = [x for x in layers if x not in first and x not in last]
    chain = [*first, *middle, *last]
    widths = [tuple(shapes[kernel]) for kernel, _ in chain]
    fits = all(a[1] == b[0] for a, b in zip(widths, widths[1:], strict=False))
    if len(first) != 1 or len(last) != 1 or len(middle) > 1 or not fits:
        found = [tuple(shapes[kernel]) for kernel, _ in layers]
        raise ValueError(
            f"its dense layers are {found}: a PRN has two or three, from {ENTRIES} entries to "
            f"{ENTRIES}"
        )
    return chain
