"""Torch files that would take PyTorch long, or much memory, are refused before it reads them."""

from __future__ import annotations

import io
import os
import pickle
import time
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpn_d2.utils.safe_files import READ_ERRORS, read_foreign_weights, read_torch

EMPTY, MEMO, GET, PAIR, CALL, SET = b"\x80\x02}", b"q\x01", b"h\x01", b"\x86", b"R", b"s."


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little")


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


# ((((), ()), ((), ())), ...), 2^60 tuples.
DEEP = b")" + (MEMO + GET + PAIR) * 60
ENTRY = EMPTY + text("a")
HOOKS = named("collections", "OrderedDict") + b")R"


def storage(count: int, key: bytes = text("0"), kind: str = "FloatStorage") -> bytes:
    return (
        b"(" + text("storage") + named("torch", kind) + key + text("cpu") + number(count) + VIEW
    )  # fmt: skip


# The place of the view in old files; None there, absent in new ones.
VIEW = b"NtQ"


def tensor(numbers: bytes, size: bytes, stride: bytes) -> bytes:
    function = named("torch._utils", "_rebuild_tensor_v2")
    return function + b"(" + numbers + b"K\x00" + size + stride + b"\x89" + HOOKS + b"tR"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def expanded(count: int) -> bytes:
    """A tensor of so many numbers, all of them one."""
    return tensor(storage(1), number(count) + b"\x85", b"K\x00\x85")


def nested_dicts(count: int) -> bytes:
    """One that holds another one twice, and so on; on top of the others in a list."""
    return b"](}q\x01" + b"}(K\x00h\x01K\x01h\x01uq\x01" * count + b"e"


ONE = b"K\x01"
NO_TENSOR = "FloatTensor, which is not a tensor or a plain value"
OTHER = "with other arguments than torch.save does"
# Content of data.pkl, what is said.
LONG = {
    "key": (EMPTY + DEEP + ONE + SET, "tuple of more than 10000 items"),
    "keys": (EMPTY + b"(" + DEEP + b"K\x01u.", "tuple of more than 10000 items"),
    "ordered": (
        ENTRY + call("collections", "OrderedDict", b"](" + DEEP + b"K\x01\x86e") + SET,
        "tuple of more than 10000 items",
    ),
    "set": (ENTRY + call("__builtin__", "set", b"](" + DEEP + b"e") + SET, "tuple of more than"),
    "counter": (ENTRY + call("collections", "Counter", b"](" + DEEP + b"e") + SET, "a Counter as"),
    "argument": (ENTRY + call("torch.serialization", "_get_layout", DEEP) + SET, OTHER),
    "storage": (ENTRY + DEEP + b"K\x01\x86Q" + SET, "storage that is not described as"),
    "view": (ENTRY + storage(4)[:-3] + DEEP + b"tQ" + SET, "storage that is not described as"),
    "tensor": (ENTRY + call("torch", "FloatTensor", number(60000) * 2) + SET, NO_TENSOR),
    "typed": (
        ENTRY + call(
            "torch._tensor", "_rebuild_from_type_v2", named("torch", "Size"),
            named("torch", "Tensor"), number(60000) * 2 + PAIR, b"N",
        ) + SET, OTHER,
    ),
    "object": (ENTRY + named("torch", "FloatTensor") + number(60000) + b"\x85\x81s.", NO_TENSOR),
    "bytes": (ENTRY + call("__builtin__", "bytearray", number(2**31 - 1)) + SET, OTHER),
    "bytes of a tensor": (ENTRY + call("__builtin__", "bytearray", expanded(1)) + SET, OTHER),
    "codec": (ENTRY + call("_codecs", "encode", text("a"), text("hex")) + SET, OTHER),
    "size": (ENTRY + call("torch", "Size", expanded(2**28)) + SET, OTHER),
    "function": (ENTRY + DEEP + b")R" + SET, "calls something that is no function"),
    "class": (ENTRY + DEEP + b")\x81" + SET, "an object that is not a tensor"),
    "state": (ENTRY + HOOKS + b"](" + DEEP + b"K\x01\x86eb" + SET, "the state of something else"),
    "method": (
        ENTRY + HOOKS + b"}" + text("items") + named("__builtin__", "set") + b"sb" + SET,
        "a method of its own",
    ),
    "parameter": (
        ENTRY + call(
            "torch._utils", "_rebuild_parameter_with_state", expanded(1), b"\x89", HOOKS,
            nested_dicts(60),
        ) + SET, OTHER,
    ),
    "quantization": (
        ENTRY + call(
            "torch._utils", "_rebuild_qtensor", storage(1), b"K\x00K\x01\x85K\x01\x85",
            nested_dicts(60) + b"\x85", b"\x89", HOOKS,
        ) + SET, OTHER,
    ),
    "sparse": (
        ENTRY + call(
            "torch._utils", "_rebuild_sparse_tensor",
            call("torch.serialization", "_get_layout", text("torch.sparse_coo")),
            b"(" + expanded(2**30) * 2 + b"K\x05\x85\x89t",
        ) + SET, OTHER,
    ),
    "tensor as a key": (EMPTY + expanded(4) + ONE + SET, "a dict or set with a tensor"),
    "distributed": (
        ENTRY + named("torch.distributed.tensor._dtensor_spec", "TensorMeta") + b")\x81" + SET,
        "TensorMeta, which is not a tensor",
    ),
    "larger storage": (
        ENTRY + tensor(storage(4), number(10**9) + b"\x85", b"K\x01\x85") + SET,
        "tensors of more numbers than are in the file",
    ),
    "storage of nothing": (ENTRY + storage(10**9) + SET, "more numbers than are in the file"),
    "number as a storage's key": (ENTRY + storage(4, b"K\x07") + SET, "not described as"),
    "zero in a storage's key": (ENTRY + storage(4, text("0\0a")) + SET, "not described as"),
    "many sets": (
        ENTRY + b"]q\x02(" + ONE * 9999 + b"e" + b"](" + call("__builtin__", "set", b"h\x02") * 999
        + b"e" + SET, "reading it would take very long",
    ),
    "bytes of a length": (b"\x80\x05\x96" + (6 * 10**9).to_bytes(8, "little") + b".", "no torch"),
}  # fmt: skip


def write_archive(path: Path, pickled: bytes) -> Path:
    """A torch file with another data.pkl."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2, 2)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return path


def write_legacy(path: Path, pickled: bytes, *, keys: object = ("0",)) -> Path:
    """The same as PyTorch wrote it before 1.6."""
    torch.save({}, path, _use_new_zipfile_serialization=False)
    whole, empty = path.read_bytes(), pickle.dumps({}, 2)
    assert whole.count(empty) == 1
    path.write_bytes(whole[: whole.index(empty)] + pickled + pickle.dumps(list(keys), 2))
    return path


@pytest.mark.parametrize("write", [write_archive, write_legacy])
@pytest.mark.parametrize("kind", LONG)
def test_what_takes_long_or_much_memory_is_refused(tmp_path, kind, write):
    pickled, message = LONG[kind]
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"a\.pth: it .*{message}"):
        read_foreign_weights(write(tmp_path / "a.pth", pickled))
    assert time.monotonic() - start < 60  # else 2^60 steps


def test_heads_of_old_files(tmp_path):
    path = tmp_path / "a.pth"
    whole = write_legacy(path, EMPTY + b".").read_bytes()
    version, deep = pickle.dumps(1001, 2), b"\x80\x02" + DEEP + b"."
    end = pickle.dumps(["0"], 2)
    assert whole.count(version) == whole.count(end) == 1
    for old, new in ((version, deep), (end, b"\x80\x02]" + DEEP + b"a."), (end, deep)):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(
            ValueError, match=r"a\.pth: it (is no torch file|holds tensors of more)"
        ):
            read_foreign_weights(path)
    # Numbers that nobody would read.
    write_legacy(path, ENTRY + storage(4) + SET, keys=["1"])
    with pytest.raises(ValueError, match=r"a\.pth: it holds tensors of more numbers than are in"):
        read_foreign_weights(path)


def test_packed_archives_are_refused(tmp_path):
    path = write_archive(tmp_path / "a.pth", EMPTY + b"(" + b"}" * 3_000_000 + b"t.")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(
        ValueError, match=r"b\.pth: it is a packed archive: write it again with tor"
    ):
        read_foreign_weights(tmp_path / "b.pth")


def test_names_of_files_that_are_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/a\xff.pth"
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    os.rename(tmp_path / "a.pth", path)
    assert (read_torch(os.fsdecode(path))["a"] == 1).all()


@pytest.mark.parametrize("legacy", [False, True])
def test_what_trainings_save_is_read(tmp_path, legacy):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[0].weight.note = "a parameter with an attribute"
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    content = {
        "model": net.state_dict(),
        "module": OrderedDict(net.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5]).state_dict(),
        "half": torch.arange(4.0).half()[1:].bfloat16(),
        "view": torch.arange(6.0).reshape(2, 3).T,
        "places": {(("a", 1), 2): torch.Size([2, 3]), 3: {1, (2, 3)}, None: Counter("aab")},
        "devices": {torch.device("cpu"): torch.float32, torch.Size([1]): ()},
        "long": [b"x" * 6_000_000, "y" * 6_000_000],
        "kinds": [torch.float16, torch.device("cpu"), b"bytes", bytearray(b"x"), 2j, 1e-300],
    }
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_torch(path)
    assert list(found) == list(content)
    for name in ("scheduler", "places", "devices", "long", "kinds"):
        assert found[name] == content[name]
    for name, value in content["model"].items():
        assert torch.equal(found["model"][name], value)
    assert torch.equal(found["view"], content["view"])
    assert found["module"]["0.weight"].note == net[0].weight.note


@pytest.mark.parametrize("new", [b"R", b"\x81"])
def test_parameters_of_pytorch_before_0_4(tmp_path, new):
    """As in torchvision's first networks: a call or an object, then a state."""
    path = tmp_path / "a.pth"
    torch.save({}, path, _use_new_zipfile_serialization=False)
    whole, empty = path.read_bytes(), pickle.dumps({}, 2)
    function = named("torch._utils", "_rebuild_tensor")
    old = function + b"(" + storage(2) + b"K\x00K\x02\x85K\x01\x85tR"
    parameter = named("torch.nn.parameter", "Parameter") + old + b"\x85" + new
    content = ENTRY + parameter + b"(\x88\x89" + HOOKS + b"tb" + SET
    numbers = (2).to_bytes(8, "little") + np.array([1.5, -2], np.float32).tobytes()
    head = whole[: whole.index(empty)]
    path.write_bytes(head + content + pickle.dumps(["0"], 2) + numbers)
    found = read_foreign_weights(path)["a"]
    assert isinstance(found, nn.Parameter) and found.tolist() == [1.5, -2.0]
    # A state that PyTorch would take as the place and size of its numbers.
    broken = content.replace(b"(\x88\x89" + HOOKS + b"tb", b"(" + ONE * 4 + b"tb")
    path.write_bytes(head + broken + pickle.dumps(["0"], 2) + numbers)
    with pytest.raises(ValueError, match=r"a\.pth: it sets the state of something else"):
        read_foreign_weights(path)


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [defaultdict(list, a=[1]), Path("a"), np.float64(2), np.ones(2), Point(1, 2), Namespace(a=1)],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("legacy", [False, True])
def test_other_objects_are_named(tmp_path, value, legacy):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(2), "b": value}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"it holds [\w.]+, which is not a tensor or a"):
        read_torch(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02h\x05.", b"ab\nc", b"\x80\x02X\xff" * 9]
)
def test_broken_files_are_errors(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(READ_ERRORS):
        read_torch(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: \w+"):
        read_foreign_weights(tmp_path / "a.pth")
