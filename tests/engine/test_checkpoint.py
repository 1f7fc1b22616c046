"""Checkpoints: whole or not at all, data only, and they name what does not fit."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.engine.checkpoint import PoseCheckpointer, read_progress, read_settings
from mpn_d2.utils.safe_files import TRUST


class Small(nn.Module):
    def __init__(self, width: int = 3, extra: bool = False):
        super().__init__()
        self.first = nn.Linear(2, width)
        if extra:
            self.extra = nn.Linear(1, 1)


def test_save_is_atomic_and_tagged(tmp_path, monkeypatch):
    checkpointer = PoseCheckpointer(Small(), str(tmp_path))
    checkpointer.save("model_0001", iteration=1)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0001.pth"]
    assert checkpointer.get_checkpoint_file().endswith("model_0001.pth")

    def dies_half_way(data, f, **kwargs):
        f.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", dies_half_way)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("model_0002")
    # The last good one is still the last.
    assert checkpointer.get_checkpoint_file().endswith("model_0001.pth")
    assert not (tmp_path / "model_0002.pth").exists()


def test_strict_names_keys_and_shapes(tmp_path):
    PoseCheckpointer(Small(), str(tmp_path)).save("small")
    path = str(tmp_path / "small.pth")
    with pytest.raises(ValueError, match=r"missing: extra\.weight, extra\.bias"):
        PoseCheckpointer(Small(extra=True), strict=True).load(path)
    PoseCheckpointer(Small(extra=True), str(tmp_path)).save("large")
    with pytest.raises(ValueError, match=r"unknown: extra\.weight"):
        PoseCheckpointer(Small(), strict=True).load(str(tmp_path / "large.pth"))
    # Not strict: what fits is loaded.
    model = Small(extra=True)
    PoseCheckpointer(model).load(path)
    saved = torch.load(path, weights_only=True)["model"]
    assert torch.equal(model.first.weight, saved["first.weight"])
    with pytest.raises(ValueError, match=r"first\.weight is \(3, 2\) in the file, \(4, 2\) here"):
        PoseCheckpointer(Small(4, extra=True), strict=True).load(path)


def test_a_file_of_which_nothing_fits_is_an_error(tmp_path):
    PoseCheckpointer(Small(), str(tmp_path)).save("small")
    with pytest.raises(ValueError, match=r"nothing in .*first\.weight is \(3, 2\) in the file"):
        PoseCheckpointer(Small(4)).load(str(tmp_path / "small.pth"))
    other = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"nothing in .*small\.pth fits.*first\.weight.*0\.weight"):
        PoseCheckpointer(other).load(str(tmp_path / "small.pth"))


def test_missing_broken_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth not found: check MODEL\.WEIGHTS"):
        PoseCheckpointer(Small()).load(str(tmp_path / "nothing.pth"))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"broken\.pth is not a checkpoint"):
        PoseCheckpointer(Small()).load(str(broken))
    cut = tmp_path / "cut.pth"
    PoseCheckpointer(Small(), str(tmp_path)).save("whole")
    cut.write_bytes((tmp_path / "whole.pth").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.pth is not a checkpoint"):
        PoseCheckpointer(Small()).load(str(cut))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("suffix", ["pkl", "pth", "pyth"])
def test_a_malicious_pickle_does_not_run(tmp_path, suffix, monkeypatch):
    monkeypatch.delenv(TRUST, raising=False)
    target = tmp_path / "executed"
    path = tmp_path / f"evil.{suffix}"
    content = {"model": {"first.weight": Evil(str(target))}, "__author__": "x", "model_state": {}}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="not a checkpoint that can be read") as error:
        PoseCheckpointer(Small()).load(str(path))
    assert not target.exists()
    assert "mkdir" in str(error.value) and "--trust-pickle" in str(error.value)
    # PyTorch's own message goes on with how to run it all the same.
    assert "weights_only" not in str(error.value)


def test_model_zoo_pickles_load(tmp_path):
    weights = {
        "first.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
        "first.bias": np.ones(3, dtype=np.float32),
    }
    path = tmp_path / "zoo.pkl"
    content = {"model": weights, "__author__": "somebody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=2))
    model = nn.ModuleDict({"backbone": Small()})
    PoseCheckpointer(model).load(str(path))
    assert model["backbone"].first.weight[2, 1] == 5


def test_no_network_says_what_to_do(monkeypatch):
    checkpointer = PoseCheckpointer(Small())

    def offline(path, *args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", offline)
    with pytest.raises(FileNotFoundError, match=r"detectron2://x\.pkl.*MODEL\.WEIGHTS, or train"):
        checkpointer.load("detectron2://x.pkl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pyth", {"weights": {}}, r"a\.pyth .*keeps its weights in 'model_state'"),
        ("a.pyth", [1], r"a\.pyth .*it holds a list"),
        ("a.pyth", {"model_state": {}}, r"a\.pyth .*it holds no tensors"),
        ("a.pth", {"model": {}}, r"a\.pth .*it holds no tensors"),
        ("a.pth", {"model": [1]}, r"a\.pth .*its 'model' is a list"),
        ("a.pth", {"model": {"first.weight": 3}}, r"a\.pth .*its 'first\.weight' is a int"),
        ("a.pth", {"model": {1: torch.zeros(1)}}, r"a\.pth .*its 1 is a Tensor"),
    ],
)
def test_files_without_weights_are_named(tmp_path, name, content, message):
    torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        PoseCheckpointer(Small()).load(str(tmp_path / name))


def test_pycls_weights_load(tmp_path):
    torch.save({"model_state": {"first.weight": torch.ones(3, 2)}}, tmp_path / "a.pyth")
    model = Small()
    PoseCheckpointer(model).load(str(tmp_path / "a.pyth"))
    assert (model.first.weight == 1).all()


def test_what_was_not_loaded(tmp_path):
    PoseCheckpointer(Small(4), str(tmp_path)).save("small")
    checkpointer = PoseCheckpointer(Small(extra=True))
    whole = {"first.weight", "first.bias", "extra.weight", "extra.bias"}
    assert checkpointer.not_loaded == whole
    checkpointer.load("")
    assert checkpointer.not_loaded == whole
    PoseCheckpointer(Small(3), str(tmp_path)).save("small")
    checkpointer.load(str(tmp_path / "small.pth"))
    assert checkpointer.not_loaded == {"extra.weight", "extra.bias"}


def test_progress_of_a_checkpoint(tmp_path):
    checkpointer = PoseCheckpointer(Small(), str(tmp_path))
    checkpointer.save("plain")
    assert read_progress(str(tmp_path / "plain.pth")) == {"iteration": -1, "train_parts": None}
    checkpointer.save("told", iteration=7, trainer={"train_parts": ["person"]})
    assert read_progress(str(tmp_path / "told.pth")) == {"iteration": 7, "train_parts": ["person"]}
    with pytest.raises(FileNotFoundError, match=r"gone\.pth not found, which last_checkpoint"):
        read_progress(str(tmp_path / "gone.pth"))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "told.pth").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.pth is not a checkpoint"):
        read_progress(str(tmp_path / "cut.pth"))


class WithAssembler(nn.Module):
    """A trunk and an assembler of a width that tells kinds apart."""

    def __init__(self, width: int, weights_name: str = "") -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 2)
        self.assembler = nn.Linear(2, width)
        self.assembler.weights_name = weights_name


def test_named_assembler_weights_stay_where_the_file_has_another(tmp_path):
    trained = WithAssembler(3)
    PoseCheckpointer(trained, str(tmp_path)).save("other_kind")
    path = str(tmp_path / "other_kind.pth")
    model = WithAssembler(5, "ours.pth")
    before = model.assembler.weight.clone()
    checkpointer = PoseCheckpointer(model, strict=True)
    assert checkpointer.not_loaded == {"trunk.weight", "trunk.bias"}
    checkpointer.load(path)
    assert torch.equal(model.trunk.weight, trained.trunk.weight)
    assert torch.equal(model.assembler.weight, before) and not checkpointer.not_loaded
    # Without named weights it is an error, and the same kind is taken from the file.
    with pytest.raises(ValueError, match="assembler.weight is"):
        PoseCheckpointer(WithAssembler(5), strict=True).load(path)
    same = WithAssembler(3, "ours.pth")
    PoseCheckpointer(same, strict=True).load(path)
    assert torch.equal(same.assembler.weight, trained.assembler.weight)
    # A file that has nothing for the rest of the model does not pass for it.
    torch.save({"model": {"assembler.weight": torch.ones(9, 2)}}, tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="nothing in .* fits"):
        PoseCheckpointer(WithAssembler(5, "ours.pth")).load(str(tmp_path / "nothing.pth"))


def test_settings_in_a_file_are_checked(tmp_path):
    cfg = load_config("", ["INPUT.FORMAT", "RGB", "MODEL.ANCHOR_GENERATOR.OFFSET", "0.5"])
    first = {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]}
    content = {
        "model": {"first.weight": torch.ones(3, 2), "first.bias": torch.ones(3)},
        # Of another part, and of one that the file does not hold.
        "settings": {"first.": first, "extra.": {"MODEL.ANCHOR_GENERATOR.OFFSET": 0.0}},
    }
    path = str(tmp_path / "converted.pth")
    torch.save(content, path)
    model = Small()
    PoseCheckpointer(model, cfg=cfg, strict=True).load(path)
    assert (model.first.weight == 1).all()
    first["INPUT.FORMAT"] = "BGR"
    first["MODEL.RESNETS.STRIDE_IN_1X1"] = False
    first["MODEL.NO_SUCH_KEY"] = 3
    torch.save(content, path)
    model = Small()
    before = model.first.weight.clone()
    with pytest.raises(ValueError) as error:
        PoseCheckpointer(model, cfg=cfg).load(path)
    assert "(INPUT.FORMAT is 'RGB'; MODEL.RESNETS.STRIDE_IN_1X1 is True; MODEL.NO_SUCH" in str(
        error.value
    )
    assert 'give INPUT.FORMAT "BGR" MODEL.RESNETS.STRIDE_IN_1X1 "False"' in str(error.value)
    assert torch.equal(model.first.weight, before), "nothing of it was loaded"
    torch.save({**content, "settings": [1]}, path)
    with pytest.raises(ValueError, match="its 'settings' are no table of config keys"):
        PoseCheckpointer(Small(), cfg=cfg).load(path)


def test_what_is_trained_from_converted_weights_keeps_their_settings(tmp_path):
    cfg = load_config("", ["INPUT.FORMAT", "RGB"])
    parts = {"first.": {"INPUT.FORMAT": "RGB"}, "extra.": {"MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}}
    content = {"model": {"first.weight": torch.ones(3, 2)}, "settings": parts}
    torch.save(content, tmp_path / "converted.pth")
    trained = PoseCheckpointer(Small(extra=True), str(tmp_path), cfg=cfg)
    trained.load(str(tmp_path / "converted.pth"))
    trained.save("trained", iteration=3)
    trained.save_aside("aside")
    # From there on to the next training, as far as its weights are those.
    resumed = PoseCheckpointer(Small(), str(tmp_path), cfg=cfg)
    resumed.load(str(tmp_path / "trained.pth"))
    resumed.save("resumed")
    for name in ("trained", "aside", "resumed"):
        # "extra" began anew: the file had no weights of it.
        assert read_settings(str(tmp_path / f"{name}.pth")) == {"first.": parts["first."]}, name
    other = PoseCheckpointer(Small(), cfg=load_config("", ["INPUT.FORMAT", "BGR"]))
    with pytest.raises(ValueError, match='give INPUT.FORMAT "RGB"'):
        other.load(str(tmp_path / "resumed.pth"))
    # Weights that never were converted have none.
    torch.save({"model": {"first.weight": torch.ones(3, 2)}}, tmp_path / "plain.pth")
    resumed.load(str(tmp_path / "plain.pth"))
    resumed.save("last")
    assert "settings" not in torch.load(tmp_path / "last.pth", weights_only=True)


def test_settings_of_a_named_assembler_stay_with_it(tmp_path):
    theirs = {"assembler.": {"MODEL.PRN.SOFTMAX": "slice17"}}
    model = WithAssembler(5, "converted.pth")
    model.assembler.weights_settings = theirs
    own = {"trunk.": {"INPUT.FORMAT": "RGB"}, "assembler.": {"MODEL.PRN.SOFTMAX": "channel"}}
    weights = {"trunk.weight": torch.ones(2, 2), "assembler.weight": torch.ones(3, 2)}
    torch.save({"model": weights, "settings": own}, tmp_path / "network.pth")
    checkpointer = PoseCheckpointer(
        model, str(tmp_path), cfg=load_config("", ["INPUT.FORMAT", "RGB"])
    )
    checkpointer.save("before")
    assert read_settings(str(tmp_path / "before.pth")) == theirs
    checkpointer.load(str(tmp_path / "network.pth"))
    checkpointer.save("after")
    expected = {"trunk.": own["trunk."], **theirs}
    assert read_settings(str(tmp_path / "after.pth")) == expected
    # An assembler of the same shape comes from the file, and its settings with it.
    weights |= {"assembler.weight": torch.ones(5, 2), "assembler.bias": torch.ones(5)}
    torch.save({"model": weights, "settings": own}, tmp_path / "network.pth")
    checkpointer.load(str(tmp_path / "network.pth"))
    checkpointer.save("after")
    assert read_settings(str(tmp_path / "after.pth")) == own


@pytest.mark.parametrize("name", ["a.h5", "a.H5", "a.hdf5", "prn.keras"])
def test_files_of_keras_are_to_be_converted(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is a file of Keras or HDF5: convert it first"):
        PoseCheckpointer(Small()).load(str(tmp_path / name))


def test_another_skeletons_checkpoint_keeps_what_fits(tmp_path, paper_config, caplog):
    options = ["MODEL.PRN.NODES", "4"]
    coco = build_model(paper_config("MultiPoseNet/R_18_small.yaml", options))
    PoseCheckpointer(coco, str(tmp_path)).save("coco")
    path = str(tmp_path / "coco.pth")
    cfg = paper_config("MultiPoseNet/R_18_small.yaml", [*options, "MODEL.SKELETON", "crowdpose"])
    model = build_model(cfg)
    checkpointer = PoseCheckpointer(model, cfg=cfg)
    with caplog.at_level("WARNING"):
        checkpointer.load(path)
    theirs = coco.state_dict()
    for name, value in model.state_dict().items():
        if name not in checkpointer.not_loaded:
            assert torch.equal(value, theirs[name]), name
    # The maps, and the layers of the PRN that see the whole grid.
    expected = {
        f"{layer}.{leaf}"
        for layer in (
            "keypoint_head.predictor",
            *(f"keypoint_head.intermediate.k{i}" for i in range(2, 6)),
            "assembler.evidence.network.output",
        )
        for leaf in ("weight", "bias")
    } | {"assembler.evidence.network.hidden.0.weight"}
    assert checkpointer.not_loaded == expected
    [message] = [r.getMessage() for r in caplog.records if "begin anew" in r.getMessage()]
    assert all(name in message for name in expected)
    assert f"{len(theirs) - len(expected)} tensors were loaded" in message
    with pytest.raises(ValueError, match=r"other shape: .*keypoint_head\.predictor\.weight is"):
        PoseCheckpointer(model, cfg=cfg, strict=True).load(path)
