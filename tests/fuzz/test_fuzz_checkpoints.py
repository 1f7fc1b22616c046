"""Checkpoints: broken bytes, wrong shapes, pickles that want to act, HDF5 files with links."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, answer
from torch import nn

from mpn_d2.engine.checkpoint import PoseCheckpointer, read_progress, read_settings
from mpn_d2.utils.safe_files import read_foreign_weights

SECRET = 77.25  # stands in a file that no other may lead to
STATE = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.zeros(2)}


def as_zip(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def as_hdf5(content: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, tensor in content.items():
            file[name] = tensor.numpy()
    return buffer.getvalue()


NUMPY = {name: tensor.numpy() for name, tensor in STATE.items()}
GOOD = {
    ".pth": as_zip({"model": STATE, "iteration": 5}),
    "-legacy.pth": as_zip({"model": STATE}, _use_new_zipfile_serialization=False),
    ".pkl": pickle.dumps({"model": NUMPY, "__author__": "x"}),
    ".h5": as_hdf5(STATE),
}


class Acting:
    """Writes a file where it is unpickled by somebody who trusts it."""

    def __init__(self, marker: Path, call: object) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> tuple:
        if self.call is os.system:
            return os.system, (f"touch '{self.marker}'",)
        return self.call, (f"open({str(self.marker)!r}, 'w')",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed checkpoints")


def use(file: Path) -> None:
    """All that reads a checkpoint; the model is as before, or all of it is loaded."""
    if file.suffix != ".h5":
        model = nn.Sequential(nn.Linear(3, 2))
        before = {name: x.clone() for name, x in model.state_dict().items()}
        try:
            PoseCheckpointer(model, str(file.parent)).load(str(file))
        except ValueError:
            assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items()), "half"
            raise
        if file.name == "weights.pth":  # our own; older formats come from others alone
            read_settings(str(file))
            read_progress(str(file))
    for tensor in read_foreign_weights(file).values():
        assert isinstance(tensor, torch.Tensor)
        assert not (tensor == SECRET).any(), "a file read another one"


def check(folder: Path, content: bytes, extension: str) -> str:
    file = folder / f"weights{extension}"
    file.write_bytes(content)
    try:
        return answer("checkpoints", lambda: use(file), str(file), "0.weight", "0.bias")
    finally:
        file.unlink()


@pytest.mark.parametrize("extension", GOOD)
def test_the_files_themselves_are_good(folder, extension):
    assert check(folder, GOOD[extension], extension) == "result"


@FUZZ
@given(
    extension=st.sampled_from(list(GOOD)),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
)
def test_broken_files(folder, extension, keep, flips):
    content = bytearray(GOOD[extension])
    for place, value in flips:
        content[int(place * len(content))] = value
    check(folder, bytes(content[: int(keep * len(content))]), extension)


VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=5),
    st.sampled_from([torch.zeros(0), torch.zeros(5, 7), torch.tensor(float("nan")), [], {}, True]),
    st.sampled_from([torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.bool)]),
)


@FUZZ
@given(
    extension=st.sampled_from([".pth", "-legacy.pth", ".pkl"]),
    changes=st.dictionaries(st.sampled_from(["0.weight", "0.bias", "other", ""]), VALUES),
    outside=st.dictionaries(st.sampled_from(["model", "iteration", "optimizer"]), VALUES),
)
def test_other_content(folder, extension, changes, outside):
    content = {"model": {**STATE, **changes}, **outside}
    if extension == ".pkl":
        packed = pickle.dumps(to_numpy(content))
    else:
        packed = as_zip(content, _use_new_zipfile_serialization=extension == ".pth")
    check(folder, packed, extension)


def to_numpy(content: object) -> object:
    if isinstance(content, dict):
        return {key: to_numpy(value) for key, value in content.items()}
    return content.numpy() if isinstance(content, torch.Tensor) else content


@FUZZ
@given(
    extension=st.sampled_from([".pth", "-legacy.pth", ".pkl"]),
    call=st.sampled_from([os.system, eval, exec]),
    place=st.sampled_from(["alone", "model", "weight", "beside", "list"]),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_pickles_that_act(folder, extension, call, place, protocol):
    marker = folder / "acted"
    acting = Acting(marker, call)
    content = {
        "alone": acting,
        "model": {"model": acting},
        "weight": {"model": {**NUMPY, "0.bias": acting}},
        "beside": {"model": NUMPY, "iteration": acting},
        "list": [acting, NUMPY],
    }[place]
    if extension == ".pkl":
        packed = pickle.dumps(content, protocol=protocol)
    else:
        packed = as_zip(content, _use_new_zipfile_serialization=extension == ".pth")
    assert check(folder, packed, extension) == "refused"
    assert not marker.exists(), "the pickle acted"


@FUZZ
@given(
    link=st.sampled_from(["soft", "external", "loop", "group", "text", "empty", "attribute"]),
    name=st.sampled_from(["0.bias", "module.0.bias", "a/b/c", "\u00e4"]),
)
def test_hdf5_files_with_links(folder, link, name):
    buffer = io.BytesIO()
    secret = folder / "secret.h5"
    if not secret.exists():
        with h5py.File(secret, "w") as file:
            file["x"] = np.full(2, SECRET)
    with h5py.File(buffer, "w") as file:
        file["0.weight"] = NUMPY["0.weight"]
        if link == "soft":
            file[name] = h5py.SoftLink("/nowhere")
        elif link == "external":
            file[name] = h5py.ExternalLink(str(secret), "x")
        elif link == "loop":
            file[name] = h5py.SoftLink("/")
        elif link == "group":
            file.create_group(name)
        elif link == "text":
            file[name] = "text"
        elif link == "empty":
            file[name] = h5py.Empty("f")
        else:
            file.attrs[name] = np.zeros(3)
    check(folder, buffer.getvalue(), ".h5")
