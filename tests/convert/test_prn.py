"""PRN weights of the authors' Keras code and of its PyTorch port give the same outputs here."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from mpn_d2.config import add_mpn_config
from mpn_d2.convert import convert
from mpn_d2.engine.assembler_weights import load_assembler
from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.utils.safe_files import read_foreign_weights

ENTRIES = 56 * 36 * 17
NODES = 3
# Old Keras, whole model of Keras 2, Keras 3.
NAMES = {
    "weights": "dense_{i}/dense_{i}_{leaf}",
    "model": "model_weights/dense_{i}/dense_{i}/{leaf}:0",
    "layers": "layers/dense_{i}/vars/{leaf}",
}


def prn_config(*options: str, hidden: int = 1):
    cfg = get_cfg()
    add_mpn_config(cfg)
    fixed = ["MODEL.DEVICE", "cpu", "MODEL.PRN.NODES", NODES, "MODEL.PRN.SOFTMAX", "global"]
    cfg.merge_from_list([*fixed, "MODEL.PRN.NUM_HIDDEN", hidden, "MODEL.WEIGHTS", "", *options])
    return cfg


def random_layers(widths: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)
    return [
        (
            draw.normal(size=(before, after)).astype("f4") / before**0.5,
            draw.normal(size=after).astype("f4"),
        )
        for before, after in zip(widths, widths[1:])
    ]


def forward(layers: list[tuple[np.ndarray, np.ndarray]], grids: torch.Tensor, scope: str):
    """(B, 17, 56, 36) grids through Keras' dense layers, in float64."""
    flat = grids.double().numpy().transpose(0, 2, 3, 1).reshape(len(grids), -1)
    x = flat
    for kernel, bias in layers:
        x = np.maximum(x @ kernel.astype("f8") + bias, 0)
    x = x + flat
    parts = x.reshape(len(grids), 17 if scope == "slice17" else 1, -1)
    chances = np.exp(parts - parts.max(axis=2, keepdims=True))
    chances /= chances.sum(axis=2, keepdims=True)
    return torch.from_numpy(chances.reshape(-1, 56, 36, 17).transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize("layout", NAMES)
@pytest.mark.parametrize(
    ("source", "scope"), [("prn_keras", "global"), ("prn_keras_separate", "slice17")]
)
def test_keras(tmp_path, layout, source, scope):
    layers = random_layers([ENTRIES, NODES, ENTRIES])
    with h5py.File(tmp_path / "prn.h5", "w") as file:
        leaves = ("W", "b") if layout == "weights" else ("0", "1")
        if layout == "model":
            leaves = ("kernel", "bias")
            file["optimizer_weights/Adam/dense_1/kernel/m:0"] = layers[0][0]
            file.attrs["model_config"] = "{}"
        # The order of the names says nothing.
        for i, layer in zip((2, 1), layers):
            for leaf, values in zip(leaves, layer):
                file[NAMES[layout].format(i=i, leaf=leaf)] = values
    done = convert(source, read_foreign_weights(tmp_path / "prn.h5"))
    assert len(done.unused) == (1 if layout == "model" else 0)
    torch.save({"model": done.weights, "settings": done.settings}, tmp_path / "prn.pth")
    assembler = load_assembler(prn_config("MODEL.PRN.SOFTMAX", scope), str(tmp_path / "prn.pth"))
    grids = torch.rand(2, 17, 56, 36) * 2
    with torch.no_grad():
        found = assembler.evidence.network(grids)
    expected = forward(layers, grids, scope)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_pytorch_port(tmp_path):
    layers = random_layers([ENTRIES, NODES, NODES, ENTRIES])
    state = {}
    for name, (kernel, bias) in zip(("dens1", "bneck", "dens2"), layers):
        state[f"module.{name}.weight"] = torch.from_numpy(kernel.T.copy())
        state[f"module.{name}.bias"] = torch.from_numpy(bias)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "prn.pth.tar")
    done = convert("prn_pytorch", read_foreign_weights(tmp_path / "prn.pth.tar"))
    torch.save({"model": done.weights, "settings": done.settings}, tmp_path / "ours.pth")
    options = ["MODEL.ASSEMBLER.WEIGHTS", str(tmp_path / "ours.pth")]
    assembler = build_pose_assembler(prn_config(*options, hidden=2)).eval()
    grids = torch.rand(2, 17, 56, 36) * 2
    with torch.no_grad():
        found = assembler.evidence.network(grids)
    torch.testing.assert_close(found, forward(layers, grids, "global"), rtol=1e-4, atol=1e-9)
    # Under another softmax it would predict something else.
    with pytest.raises(ValueError, match=r"MODEL\.PRN\.SOFTMAX is 'channel'"):
        other = ["MODEL.PRN.SOFTMAX", "channel"]
        build_pose_assembler(prn_config(*options, *other, hidden=2))
    with pytest.raises(ValueError, match=r"MODEL\.PRN\.SOFTMAX is 'channel'"):
        load_assembler(prn_config(*other, hidden=2), str(tmp_path / "ours.pth"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a/k": (ENTRIES, 3), "a/b": (3,)}, r"its dense layers are \[\(34272, 3\)\]"),
        (
            {"a/k": (ENTRIES, 3), "a/b": (3,), "b/k": (4, ENTRIES), "b/b": (ENTRIES,)},
            r"its dense layers are .*\(4, 34272\)",
        ),
        (
            {
                "a/k": (ENTRIES, 3),
                "a/b": (3,),
                "b/k": (3, ENTRIES),
                "b/b": (ENTRIES,),
                "c/gamma": (5,),
            },
            "1 unknown: c/gamma",
        ),
    ],
)
def test_other_keras_files_are_refused(state, message):
    tensors = {name: torch.zeros(shape) for name, shape in state.items()}
    with pytest.raises(ValueError, match=message):
        convert("prn_keras", tensors)


def test_other_grids_are_refused():
    state = {f"{name}.bias": torch.zeros(2) for name in ("dens1", "bneck", "dens2")}
    state["dens1.weight"] = torch.zeros(2, 28 * 18 * 17)
    with pytest.raises(ValueError, match="a PRN layer of 8568 entries: 56 x 36 cells"):
        convert("prn_pytorch", state)
    with pytest.raises(ValueError, match="no converter 'prn'; choose one of"):
        convert("prn", {})
