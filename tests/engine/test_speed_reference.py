"""The network that speed is compared with: Detectron2's, with the people that it is given."""

from __future__ import annotations

import pytest
import torch

from mpn_d2.engine import speed_reference
from mpn_d2.engine.machine_speed import matmul_gflops
from mpn_d2.engine.pipeline_speed import inputs_of
from mpn_d2.engine.speed_people import place_people
from mpn_d2.engine.speed_reference import PROPOSALS, TopDown


@pytest.fixture(scope="module")
def reference() -> TopDown:
    return TopDown("keypoint_rcnn", "cpu")


def test_it_is_the_model_of_the_zoo(reference):
    parameters = sum(p.numel() for p in reference.model.parameters())
    # Detectron2's model zoo: 59 million parameters and the fixed norms.
    assert 58e6 < parameters < 60e6
    assert PROPOSALS == 1000 and not reference.model.training


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_given_people_come_out_of_1000_proposals(reference, count):
    people = place_people(count, 64)
    seen = []
    head = reference.model.roi_heads
    hooks = [
        module.register_forward_pre_hook(lambda m, inputs: seen.append(len(inputs[0])))
        for module in (head.box_head, head.keypoint_head.conv_fcn1)
    ]
    try:
        results = reference(inputs_of(64, 2), people.boxes)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [2 * PROPOSALS, 2 * count]
    assert len(results) == 2
    for result in results:
        found = result["instances"]
        assert len(found) == count and found.image_size == (64, 64)
        assert found.pred_keypoints.shape == (count, 17, 3)
        torch.testing.assert_close(found.pred_boxes.tensor, people.boxes)
        assert torch.isfinite(found.pred_keypoints).all()


def test_rate_of_the_machine(monkeypatch):
    monkeypatch.setattr("mpn_d2.engine.machine_speed._SIDE", {"cpu": 256})
    assert 0.01 < matmul_gflops(torch.float32, "cpu", 3) < 1e5


def test_names_of_what_there_is():
    assert speed_reference.NAMES == ("keypoint_rcnn",)
