"""Torch files that would take PyTorch long, or much memory, are refused before it reads them."""

from __future__ import annotations

import io
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
STORAGE = text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu")
# Content of data.pkl, what is said.
LONG = {
    "key": (EMPTY + DEEP + b"K\x01" + SET, "nested tuple"),
    "keys": (EMPTY + b"(" + DEEP + b"K\x01u.", "nested tuple"),
    "ordered": (
        EMPTY + text("a") + named("collections", "OrderedDict") + b"](" + DEEP + b"K\x01"
        b"\x86e\x85" + CALL + SET,
        "nested tuple",
    ),
    "set": (
        EMPTY + text("a") + named("__builtin__", "set") + b"](" + DEEP + b"e\x85" + CALL + SET,
        "nested tuple",
    ),
    "counter": (
        EMPTY + text("a") + named("collections", "Counter") + b"](" + DEEP + b"e\x85" + CALL + SET,
        "nested tuple",
    ),
    "argument": (
        EMPTY + text("a") + named("torch.serialization", "_get_layout") + DEEP + b"\x85R" + SET,
        "more than 10000 items",
    ),
    "storage": (EMPTY + text("a") + DEEP + b"K\x01\x86Q" + SET, "described by text and numbers"),
    "view": (
        EMPTY + text("a") + b"(" + STORAGE + b"K\x04" + DEEP + b"tQ" + SET,
        "more than 10000 items",
    ),
    "tensor": (
        EMPTY + text("a") + named("torch", "FloatTensor") + number(60000) * 2 + PAIR + CALL + SET,
        "makes a torch.FloatTensor of a size",
    ),
    "bytes": (
        EMPTY + text("a") + named("__builtin__", "bytearray") + number(2**31 - 1) + b"\x85R" + SET,
        "makes a builtins.bytearray of a size",
    ),
    "typed": (
        EMPTY + text("a") + named("torch._tensor", "_rebuild_from_type_v2") + b"("
        + named("torch", "FloatTensor") + named("torch", "FloatTensor")
        + number(60000) * 2 + PAIR + b"NtR" + SET,
        "in a way that torch.save does not write",
    ),
    "object": (
        EMPTY + text("a") + named("torch", "FloatTensor") + number(60000) * 2 + PAIR + b"\x81s.",
        "makes a torch.FloatTensor of a size",
    ),
}  # fmt: skip


def write_archive(path: Path, pickled: bytes) -> Path:
    """A torch file with another data.pkl."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2, 2)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return path


def write_legacy(path: Path, pickled: bytes, *, keys: object = ()) -> Path:
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


@pytest.mark.parametrize("keys", [(), ("0",)])
def test_old_files_have_the_numbers_of_their_storages(tmp_path, keys):
    """PyTorch sets aside what they ask for first: 4 GB here."""
    size = number(10**9)
    tensor = named("torch._utils", "_rebuild_tensor_v2") + b"((" + STORAGE + size + b"NtQK\x00"
    tensor += size + b"\x85K\x01\x85\x89" + named("collections", "OrderedDict") + b")RtR"
    path = write_legacy(tmp_path / "a.pth", EMPTY + text("a") + tensor + SET, keys=keys)
    with pytest.raises(ValueError, match=r"a\.pth: it holds tensors of more numbers than are in"):
        read_foreign_weights(path)


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
        "places": {("a", 1): torch.Size([2, 3]), 3: {1, 2}, None: Counter("aab")},
        "kinds": [torch.float16, torch.device("cpu"), b"bytes", bytearray(b"x"), 2j, 1e-300],
    }
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_torch(path)
    assert list(found) == list(content)
    for name in ("scheduler", "places", "kinds"):
        assert found[name] == content[name]
    for name, value in content["model"].items():
        assert torch.equal(found["model"][name], value)
    assert torch.equal(found["view"], content["view"])
    assert found["module"]["0.weight"].note == net[0].weight.note


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
