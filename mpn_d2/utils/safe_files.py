"""Weights of others read as data: nothing in a file may run (design 7.7).

A pickle can name any function, which is called while the file is read. `.pkl` files may hold numpy
arrays, dicts, lists, tuples, strings and numbers; torch files what PyTorch's `weights_only` admits.
`--trust-pickle` of a command, or MPN_TRUST_PICKLE=1, lifts that for the whole process and those
that it starts.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpn_d2.utils.array_pickle import ArrayUnpickler

TRUST = "MPN_TRUST_PICKLE"
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
# Where training scripts keep the weights among other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")
HDF5 = (".h5", ".hdf5")
KERAS = (*HDF5, ".keras")
# What readers raise at bytes that are no such file.
READ_ERRORS = (
    pickle.UnpicklingError,
    ValueError,
    EOFError,
    RuntimeError,
    AttributeError,
    TypeError,
    ImportError,
    LookupError,
    OverflowError,
    MemoryError,
    AssertionError,
    struct.error,
)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--trust-pickle`, which works from the moment that it is parsed."""
    parser.add_argument(
        "--trust-pickle",
        action=_Trust,
        nargs=0,
        help="read weights that hold more than plain data; this runs whatever code they name, so "
        "only for files whose makers you trust",
    )


class _Trust(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        # In the environment: processes that a command starts read weights, too.
        os.environ[TRUST] = "1"


def trusts_pickle() -> bool:
    """Whether files may run what they name."""
    return os.environ.get(TRUST) == "1"


def read_pickle(content: bytes) -> Any:
    """What a `.pkl` file holds; strings of Python 2 come as latin-1.

    Raises:
        ValueError: it names something else than plain data.
        pickle.UnpicklingError and others of READ_ERRORS: it is no pickle.
    """
    file = io.BytesIO(content)
    if trusts_pickle():
        return pickle.Unpickler(file, encoding="latin1").load()
    return ArrayUnpickler(file, _refusal, encoding="latin1").load()


def read_torch(path: str | os.PathLike, *, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU.

    Args:
        path: the file.
        mmap: leave the tensors on the disk until they are looked at.

    Raises:
        ValueError: it names something else than tensors and plain values.
        pickle.UnpicklingError and others of READ_ERRORS: it is no such file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=not trusts_pickle(), mmap=mmap)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise
        raise ValueError(_refusal(refused[1], "a tensor or a plain value")) from error


def read_hdf5(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The data sets of an HDF5 file by their path inside it; links to other files are left out.

    Raises:
        ValueError: it is no such file, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{path} needs h5py: make setup, or pip install h5py") from error
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub":
            found[name] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise ValueError(f"{path} is no HDF5 file, or a broken one") from error
    return found


def read_foreign_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Named tensors of `.h5`, `.pkl` and torch files (`.pth`, `.pt`, `.bin` ...) of others.

    What training scripts wrap around the weights is taken off, and so is the prefix `module.`
    where all names have it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one line with the file and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} not found")
    try:
        suffix = path.suffix.lower()
        if suffix == ".keras":
            raise ValueError(
                "archives of Keras 3 are not read: save the weights there with "
                "model.save_weights('prn.weights.h5') and convert that file"
            )
        if suffix in HDF5:
            content: Any = read_hdf5(path)
        elif suffix == ".pkl":
            content = read_pickle(path.read_bytes())
        else:
            content = read_torch(path)
        return _named_tensors(content)
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if str(error).startswith("Weights only load failed"):
            reason = "it is no torch file"
        where = "" if str(path) in reason else f"{path}: "
        raise ValueError(f"{where}{reason}") from error


def _named_tensors(content: Any) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError(f"it holds a {type(content).__name__} instead of named tensors")
    tensors = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray | np.generic):
            value = torch.from_numpy(np.array(value))
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"its {name!r} is a {type(value).__name__} instead of a tensor")
        tensors[name] = value
    prefixed = [name for name in tensors if name.startswith("module.")]
    if not prefixed:
        return tensors
    if len(prefixed) != len(tensors):
        raise ValueError(
            f"{len(prefixed)} of its {len(tensors)} names begin with 'module.': all or none should"
        )
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _refusal(name: str, expected: str) -> str:
    return (
        f"it holds {name}, which is not {expected}: reading it could run code; if you trust "
        f"whoever made it, give --trust-pickle (commands without it: {TRUST}=1)"
    )
