"""Weights of others read as data: nothing in a file may run (design 7.7).

A pickle can name any function, which is called while the file is read. `.pkl` files may hold numpy
arrays, dicts, lists, tuples, strings and numbers; torch files what PyTorch's `weights_only` admits.
`--trust-pickle` of a command, or MPN_TRUST_PICKLE=1, lifts that for the whole process and those
that it starts.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mpn_d2.utils.array_pickle import ArrayUnpickler
from mpn_d2.utils.torch_pickle import check_torch_file

TRUST = "MPN_TRUST_PICKLE"
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
# Where training scripts keep the weights among other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")
# Times that compressed numbers take more memory than in the file: deflate reaches 1032 at most.
_MOST_PACKED = 1100
# Kinds of numbers that weights have; no complex ones, nor those of quantized networks.
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_ELSEWHERE = (
    "reading it would open a file that this one names: write all into one file (h5repack -l CONTI)"
)
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
    return _DataUnpickler(file, _refusal, encoding="latin1").load()


def _check_call(stack: list[Any], _: list[list[Any]]) -> None:
    function, arguments = stack[-2:]
    if function is not OrderedDict:
        _check_plain(arguments)
        return
    for items in arguments:
        # A dict's keys have been looked at, what is no list of pairs fails by itself.
        _check_keys([pair[0] for pair in items] if isinstance(items, list | tuple) else [])


def _check_state(stack: list[Any], _: list[list[Any]]) -> None:
    if not isinstance(stack[-2], OrderedDict):
        _check_plain(stack[-1])


def _check_dict(stack: list[Any], _: list[list[Any]]) -> None:
    _check_keys(stack[::2])


def _check_item(stack: list[Any], _: list[list[Any]]) -> None:
    _check_target(stack[-3])
    _check_keys([stack[-2]])


def _check_items(stack: list[Any], below: list[list[Any]]) -> None:
    _check_target(below[-1][-1])  # what stood before the mark
    _check_keys(stack[::2])


def _refuse(*_: Any) -> None:
    raise ValueError("it holds a set or an object, which is not an array, dict or number")


def _check_target(target: Any) -> None:
    if not isinstance(target, dict):
        raise ValueError(f"it sets entries of a {type(target).__name__}, which is no dict")


def _check_keys(keys: list[Any]) -> None:
    for key in keys:
        if not isinstance(key, str | bytes | int | float | np.number):
            raise ValueError(
                f"it holds a dict with a {type(key).__name__} as a key: name its entries by text"
            )


def _check_plain(arguments: Any) -> None:
    """Raises a ValueError at what no array, dtype or number is made of."""
    if not isinstance(arguments, tuple):
        raise ValueError("it holds an array or dtype that is not described by a tuple")
    flat = [x for a in arguments for x in (a if isinstance(a, tuple) else (a,))]
    for value in flat:
        if isinstance(value, tuple | list | dict):
            raise ValueError(
                f"it holds an array of something else than numbers: a {type(value).__name__}"
            )


_CHECKS = {
    pickle.REDUCE[0]: _check_call,
    pickle.BUILD[0]: _check_state,
    pickle.DICT[0]: _check_dict,
    pickle.SETITEM[0]: _check_item,
    pickle.SETITEMS[0]: _check_items,
    pickle.EMPTY_SET[0]: _refuse,
    pickle.FROZENSET[0]: _refuse,
    pickle.NEWOBJ[0]: _refuse,
    pickle.NEWOBJ_EX[0]: _refuse,
}


def _checked(code: int) -> Callable[[Any], None]:
    """What reads an instruction of a pickle, after a look at what it works on."""
    read: Any = ArrayUnpickler.dispatch[code]

    def load(unpickler: Any) -> None:
        _CHECKS[code](unpickler.stack, unpickler.metastack)
        read(unpickler)

    return load


class _DataUnpickler(ArrayUnpickler):
    """Admits only what is read in the time that its size suggests.

    A tuple that holds another one twice, and so on 60 times over, is 130 bytes in a file; its hash,
    and its text in a message, take 2^60 steps. So keys are text or numbers, and functions get text,
    numbers and flat tuples.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        **ArrayUnpickler.dispatch,
        **{code: _checked(code) for code in _CHECKS},
    }
    # INST and OBJ, after `find_class`.
    _instantiate = _refuse


def read_torch(path: str | os.PathLike, *, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU.

    Args:
        path: the file.
        mmap: leave the tensors on the disk until they are looked at.

    Raises:
        ValueError: it names something else than tensors and plain values.
        pickle.UnpicklingError and others of READ_ERRORS: it is no such file.
    """
    if Path(path).suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    if not trusts_pickle():
        check_torch_file(path, _refusal)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trusts_pickle(), mmap=mmap)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise
        raise ValueError(_refusal(refused[1], "a tensor or a plain value")) from error


def _read_safetensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    # torch.load of some versions hands files with this suffix on, errors of another kind included.
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(f"{path} needs safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"it is no safetensors file, or a broken one ({error})") from error


def read_hdf5(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The data sets of an HDF5 file by their path inside it; links to other files are left out.

    Raises:
        ValueError: it is no such file, has data sets whose numbers lie in other files or take far
            more memory than the file, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{path} needs h5py: make setup, or pip install h5py") from error
    found: dict[str, np.ndarray] = {}
    left = os.path.getsize(path)

    def visit(name: str, item: Any) -> None:
        nonlocal left
        if not isinstance(item, h5py.Dataset):
            return
        # First of all: even the shape of a virtual one is asked of the files that it names.
        if item.is_virtual or item.external:
            kind = "virtual data set" if item.is_virtual else "data set with external storage"
            raise ValueError(f"{path}: its {name!r} is a {kind}: {_ELSEWHERE}")
        if item.dtype.kind in "fiub":
            left -= _stored_bytes(f"{path}: its {name!r}", item, left)
            found[name] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise ValueError(f"{path} is no HDF5 file, or a broken one") from error
    return found


def _stored_bytes(name: str, item: Any, left: int) -> int:
    """Bytes that the numbers of a data set take in its file.

    Args:
        name, item: of the data set, the name as a message begins with it.
        left: bytes of the file that no other data set has claimed.

    Raises:
        ValueError: it would take far more memory than the file has for it: data sets that were
            never written, or share their place in the file.
    """
    if item.shape is None:
        raise ValueError(f"{name} is a data set without a shape")
    # A whole chunk is read even where little of it is used.
    numbers = max(math.prod(item.shape), math.prod(item.chunks or (0,)))
    needed, stored = numbers * item.dtype.itemsize, item.id.get_storage_size()
    is_packed = item.chunks is not None and item.id.get_create_plist().get_nfilters() > 0
    if stored > left or needed > stored * (_MOST_PACKED if is_packed else 1):
        raise ValueError(
            f"{name} of the shape {item.shape} needs {needed} bytes of memory and the file "
            f"holds {min(stored, left)} for it: write the file again with all its numbers"
        )
    return stored


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


def check_tensor(name: object, value: object) -> None:
    """Raises a ValueError for what no weights are, or those of a network that has diverged.

    Of the kinds that `weights_only` admits only plain tensors of real, finite numbers pass, whose
    numbers all are in the file: what an expanded one takes, copied, does not show in its file.
    """
    if not isinstance(name, str) or not isinstance(value, torch.Tensor | np.ndarray):
        raise ValueError(f"its {name!r} is a {type(value).__name__} instead of a tensor")
    if isinstance(value, np.ndarray):
        kind = str(value.dtype) if value.dtype.kind not in "fiub" else ""
        is_finite = bool(kind) or value.dtype.kind != "f" or bool(np.isfinite(value).all())
    else:
        kind = _other_kind(value)
        is_finite = bool(kind) or _is_finite(value)
    if kind:
        raise ValueError(
            f"its {name!r} is a tensor of another kind ({kind}): save plain tensors of real "
            "numbers (.dequantize(), .to_dense(), .float(), .contiguous())"
        )
    if not is_finite:
        raise ValueError(
            f"its {name!r} has numbers that are NaN or infinite, as after a training that has "
            "diverged: take an earlier checkpoint"
        )


def _other_kind(value: torch.Tensor) -> str:
    """What is not plain about a tensor; "" where nothing is."""
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else str(value.layout)
    if value.device.type != "cpu" or value.dtype not in _DTYPES:
        return value.device.type if value.device.type != "cpu" else str(value.dtype)
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "expanded"
    return ""


def _is_finite(value: torch.Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    # NaN is both; unlike isfinite().all() it makes no copy.
    return all(math.isfinite(x) for x in torch.aminmax(value.detach()))


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
        check_tensor(name, value)
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
