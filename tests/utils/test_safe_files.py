"""Files of others are data: nothing in them runs unless somebody asks for it."""

from __future__ import annotations

import argparse
import os
import pickle
import re

import h5py
import numpy as np
import pytest
import torch

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
