"""Checkpoints that cannot be used: one line that names the file and what is wrong with it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from detectron2.engine import TrainerBase
from tensor_kinds import tensors_of_other_kinds
from torch import nn

from mpn_d2.engine.checkpoint import PoseCheckpointer, read_weights


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)


OTHER_KINDS = tensors_of_other_kinds(3, 2) | {"NaN or infinite": torch.full((3, 2), torch.nan)}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_tensors_of_other_kinds_are_refused(tmp_path, kind):
    path = str(tmp_path / "a.pth")
    torch.save({"model": {"first.weight": OTHER_KINDS[kind], "first.bias": torch.zeros(3)}}, path)
    for read in (PoseCheckpointer(Small()).load, read_weights):
        with pytest.raises(ValueError, match=rf"a\.pth .*: its 'first\.weight' .*{kind}"):
            read(path)


def test_broken_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    safetensors.save_file({"first.weight": torch.ones(3, 2)}, path)
    checkpointer = PoseCheckpointer(Small())
    checkpointer.load(str(path))
    assert (checkpointer.model.first.weight == 1).all()
    path.write_bytes(b"no file of any kind")
    with pytest.raises(ValueError, match=r"a\.safetensors is not a checkpoint .*no safetensors"):
        checkpointer.load(str(path))


def test_a_checkpointer_goes_on_after_an_error(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    checkpointer = PoseCheckpointer(Small(), str(tmp_path))
    checkpointer.save("whole")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"broken\.pth is not a checkpoint"):
            checkpointer.load(str(tmp_path / "broken.pth"))
    checkpointer.load(str(tmp_path / "whole.pth"))


def test_caffe2_weights_of_another_shape(tmp_path):
    # The row of the background is cut off, of which a single number has none.
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"bbox_pred_w": np.ones((), "f4")}))
    with pytest.raises(ValueError, match=r"a\.pkl does not fit the model: "):
        PoseCheckpointer(Small()).load(str(tmp_path / "a.pkl"))


class Training(TrainerBase):
    """What a training resumes: its iteration and its optimizer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def state_dict(self) -> dict:
        return {"iteration": 5, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


OTHER_STATES = {
    "gone": (None, "the file has none"),
    "no dict": ([1], "it is a list instead of a dict"),
    "empty": ({}, "no 'iteration'"),
    "no optimizer": ({"iteration": 5}, "no 'optimizer'"),
    "a list": ({"iteration": 5, "optimizer": []}, ".+"),
    "empty optimizer": ({"iteration": 5, "optimizer": {}}, "no '.+'"),
    "other groups": (
        {"iteration": 5, "optimizer": {"state": {}, "param_groups": []}},
        "loaded state dict has a different number of parameter groups",
    ),
    "text": (
        {"iteration": "x", "optimizer": {}},
        "its 'iteration' is a str instead of a number from 0",
    ),
    "negative": (
        {"iteration": -3, "optimizer": {}},
        "its 'iteration' is -3 instead of a number from 0",
    ),
    "hooks": ({"iteration": 5, "hooks": [1]}, ".+"),
}


@pytest.mark.parametrize("kind", OTHER_STATES)
def test_a_training_that_cannot_be_resumed(tmp_path, kind):
    state, message = OTHER_STATES[kind]
    model = Small()
    content = {"model": model.state_dict(), **({} if state is None else {"trainer": state})}
    torch.save(content, tmp_path / "a.pth")
    (tmp_path / "last_checkpoint").write_text("a.pth")
    checkpointer = PoseCheckpointer(model, str(tmp_path), trainer=Training(model))
    expected = rf"a\.pth: the state of its 'trainer' cannot be resumed from \({message}\): .*config"
    with pytest.raises(ValueError, match=expected) as error:
        checkpointer.resume_or_load("", resume=True)
    assert "\n" not in str(error.value)
    # Its weights are good: a new training may begin from them.
    checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=False)


def test_a_training_is_resumed(tmp_path):
    model = Small()
    saved = PoseCheckpointer(model, str(tmp_path), trainer=Training(model))
    saved.save("a", iteration=5)
    training = Training(model)
    again = PoseCheckpointer(model, str(tmp_path), trainer=training)
    assert again.resume_or_load("", resume=True) == {"iteration": 5} and training.iter == 5
