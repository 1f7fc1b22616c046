"""The functions that torch.save writes into a file, and the arguments that it gives them."""

from __future__ import annotations

import math
import re
from typing import Any

# PyTorch's own limit of dimensions.
_MOST_DIMENSIONS = 64
_STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?[A-Za-z0-9]*Storage")
PARAMETER = "torch.nn.parameter.Parameter"
_TENSORS = ("torch.Tensor", PARAMETER)


class Refused(ValueError):
    """What is wrong with a file, in words."""


class Named:
    """A class, function or kind of number in a file: its name alone."""

    def __init__(self, name: str) -> None:
        self.name = name


class Storage:
    """Numbers of the file."""

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers


class Tensor:
    """A tensor, or a parameter.

    Attributes:
        is_expanded: it has more numbers than its storage.
    """

    def __init__(self, *, is_expanded: bool = False) -> None:
        self.is_expanded = is_expanded


class Plain:
    """A device, a layout, a number: nothing that grows."""


def is_storage_type(name: str) -> bool:
    return _STORAGE.fullmatch(name) is not None


def check_call(name: str, arguments: tuple) -> Any:
    """What a function of a file would return, as a part.

    Raises:
        Refused: torch.save does not write such a call.
    """
    checked = KNOWN.get(name)
    made = checked(*arguments) if checked and _fits(checked, arguments) else None
    if made is None:
        raise Refused(f"it calls {name} with other arguments than torch.save does")
    return made


def _fits(function: Any, arguments: tuple) -> bool:
    code, defaults = function.__code__, function.__defaults__ or ()
    return code.co_argcount - len(defaults) <= len(arguments) <= code.co_argcount


def _is_flat(numbers: Any, most: int = _MOST_DIMENSIONS) -> bool:
    """Whether it is a short tuple of whole numbers from 0 (or a torch.Size, which is one here)."""
    if not isinstance(numbers, tuple) or len(numbers) > most:
        return False
    return all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _is_state(state: Any) -> bool:
    """Attributes of a tensor: {name: value}, perhaps with those of its slots."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if not all(part is None or isinstance(part, dict) for part in parts):
        return False
    return all(isinstance(name, str) for part in parts if part for name in part)


def _encode(text: Any, encoding: Any) -> bytes | None:
    is_right = isinstance(text, str) and encoding == "latin1"
    return text.encode("latin1") if is_right else None


def _bytearray(content: Any = b"", encoding: Any = None) -> bytes | None:
    if isinstance(content, str) and encoding in ("latin-1", "latin1"):
        return content.encode("latin1")
    return content if isinstance(content, bytes) and encoding is None else None


def _complex(real: Any, imaginary: Any) -> complex | None:
    return complex(real, imaginary) if {type(real), type(imaginary)} <= {int, float} else None


def _size(numbers: Any) -> tuple | None:
    numbers = tuple(numbers) if isinstance(numbers, list) else numbers
    return numbers if _is_flat(numbers, 10_000) else None


def _device(kind: Any, index: Any = 0) -> Plain | None:
    return Plain() if isinstance(kind, str) and type(index) is int else None


def _layout(name: Any) -> Plain | None:
    return Plain() if isinstance(name, str) else None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor | None:
    is_right = isinstance(storage, Storage) and type(offset) is int and offset >= 0
    if not is_right or not (_is_flat(size) and _is_flat(stride) and len(size) == len(stride)):
        return None
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and last >= storage.numbers:
        # PyTorch would make the storage larger.
        raise Refused("it holds tensors of more numbers than are in the file")
    return Tensor(is_expanded=count > storage.numbers)


def _tensor_v2(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, about: Any = None
) -> Tensor | None:
    is_right = isinstance(grad, bool) and isinstance(hooks, dict)
    is_right = is_right and (about is None or isinstance(about, dict))
    return _tensor(storage, offset, size, stride) if is_right else None


def _tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    about: Any = None,
) -> Tensor | None:
    if not isinstance(dtype, Named):
        return None
    return _tensor_v2(storage, offset, size, stride, grad, hooks, about)


def _quantized(
    storage: Any, offset: Any, size: Any, stride: Any, kind: Any, grad: Any, hooks: Any
) -> Tensor | None:
    if not isinstance(kind, tuple) or not 1 <= len(kind) <= 4:
        return None
    is_right = isinstance(kind[0], Named) and all(map(_is_scale, kind[1:]))
    made = _tensor_v2(storage, offset, size, stride, grad, hooks) if is_right else None
    return None if made is None or made.is_expanded else made


def _is_scale(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(type(x) in (int, float) for x in value)
    return type(value) in (int, float) or (isinstance(value, Tensor) and not value.is_expanded)


def _sparse(layout: Any, data: Any) -> Tensor | None:
    if not isinstance(layout, Plain) or not isinstance(data, tuple) or not 3 <= len(data) <= 5:
        return None
    for part in data:
        is_tensor = isinstance(part, Tensor) and not part.is_expanded
        if not (is_tensor or _is_flat(part) or part is None or isinstance(part, bool)):
            return None
    return Tensor()


def _meta(dtype: Any, size: Any, stride: Any, grad: Any) -> Tensor | None:
    is_right = isinstance(dtype, Named) and _is_flat(size) and _is_flat(stride)
    return Tensor() if is_right and isinstance(grad, bool) else None


def _new_parameter(data: Any, grad: Any = True) -> Tensor | None:
    # PyTorch before 0.4; a state follows.
    return data if isinstance(data, Tensor) and isinstance(grad, bool) else None


def is_parameter_state(state: Any) -> bool:
    """Of the same: whether it has a gradient, whether it is volatile, its hooks."""
    if not isinstance(state, tuple) or len(state) != 3:
        return False
    is_right = isinstance(state[0], bool) and isinstance(state[1], bool)
    return is_right and (state[2] is None or isinstance(state[2], dict))


def _parameter(data: Any, grad: Any, hooks: Any) -> Tensor | None:
    is_right = isinstance(data, Tensor) and isinstance(grad, bool) and isinstance(hooks, dict)
    return data if is_right else None


def _parameter_with_state(data: Any, grad: Any, hooks: Any, state: Any) -> Tensor | None:
    return _parameter(data, grad, hooks) if _is_state(state) else None


def _typed(function: Any, kind: Any, arguments: Any, state: Any) -> Tensor | None:
    is_right = isinstance(function, Named) and function.name.startswith("torch._utils._rebuild_")
    is_right = is_right and isinstance(kind, Named) and kind.name in _TENSORS
    if not is_right or not isinstance(arguments, tuple) or not _is_state(state):
        return None
    return check_call(function.name, arguments)


# What a file may name besides kinds of numbers, storages and collections; None: no function.
KNOWN: dict[str, Any] = {
    "torch.Tensor": None,
    PARAMETER: _new_parameter,
    "_codecs.encode": _encode,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch._tensor._rebuild_from_type_v2": _typed,
}
