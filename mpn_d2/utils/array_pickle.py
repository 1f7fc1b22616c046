"""Pickles of numpy arrays read without numpy's own unpickling.

That believes what a file says of a dtype: a few changed bytes in a `.pkl` end the process, and
chosen ones could make numpy take numbers for the addresses of objects. Here a dtype is built from
its name alone, and shape and bytes of an array must agree before numpy sees them.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

# Booleans, integers, floats, complex numbers.
_KINDS = "biufc"
_ORDERS = ("<", ">", "=", "|")
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")  # protocol 5


# The one in Python: that in C sets aside as much memory as broken files ask for.
class ArrayUnpickler(pickle._Unpickler):
    """Admits numpy arrays and numbers, dicts, lists, tuples, strings, numbers.

    Args:
        file, options: as for `pickle.Unpickler`.
        refusal: (name in the file, what would be right) to the message of the ValueError that
            anything else is.
    """

    def __init__(self, file: Any, refusal: Callable[[str, str], str], **options: Any) -> None:
        super().__init__(file, **options)
        self._refusal = refusal

    def find_class(self, module: str, name: str) -> Any:
        # Methods: a file cannot set attributes of those, as it could of functions.
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("numpy", "ndarray"):
            return "numpy.ndarray"  # only `_reconstruct` has a use for it
        if (module, name) == ("numpy", "dtype"):
            return _Kind
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if module in ("builtins", "__builtin__") and name == "bytes":
            return self._no_bytes
        if module in _MULTIARRAY and name == "_reconstruct":
            return self._reconstruct
        if module in _MULTIARRAY and name == "scalar":
            return self._scalar
        if module in _NUMERIC and name == "_frombuffer":
            return self._from_buffer
        raise ValueError(self._refusal(f"{module}.{name}", "an array, dict or number"))

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        # Protocols before 3 write bytes so.
        if encoding != "latin1":
            raise ValueError(f"it holds bytes in {encoding!r} instead of latin1")
        return text.encode("latin1")

    def _no_bytes(self) -> bytes:
        # The same protocols: bytes without any.
        return b""

    def _reconstruct(self, *_: Any) -> np.ndarray:
        # What the array is comes with its state.
        return np.zeros(0, np.uint8).view(_Array)

    def _scalar(self, kind: _Kind, data: Any) -> np.generic:
        return np.frombuffer(_checked(kind, (), data), kind.dtype)[0]

    def _from_buffer(self, data: Any, kind: _Kind, shape: Any, order: Any) -> np.ndarray:
        data = _checked(kind, shape, data)
        return np.frombuffer(data, kind.dtype).reshape(shape, order=order).copy(order=order)


class _Kind:
    """numpy.dtype in the file."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name) if isinstance(name, str) else None
        if self.dtype is None or self.dtype.kind not in _KINDS:
            raise ValueError(f"it holds an array of {name!r} instead of numbers")

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in _ORDERS:
            raise ValueError(f"it holds numbers in the byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose state is checked."""

    def __setstate__(self, state: tuple) -> None:
        shape, kind, fortran, data = state[-4:]
        data = _checked(kind, shape, data)
        state = (1, shape, kind.dtype, bool(fortran), data)
        super().__setstate__(state)  # type: ignore[arg-type]  # NumPy says bool_ and takes bool


def _checked(kind: _Kind, shape: Any, data: Any) -> bytes:
    """The bytes of an array, of the number that kind and shape need."""
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    if not isinstance(kind, _Kind) or not isinstance(data, bytes | bytearray | pickle.PickleBuffer):
        raise ValueError("it holds an array of something else than numbers")
    if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"it holds an array of the shape {shape!r}")
    data = bytes(data)
    if len(data) != math.prod(shape) * kind.dtype.itemsize:
        raise ValueError(
            f"it holds {len(data)} bytes for an array of the shape {shape} ({kind.dtype})"
        )
    return data
