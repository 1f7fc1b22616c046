"""Rows of one table share their networks and what these have seen; results are each row's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpn_d2 import get_config
from mpn_d2.engine import row_evaluation
from mpn_d2.engine.row_evaluation import SharedNetworks, evaluate_rows


class Counting(nn.Module):
    """Gives the sum of an image, and counts the images that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        self.shown += len(batched_inputs)
        return [{"sum": int(x["image"].sum()), "height": x.get("height")} for x in batched_inputs]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    """The networks that were really loaded, in order."""
    networks: list[Counting] = []

    def load(cfg, weights: str) -> Counting:
        networks.append(Counting())
        return networks[-1]

    monkeypatch.setattr(row_evaluation, "load_trained_model", load)
    return networks


def config(*options: str):
    return get_config("MultiPoseNet/R_50.yaml", list(options))


def test_configs_that_differ_around_the_network_share_it(loaded):
    shared = SharedNetworks()
    one = shared.load(config(), "a.pth")
    assert shared.load(config("TTA.ENABLED", "True", "OUTPUT_DIR", "x"), "a.pth") is one
    assert shared.load(config(), "b.pth") is not one
    assert shared.load(config("MODEL.RETINANET.NMS", "soft_gaussian"), "a.pth") is not one
    assert len(loaded) == 3


def test_what_was_seen_is_not_looked_at_again(loaded):
    shared = SharedNetworks()
    network = shared.load(config(), "a.pth")
    black, white = torch.zeros(3, 4, 6, dtype=torch.uint8), torch.ones(3, 4, 6, dtype=torch.uint8)
    first = network([{"image": black}, {"image": white}])
    assert [x["sum"] for x in first] == [0, 72]
    # Equal bytes of another shape, and the same image wanted in another size, are something else.
    first[0]["sum"] = "a row's own business"
    tall = black.reshape(3, 6, 4)
    again = network([{"image": white.clone()}, {"image": tall}, {"image": black}])
    assert [x["sum"] for x in again] == [72, 0, 0] and loaded[0].shown == 3
    assert network([{"image": white, "height": 9}])[0]["height"] == 9 and loaded[0].shown == 4
    # Another network does not answer from the first one's memory.
    other = shared.load(config(), "b.pth")
    other([{"image": white}])
    assert loaded[1].shown == 1
    shared.forget()
    network([{"image": white}])
    assert loaded[0].shown == 5


def test_rows_of_different_datasets_are_refused():
    rows = {"a": config("DATASETS.TEST", "('x',)"), "b": config("DATASETS.TEST", "('y',)")}
    with pytest.raises(ValueError, match="need one DATASETS.TEST"):
        evaluate_rows(rows)
