"""A look at what a torch file would make PyTorch do, before PyTorch does it.

`weights_only` runs nothing of a file, yet 300 bytes can keep it busy for years (a tuple that holds
another one twice, and so on 60 times over, as a key: its hash takes 2^60 steps) or make it set
aside gigabytes (a tensor class that is called with a size). Here the instructions are followed
with empty parts in the place of tensors.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any, ClassVar

import torch

# How torch.load knows an archive.
_ZIP = b"PK\x03\x04"
# What PyTorch before 1.6 wrote: a magic number, version, machine, the content, keys of storages.
_LEGACY_PICKLES = 5
_CONTENT = 3
# Items in the arguments of a function, those of tuples in them included; PyTorch's own are twenty.
_MOST_ARGUMENTS = 10_000
_LONGEST_KEY = 100
_REBUILD = "torch._utils._rebuild_"
_TYPED_REBUILD = "torch._tensor._rebuild_from_type_v2"
# Made here, too: their keys or members are hashed.
_COLLECTIONS = {
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "builtins.set": set,
}


class _Refused(ValueError):
    """What is wrong, in words."""


def check_torch_file(path: str | os.PathLike) -> None:
    """Looks for what would take far more time or memory than the file's size suggests.

    What it names is left to PyTorch, and so are the numbers of the tensors.

    Raises:
        ValueError: there is such a thing; one line about it.
        pickle.UnpicklingError, RuntimeError, EOFError: it is no torch file, or a broken one.
    """
    with open(path, "rb") as file:
        is_archive = file.read(len(_ZIP)) == _ZIP
        if not os.path.getsize(path):
            raise EOFError("it is empty")
        if is_archive:
            content = torch._C.PyTorchFileReader(os.fspath(path)).get_record("data.pkl")
            _followed(_Inspector(io.BytesIO(content)))
            return
        # Mapped: reading what a broken length asks for would set aside that much first.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _check_legacy(mapped)


def _check_legacy(file: mmap.mmap) -> None:
    storages: dict[str, int] = {}
    found: Any = None
    for i in range(_LEGACY_PICKLES):
        inspector = _Inspector(file)
        found = _followed(inspector)
        if i == _CONTENT:
            storages = inspector.storages
    # PyTorch sets their memory aside before it looks for their numbers.
    stored = {x for x in found if isinstance(x, str)} if isinstance(found, list) else set()
    if sum(storages.values()) > len(file) or not storages.keys() <= stored:
        raise _Refused("it holds tensors of more numbers than are in the file")


def _followed(inspector: _Inspector) -> Any:
    try:
        return inspector.load()
    except _Refused:
        raise
    except Exception as error:  # bytes that are no pickle fail in any way
        raise pickle.UnpicklingError(f"Weights only load failed: {error}") from error


class _Named:
    """A class or function of the file: its name alone."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Part:
    """What a function would make, or a storage; takes whatever is put into it."""

    def __setitem__(self, key: Any, value: Any) -> None:
        return

    def append(self, value: Any) -> None:
        return

    def extend(self, values: Any) -> None:
        return


# PyTorch follows none of these either.
_UNKNOWN = (
    *(pickle.DICT, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.FROZENSET),
    *(pickle.ADDITEMS, pickle.EXT1, pickle.EXT2, pickle.EXT4),
)


def _refuse(_: Any) -> None:
    raise pickle.UnpicklingError("an instruction that torch.save does not write")


# The one in Python, as in utils/array_pickle.py.
class _Inspector(pickle._Unpickler):
    """Follows a pickle without making anything but text, numbers and collections.

    Attributes:
        storages: numbers of each storage by its key, as the file has it.
    """

    # Of the standard library's class, which comes without types.
    stack: list[Any]
    append: Any
    load_setitem: Any
    load_setitems: Any

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        return _COLLECTIONS.get(full) or _Named(full)

    def persistent_load(self, pid: Any) -> _Part:
        if not isinstance(pid, tuple) or any(isinstance(x, tuple | list) for x in pid[:-1]):
            raise _Refused("it holds a storage that is not described by text and numbers")
        _check_size(pid)
        if len(pid) > 4 and isinstance(pid[2], str) and isinstance(pid[4], int):
            self.storages[pid[2]] = max(pid[4], self.storages.get(pid[2], 0))
        return _Part()

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(arguments, tuple):
            raise _Refused("it calls a function with something else than a tuple")
        self.stack[-1] = _called(function, arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict):  # its keys have been looked at
            _check_size(state)

    def _new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.append(kind() if isinstance(kind, type) else _called(kind, arguments))

    def _set_item(self) -> None:
        _check_keys(self.stack[-2:-1])
        self.load_setitem()

    def _set_items(self) -> None:
        _check_keys(self.stack[::2])
        self.load_setitems()

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.NEWOBJ[0]: _new_object,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        **dict.fromkeys((code[0] for code in _UNKNOWN), _refuse),
    }


def _called(function: Any, arguments: tuple) -> Any:
    """What a function of the file returns: a collection, or a part."""
    if isinstance(function, type):
        for items in arguments:
            if isinstance(items, list | tuple):
                has_pairs = function is OrderedDict
                _check_keys(x[0] if has_pairs and isinstance(x, list | tuple) else x for x in items)
        return function(*arguments)
    _check_size(arguments)
    name = getattr(function, "name", "")
    if name == _TYPED_REBUILD:
        name = getattr(arguments[0], "name", "") if arguments else ""
        if not name.startswith(_REBUILD):
            raise _Refused("it makes a tensor in a way that torch.save does not write")
    is_tensor = name.startswith("torch.") and name.endswith(("Tensor", "Storage"))
    makes_numbers = is_tensor and arguments != ()
    counts = name == "builtins.bytearray" and any(isinstance(x, int) for x in arguments)
    if makes_numbers or counts:
        raise _Refused(f"it makes a {name} of a size instead of reading its numbers")
    return _Part()


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        if isinstance(key, tuple) and (
            len(key) > _LONGEST_KEY or any(isinstance(x, tuple) for x in key)
        ):
            raise _Refused("it holds a dict or set with a nested tuple: name its entries by text")


def _check_size(arguments: Any) -> None:
    """Raises a ValueError for what has more items than a function's arguments ever have."""
    waiting, count = [arguments], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, tuple | list):
            count += len(item)
            if count > _MOST_ARGUMENTS:
                raise _Refused(
                    f"it calls a function with more than {_MOST_ARGUMENTS} items, those of nested "
                    "tuples included"
                )
            waiting.extend(item)
