"""A look at what a torch file would make PyTorch do, before PyTorch does it.

`weights_only` runs nothing of a file, yet 300 bytes can keep it busy for years (a tuple that holds
another one twice, and so on 60 times over, as a key: its hash takes 2^60 steps) or make it set
aside gigabytes (a tensor of a size without numbers). Here the instructions of the file are followed
with parts in the place of tensors, and only what torch.save writes passes: known functions with
arguments of the right kinds, tensors whose numbers are in the file, keys of a bounded size.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch

from mpn_d2.utils.torch_calls import (
    KNOWN,
    PARAMETER,
    Named,
    Plain,
    Refused,
    Storage,
    Tensor,
    check_call,
    is_parameter_state,
    is_storage_type,
)

# How torch.load knows an archive.
_ZIP = b"PK\x03\x04"
# Of which torch.load says that it is a program.
_SCRIPT = "constants.pkl"
# What PyTorch before 1.6 wrote: a magic number, version, machine, the content, keys of storages.
_LEGACY_KINDS = (int, int, dict, object, list)
_CONTENT = 3
# Texts, numbers and names in a key, those of tuples in it included; and in all keys together.
_LARGEST_KEY = 10_000
_MOST_WORK = 5_000_000
_ENDLESS = 10**12
_KEYS = (tuple, str, bytes, int, float, complex, Named, Plain, type(None))
_COLLECTIONS = {
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "builtins.set": set,
}


class _Left(Exception):
    """PyTorch goes no further either, and says why."""


def check_torch_file(path: str | os.PathLike, refusal: Callable[[str, str], str]) -> None:
    """Looks for what would take far more time or memory than the file's size suggests.

    Args:
        path: of the file.
        refusal: (name in the file, what would be right) to the message about it.

    Raises:
        ValueError: there is such a thing; one line about it.
        pickle.UnpicklingError, RuntimeError, EOFError: it is no torch file, or a broken one.
    """
    with open(path, "rb") as file:
        size = os.path.getsize(path)
        if not size:
            raise EOFError("it is empty")
        if file.read(len(_ZIP)) == _ZIP:
            storages = _follow_archive(file, size, refusal)
        else:
            # Mapped: reading what a broken length asks for would set aside that much first.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                storages = _follow_legacy(mapped, refusal)
    # A number takes a byte at least. Memory for all is set aside before they are read.
    if sum(storages.values()) > size:
        raise Refused("it holds tensors of more numbers than are in the file")


def _follow_archive(file: Any, size: int, refusal: Callable[[str, str], str]) -> dict[str, int]:
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # as broken files raise anything
        raise pickle.UnpicklingError(f"Weights only load failed: {error}") from error
    if unpacked > size:
        raise Refused("it is a packed archive: write it again with torch.save")
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    if _SCRIPT in reader.get_all_records():
        return {}
    inspector = _Inspector(io.BytesIO(reader.get_record("data.pkl")), refusal)
    try:
        _followed(inspector)
    except _Left:
        return {}
    return inspector.storages


def _follow_legacy(file: mmap.mmap, refusal: Callable[[str, str], str]) -> dict[str, int]:
    storages: dict[str, int] = {}
    found: Any = None
    for i, kind in enumerate(_LEGACY_KINDS):
        inspector = _Inspector(file, refusal)
        try:
            found = _followed(inspector)
        except _Left:
            return {}
        if not isinstance(found, kind):
            raise pickle.UnpicklingError("Weights only load failed: no head of a torch file")
        if i == _CONTENT:
            storages = inspector.storages
    # What is not named there stays without numbers.
    if not all(isinstance(key, str) for key in found) or not storages.keys() <= set(found):
        raise Refused("it holds tensors of more numbers than are in the file")
    return storages


def _followed(inspector: _Inspector) -> Any:
    try:
        return inspector.load()
    except (Refused, _Left):
        raise
    except Exception as error:  # bytes that are no pickle fail in any way
        raise pickle.UnpicklingError(f"Weights only load failed: {error}") from error


def _leave(_: Any) -> None:
    raise _Left


# The one in Python, as in utils/array_pickle.py.
class _Inspector(pickle._Unpickler):
    """Follows a pickle without making anything but text, numbers and collections.

    Attributes:
        storages: numbers of each storage by its key, as the file has it.
    """

    # Of the standard library's class, which comes without types.
    stack: list[Any]
    append: Any
    pop_mark: Any
    load_setitem: Any
    load_setitems: Any

    def __init__(self, file: Any, refusal: Callable[[str, str], str]) -> None:
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, int] = {}
        self._refusal = refusal
        self._work = 0
        # Items of tuples by their id, those of tuples in them included; the tuples stay alive.
        self._sizes: dict[int, int] = {}
        self._tuples: list[tuple] = []

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in _COLLECTIONS:
            return _COLLECTIONS[full]
        if full in KNOWN or is_storage_type(full) or _is_kind(full):
            return Named(full)
        raise Refused(self._refusal(full, "a tensor or a plain value"))

    def persistent_load(self, pid: Any) -> Storage:
        if isinstance(pid, tuple) and len(pid) in (5, 6):
            word, kind, key, place, numbers = pid[:5]
            view = pid[5] if len(pid) == 6 else None
            is_text = all(isinstance(x, str) and "\0" not in x for x in (word, key, place))
            is_kind = isinstance(kind, Named) and is_storage_type(kind.name)
            if is_text and is_kind and type(numbers) is int and numbers >= 0:
                self.storages[key] = max(numbers, self.storages.get(key, 0))
                if view is None:
                    return Storage(numbers)
                if isinstance(view, tuple) and len(view) == 3 and isinstance(view[0], str):
                    first, count = view[1:]
                    if type(first) is int and type(count) is int and min(first, count) >= 0:
                        return Storage(min(count, numbers))
        raise Refused("it holds a storage that is not described as torch.save does")

    def _size(self, value: Any) -> int:
        """Texts, numbers and names in a key or an argument."""
        if isinstance(value, tuple):
            return self._sizes.get(id(value), 1)
        if isinstance(value, str | bytes | bytearray):
            return 1 + len(value) // 64
        return 1 + value.bit_length() // 64 if isinstance(value, int) else 1

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > _MOST_WORK:
            raise Refused("it repeats its parts so often that reading it would take very long")

    def _check_keys(self, keys: Iterable[Any]) -> None:
        for key in keys:
            size = self._size(key)
            if size > _LARGEST_KEY and isinstance(key, tuple):
                raise Refused(
                    f"it holds a dict or set with a tuple of more than {_LARGEST_KEY} items, those "
                    "of nested tuples included"
                )
            self._spend(size)
            if not isinstance(key, _KEYS):
                raise Refused(
                    f"it holds a dict or set with a {type(key).__name__.lower()}: name its entries "
                    "by text"
                )

    def _tuple(self, items: Iterable[Any]) -> None:
        made = tuple(items)
        if made:
            self._sizes[id(made)] = min(1 + sum(map(self._size, made)), _ENDLESS)
            self._tuples.append(made)
        self.append(made)

    def _tuple_of(self, count: int) -> None:
        items = self.stack[-count:]
        if len(items) != count:
            raise pickle.UnpicklingError("it ends before its parts")
        del self.stack[-count:]
        self._tuple(items)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(arguments, tuple):
            raise Refused("it calls a function with something else than a tuple")
        if isinstance(function, type):
            self.stack[-1] = self._collection(function, arguments)
            return
        if not isinstance(function, Named):
            raise Refused("it calls something that is no function")
        for value in arguments:
            if isinstance(value, tuple | list):
                self._spend(len(value))
            elif isinstance(value, str | bytes):  # copied as a whole
                self._spend(len(value) // 8)
        self.stack[-1] = check_call(function.name, arguments)

    def _collection(self, kind: type, arguments: tuple) -> Any:
        """An OrderedDict, a Counter or a set."""
        items = arguments[0] if arguments else []
        is_right = isinstance(items, dict if kind is Counter and arguments else list)
        if len(arguments) > 1 or not is_right:
            raise Refused(f"it makes a {kind.__name__} as torch.save does not")
        self._spend(len(items))
        if kind is OrderedDict:
            if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in items):
                raise Refused("it makes an OrderedDict of something else than pairs")
            self._check_keys(pair[0] for pair in items)
        elif kind is set:
            self._check_keys(items)
        return kind(items)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Tensor) and is_parameter_state(state):
            return
        if type(target) is not OrderedDict or type(state) not in (dict, OrderedDict):
            raise Refused("it sets the state of something else than an OrderedDict")
        for name in state:
            # An entry of this name would stand in the place of `items` and others.
            if not isinstance(name, str) or hasattr(OrderedDict, name):
                raise Refused("it holds an OrderedDict with a method of its own")

    def _new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if isinstance(kind, Named) and kind.name == PARAMETER and isinstance(arguments, tuple):
            self.append(check_call(PARAMETER, arguments))
            return
        if not isinstance(kind, type) or arguments != ():
            raise Refused("it holds an object that is not a tensor or a plain value")
        self.append(kind())

    def _set_item(self) -> None:
        self._check_keys(self.stack[-2:-1])
        self.load_setitem()

    def _set_items(self) -> None:
        self._check_keys(self.stack[::2])
        self.load_setitems()

    # What PyTorch follows, as it is or checked; it stops at everything else.
    dispatch: ClassVar[dict[int, Any]] = {
        **dict.fromkeys(range(256), _leave),
        **{
            code[0]: pickle._Unpickler.dispatch[code[0]]
            for code in (pickle.APPEND, pickle.APPENDS, pickle.BINFLOAT, pickle.BINGET)
            + (pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINPERSID, pickle.BINPUT)
            + (pickle.BINUNICODE, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_SET)
            + (pickle.EMPTY_TUPLE, pickle.GLOBAL, pickle.LONG1, pickle.LONG_BINGET)
            + (pickle.LONG_BINPUT, pickle.MARK, pickle.NEWFALSE, pickle.NEWTRUE, pickle.NONE)
            + (pickle.PROTO, pickle.SHORT_BINSTRING, pickle.STOP)
        },
        pickle.TUPLE[0]: lambda self: self._tuple(self.pop_mark()),
        pickle.TUPLE1[0]: lambda self: self._tuple_of(1),
        pickle.TUPLE2[0]: lambda self: self._tuple_of(2),
        pickle.TUPLE3[0]: lambda self: self._tuple_of(3),
        pickle.REDUCE[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.NEWOBJ[0]: _new_object,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
    }


def _is_kind(full: str) -> bool:
    """Whether it names a dtype, or a kind of quantization."""
    module, _, name = full.rpartition(".")
    return module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.qscheme)
