"""Functions that a trace keeps with their branches and loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


def compiled(function: Callable) -> Callable:
    """A function of tensors as TorchScript.

    PyTorch calls that deprecated; its tracing exporters still know no other way to a loop or branch
    that depends on the data.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)
