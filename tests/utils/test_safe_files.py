"""Files of others are data: nothing in them runs unless somebody asks for it."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections import OrderedDict

import h5py
import numpy as np
import pytest
import torch
from tensor_kinds import tensors_of_other_kinds

from mpn_d2.utils.safe_files import (
    TRUST,
    add_trust_argument,
    read_foreign_weights,
    read_pickle,
    trusts_pickle,
)


class Evil:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.fixture(autouse=True)
def _no_trust(monkeypatch):
    monkeypatch.delenv(TRUST, raising=False)


@pytest.mark.parametrize("suffix", ["pkl", "pth", "bin"])
def test_nothing_runs_without_trust(tmp_path, suffix, monkeypatch):
    target, path = tmp_path / "executed", tmp_path / f"evil.{suffix}"
    content = {"model": {"a": torch.ones(2), "b": Evil(str(target))}}
    if suffix == "pkl":
        content["model"]["a"] = np.ones(2)
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"evil\.\w+: it holds \w+\.mkdir, which.*--trust-pickle"):
        read_foreign_weights(path)
    assert not target.exists()
    # With trust it does run: the switch is what keeps it from that.
    monkeypatch.setenv(TRUST, "1")
    with pytest.raises(ValueError, match="its 'b' is a NoneType"):
        read_foreign_weights(path)
    assert target.is_dir()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_plain_pickles(protocol):
    content = {
        "blobs": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.float64(2.5)},
        "cfg": ["text", ("a", 1), 2.0, None, True],
    }
    found = read_pickle(pickle.dumps(content, protocol=protocol))
    assert found["cfg"] == content["cfg"] and found["blobs"]["n"] == 2.5
    np.testing.assert_array_equal(found["blobs"]["w"], content["blobs"]["w"])


def test_argument_trusts(monkeypatch):
    parser = argparse.ArgumentParser()
    add_trust_argument(parser)
    monkeypatch.setenv(TRUST, "0")
    parser.parse_args([])
    assert not trusts_pickle()
    parser.parse_args(["--trust-pickle"])
    assert trusts_pickle()


def test_hdf5_and_wrappers(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["module.x"] = np.ones((2, 3), dtype="f4")
        file["module.n"] = np.int64(4)
        file["text"] = "not a tensor"
        file["elsewhere"] = h5py.ExternalLink("other.h5", "/x")
    found = read_foreign_weights(tmp_path / "a.h5")
    assert found.keys() == {"x", "n"} and found["n"] == 4 and found["x"].shape == (2, 3)
    (tmp_path / "a.h5").rename(tmp_path / "B.H5")
    assert read_foreign_weights(tmp_path / "B.H5").keys() == found.keys()
    wrapped = {"epoch": 3, "state_dict": {"module.x": torch.ones(1)}}
    torch.save(wrapped, tmp_path / "a.pth")
    assert read_foreign_weights(tmp_path / "a.pth") == {"x": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it holds a dict instead of named tensors"),
        ([1], "it holds a list instead of named tensors"),
        ({"a": 1}, "its 'a' is a int"),
        ({1: torch.ones(1)}, "its 1 is a Tensor"),
        (
            {"module.a": torch.ones(1), "b": torch.ones(1)},
            "1 of its 2 names begin with 'module.': all or none",
        ),
    ],
)
def test_other_content_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth: {message}"):
        read_foreign_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["storage", "virtual"])
def test_hdf5_files_read_no_other_file(tmp_path, kind):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"secret words, 16")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones(2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if kind == "storage":
            file.create_dataset("w", (16,), "u1", external=[(str(secret), 0, 16)])
        else:
            layout = h5py.VirtualLayout((2,), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", shape=(2,))
            file.create_virtual_dataset("w", layout)
    with pytest.raises(ValueError, match=rf"a\.h5: its 'w' is a .*{kind}?.*: write all into one"):
        read_foreign_weights(tmp_path / "a.h5")


NOTHING_STORED = {
    "never written": {},
    "chunks never written": {"chunks": (1 << 20,)},
    "packed, never written": {"chunks": (1 << 20,), "compression": "gzip"},
}


@pytest.mark.parametrize("options", NOTHING_STORED.values(), ids=NOTHING_STORED)
def test_hdf5_files_take_no_more_memory_than_they_store(tmp_path, options):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", (1 << 24,), "f4", **options)
    with pytest.raises(ValueError, match=r"a\.h5: its 'w' .* needs 67108864 bytes .* holds 0 for"):
        read_foreign_weights(tmp_path / "a.h5")


def test_hdf5_data_sets_share_no_place_in_the_file(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.ones(10_000))
        file.create_dataset("b", data=np.ones(10_000))
        first, second = (file[name].id.get_offset() for name in "ab")
    content = path.read_bytes()
    # Both in the place of the first, and the file cut down to it.
    assert content.count(second.to_bytes(8, "little")) == 1
    content = content.replace(second.to_bytes(8, "little"), first.to_bytes(8, "little"))
    end = content.index(len(content).to_bytes(8, "little"))
    content = content[:end] + second.to_bytes(8, "little") + content[end + 8 :]
    path.write_bytes(content[:second])
    with pytest.raises(ValueError, match="its 'b' of the shape .* needs 80000 bytes"):
        read_foreign_weights(path)


def test_hdf5_files_as_others_write_them(tmp_path):
    arrays = {
        "zeros": np.zeros((1000, 1000), "f4"),
        "none": np.zeros((0, 3)),
        "one": np.float64(3),
        "odd": np.arange(35.0).reshape(5, 7),
        "grows": np.arange(3),
    }
    options = {
        "zeros": {"compression": "gzip", "compression_opts": 9, "chunks": (1000, 1000)},
        "odd": {"chunks": (3, 3), "shuffle": True, "compression": "lzf"},
        "grows": {"chunks": (1000,), "maxshape": (None,)},
    }
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, **options.get(name, {}))
    found = read_foreign_weights(tmp_path / "a.h5")
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), values)


def nested(depth: int) -> tuple:
    """Few bytes in a pickle, 2^depth steps to hash or to print."""
    return (1,) if depth == 0 else (inner := nested(depth - 1), inner)


class Written:
    """What a pickle says, word for word: a callable, its arguments."""

    def __init__(self, *words: object):
        self.words = words

    def __reduce__(self) -> tuple:
        return self.words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}K\x01\x85q\x00" + b"h\x00\x86q\x00" * 20 + b"K\x01s.", "tuple as a key"),
        (b"\x80\x02(K\x01\x85q\x00" + b"h\x00\x86q\x00" * 20 + b"K\x01d.", "tuple as a key"),
        (b"\x80\x02}(K\x01\x85q\x00" + b"h\x00\x86q\x00" * 20 + b"K\x01u.", "tuple as a key"),
        (b"\x80\x02](K\x00K\x01u.", "sets entries of a list"),
        (pickle.dumps({nested(3)}, 4), "a set or an object"),
        (pickle.dumps(frozenset({nested(3)}), 4), "a set or an object"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "a set or an object"),
        (b"(icollections\nOrderedDict\n.", "a set or an object"),
        (Written(OrderedDict, ([(nested(3), 1)],)), "tuple as a key"),
        (Written(np.dtype, (nested(3),)), "something else than numbers: a tuple"),
        (Written(np.dtype, ("f4",), (3, nested(3))), "something else than numbers: a tuple"),
    ],
)
def test_pickles_that_take_long(content, message):
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    with pytest.raises(ValueError, match=message):
        read_pickle(data)


def test_keys_of_pickles():
    content = OrderedDict([("a", 1), (2, {"b": {3.5: (1, (2, [3]))}}), (np.int64(4), None)])
    for protocol in range(6):
        assert read_pickle(pickle.dumps(content, protocol=protocol)) == content


OTHER_KINDS = tensors_of_other_kinds(2, 3) | {"expanded": torch.zeros(1).expand(2, 3)}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_tensors_of_other_kinds_are_refused(tmp_path, kind):
    torch.save({"w": OTHER_KINDS[kind]}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth: its 'w' is a .* another kind \({kind}\)"):
        read_foreign_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_of_diverged_networks_are_refused(tmp_path, kind, number):
    torch.save({"w": torch.tensor([1.0, float(number)], dtype=kind)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: its 'w' has numbers that are NaN or infinite"):
        read_foreign_weights(tmp_path / "a.pth")
    torch.save({"w": torch.ones(3, 2, dtype=kind).T}, tmp_path / "a.pth")
    assert read_foreign_weights(tmp_path / "a.pth")["w"].dtype == kind


@pytest.mark.parametrize("value", [np.array([1j]), np.array([1.0, np.nan])])
def test_arrays_of_other_numbers_are_refused(tmp_path, value):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": value}))
    with pytest.raises(ValueError, match=r"a\.pkl: its 'w' (is a tensor of an|has numbers)"):
        read_foreign_weights(tmp_path / "a.pkl")


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    safetensors.save_file({"w": torch.ones(2)}, path)
    assert (read_foreign_weights(path)["w"] == 1).all()
    for content in (b"", path.read_bytes()[:-3], b"no file of any kind", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors: it is no safetensors file, or a br"):
            read_foreign_weights(path)


def test_archives_of_keras_3_are_told_how_to_go_on(tmp_path):
    (tmp_path / "prn.keras").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"prn\.keras: archives of Keras 3 .*save_weights\('prn"):
        read_foreign_weights(tmp_path / "prn.keras")


def test_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "a.h5").touch()
    with pytest.raises(ValueError, match=r"a\.h5 needs h5py: make setup, or pip install h5py"):
        read_foreign_weights(tmp_path / "a.h5")


def test_cut_files_of_old_pytorch_are_errors(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(3, 4)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"old\.pth"):
            read_foreign_weights(path)
    # A storage of another name than the tensor's.
    where = whole.rindex(re.search(rb"\d{8,}", whole)[0])
    path.write_bytes(whole[:where] + b"0" + whole[where + 1 :])
    with pytest.raises(ValueError, match=r"old\.pth"):
        read_foreign_weights(path)
