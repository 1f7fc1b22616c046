"""Checkpoints: broken bytes, wrong shapes, pickles that want to act, HDF5 files with links."""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision
from detectron2 import model_zoo
from detectron2.engine import TrainerBase
from detectron2.modeling import build_model
from hypothesis import given
from hypothesis import strategies as st
from mutations import FUZZ, MUTATIONS, answer, mutated
from torch import nn

from mpn_d2.convert import SOURCES, convert
from mpn_d2.convert.prn import ENTRIES
from mpn_d2.engine.checkpoint import PoseCheckpointer, read_progress, read_settings
from mpn_d2.utils.safe_files import read_foreign_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))

import foreign_networks  # noqa: E402

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


def small(of: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors of few numbers: converters ask for the widths of a few alone."""
    return {name: torch.zeros([min(n, 4) for n in shape]) for name, shape in of.items()}


def resnet(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    return small({n: tuple(x.shape) for n, x in state.items()})


def zoo(name: str) -> dict[str, torch.Tensor]:
    """Names of Detectron2's model zoo; heads with the channels of theirs."""
    config = model_zoo.get_config(name)
    config.MODEL.DEVICE, config.MODEL.WEIGHTS = "meta", ""
    with torch.device("meta"):
        state = build_model(config).state_dict()
    heads = ("cls_score", "bbox_pred", "score_lowres", "objectness_logits", "anchor_deltas")
    return {
        n: torch.zeros([x.shape[0] if any(h in n for h in heads) else 4, *(4,) * (x.ndim - 1)])
        for n, x in state.items()
        if not n.startswith("anchor_generator")
    }


@functools.cache
def sources() -> dict[str, dict[str, torch.Tensor]]:
    """A state that each converter takes."""
    prn = {"dens1.weight": (2, ENTRIES), "bneck.weight": (2, 2), "dens2.weight": (ENTRIES, 2)}
    prn |= {"dens1.bias": (2,), "bneck.bias": (2,), "dens2.bias": (ENTRIES,)}
    prn = {name: torch.zeros(shape) for name, shape in prn.items()}
    keras = {name.replace(".", "/"): x.T if x.ndim > 1 else x for name, x in prn.items()}
    whole = {}
    for name, x in small(foreign_networks.shapes(nodes=2)).items():
        whole[name] = prn.get(name.removeprefix("prn."), x)
        if name.startswith(("classificationModel.output", "regressionModel.output")):
            whole[name] = torch.zeros([36 if "regr" in name else 9, *x.shape[1:]])
    keypoints = zoo("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml")
    return {
        "prn_pytorch": prn,
        "prn_keras": keras,
        "prn_keras_separate": keras,
        "multiposenet_pytorch": whole,
        "torchvision_resnet": resnet("resnet50"),
        "timm_resnet": resnet("resnet18"),
        "detectron2_retinanet": zoo("COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
        "detectron2_keypoint_rcnn": keypoints,
        "detectron2_rcnn": keypoints,
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
    # Of the right shapes, and of kinds that no weights are.
    st.sampled_from([torch.zeros(2, device="meta"), torch.zeros(2).to_sparse()]),
    st.sampled_from([torch.zeros(2, 3).to_sparse(), torch.tensor([1.0, float("inf")])]),
    st.sampled_from([torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(1).expand(2, 3)]),
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
    if not isinstance(content, torch.Tensor):
        return content
    return content.numpy() if content.device.type == "cpu" and not content.is_sparse else "meta"


class Training(TrainerBase):
    """What a training resumes: its iteration, and the optimizer of its loop."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def state_dict(self) -> dict:
        return {"iteration": 5, "_trainer": {"optimizer": self.optimizer.state_dict()}}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["_trainer"]["optimizer"])


def resume(file: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    training = Training(model)
    PoseCheckpointer(model, str(file.parent), trainer=training).load(str(file))
    assert training.iter + 1 > 0
    read_progress(str(file))


TRAINER = Training(nn.Sequential(nn.Linear(3, 2))).state_dict()


def test_a_training_is_resumed(folder):
    file = folder / "whole.pth"
    torch.save({"model": STATE, "trainer": TRAINER, "iteration": 5}, file)
    assert answer("trainings", lambda: resume(file)) == "result"


@FUZZ
@given(changes=MUTATIONS, place=st.sampled_from(["trainer", "optimizer"]))
def test_trainings_that_cannot_be_resumed(folder, changes, place):
    """The state of a trainer, as --resume reads it."""
    file = folder / "resumed.pth"
    content = mutated({"iteration": 5, "trainer": TRAINER}, changes)
    if place == "optimizer":
        inner = mutated(TRAINER["_trainer"], changes)
        content = {"iteration": 5, "trainer": {**TRAINER, "_trainer": inner}}
    torch.save({**content, "model": STATE}, file)
    answer("trainings", lambda: resume(file), str(file))


def convert_whole(source: str, state: dict[str, torch.Tensor]) -> None:
    """Converts, and fits to a network of the unbroken shapes where the source asks for one."""
    done = convert(source, state)
    assert all(x.is_contiguous() for x in done.weights.values())
    if SOURCES[source].fit:
        SOURCES[source].fit(done.weights, sources()[source])


@pytest.mark.parametrize("source", SOURCES)
def test_the_states_themselves_are_good(source):
    state = sources()[source]
    assert answer("converters", lambda: convert_whole(source, state)) == "result"


@FUZZ
@given(
    source=st.sampled_from(list(SOURCES)),
    changes=st.lists(
        st.tuples(
            # One of those that decide something, or any.
            st.one_of(
                st.sampled_from(
                    ["conv2.weight", "dens", "output", "num_batches", "cls_score", "bbox_pred"]
                ),
                st.just(""),
            ),
            st.integers(0, 10**4),
            st.lists(st.one_of(st.integers(0, 9), st.sampled_from([17, 36, 37])), max_size=4),
            st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool]),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_weights_of_other_shapes(source, changes):
    state = dict(sources()[source])
    changed = []
    for part, place, shape, kind in changes:
        names = [name for name in state if part in name] or list(state)
        changed.append(names[place % len(names)])
        state[changed[-1]] = torch.zeros(shape, dtype=kind)
    # The tool puts the name of the file before it.
    answer("converters", lambda: convert_whole(source, state), *changed, source, "dense layers")


# Where in the content of a file something stands: lists, tuples and dicts by turns.
WRAPS = st.lists(st.one_of(st.sampled_from([list, tuple]), st.text(max_size=4)), max_size=6)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
KINDS = st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"])


def wrapped(content: object, wraps: list) -> object:
    for wrap in wraps:
        content = {wrap: content} if isinstance(wrap, str) else wrap([content])
    return content


@FUZZ
@given(
    extension=st.sampled_from([".pth", "-legacy.pth", ".pkl"]),
    call=st.sampled_from([os.system, eval, exec]),
    place=st.sampled_from(["alone", "model", "weight", "beside", "list"]),
    wraps=WRAPS,
    shape=SHAPES,
    kind=KINDS,
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_pickles_that_act(folder, extension, call, place, wraps, shape, kind, protocol):
    marker = folder / "acted"
    acting = wrapped(Acting(marker, call), wraps)
    weights = {**NUMPY, "other": np.zeros(shape, kind)}
    if extension != ".pkl":
        weights = {name: torch.from_numpy(x) for name, x in weights.items()}
    content = {
        "alone": acting,
        "model": {"model": acting},
        "weight": {"model": {**weights, "0.bias": acting}},
        "beside": {"model": weights, "iteration": acting},
        "list": [acting, weights],
    }[place]
    if extension == ".pkl":
        packed = pickle.dumps(content, protocol=protocol)
    else:
        packed = as_zip(content, _use_new_zipfile_serialization=extension == ".pth")
    assert check(folder, packed, extension) == "refused"
    assert not marker.exists(), "the pickle acted"


@FUZZ
@given(
    link=st.sampled_from(
        ["soft", "external", "loop", "group", "text", "empty", "attribute", "storage", "virtual"]
    ),
    name=st.one_of(
        st.sampled_from(["0.bias", "module.0.bias", "a/b/c", "\u00e4"]),
        st.lists(st.text("ab_\u00e4", min_size=1, max_size=5), min_size=1, max_size=4).map(
            "/".join
        ),
    ),
    shape=SHAPES,
    kind=KINDS,
    packed=st.booleans(),
)
def test_hdf5_files_with_links(folder, link, name, shape, kind, packed):
    secret = folder / "secret.h5"
    if not secret.exists():
        # Read as what they are, too: storage elsewhere is bytes of any file.
        np.full(2, SECRET).tofile(folder / "secret.bin")
        with h5py.File(secret, "w") as file:
            file["x"] = np.full(2, SECRET)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["0.weight"] = NUMPY["0.weight"]
        options = {"compression": "gzip"} if packed and shape and 0 not in shape else {}
        file.create_dataset("zz/other", data=np.zeros(shape, kind), **options)
        add_link(file, link, name, secret)
    ended = check(folder, buffer.getvalue(), ".h5")
    assert link not in ("storage", "virtual") or ended == "refused"


def add_link(file: h5py.File, link: str, name: str, secret: Path) -> None:
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
    elif link == "storage":
        where = [(str(secret.with_suffix(".bin")), 0, 16)]
        file.create_dataset(name, (2,), "f8", external=where)
    elif link == "virtual":
        layout = h5py.VirtualLayout((2,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "x", shape=(2,))
        file.create_virtual_dataset(name, layout)
    else:
        file.attrs[name] = np.zeros(3)
