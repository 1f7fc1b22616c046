"""Systems of all kinds find the people that they are told of; what a table is made of."""

from __future__ import annotations

import pytest
import torch

from mpn_d2.engine import system_speed
from mpn_d2.engine.pipeline_speed import inputs_of
from mpn_d2.engine.speed_people import place_people
from mpn_d2.engine.system_speed import build_system, measure_systems
from mpn_d2.layers.deformable_conv import DeformableConv2d

SIZE = 128
CONFIGS = {
    "MultiPoseNet": "MultiPoseNet/R_18_small.yaml",
    "regression": "PoseRegression/R_18_small.yaml",
    "rcnn": "MultitaskRCNN/quick_drawn_v1.yaml",
    "recurrent": "UnifiedAssociation/quick_crowd.yaml",
}
SMALL = ["MODEL.PRN.NODES", "8"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_people_come_out_again(name, paper_config):
    system = build_system(paper_config(CONFIGS[name], SMALL), 20)
    inputs = inputs_of(SIZE, 1)
    for count in (0, 3, 20):
        people = place_people(count, SIZE)
        with torch.no_grad(), system.telling(people, SIZE):
            found = system.run(inputs, people)[0]["instances"]
        assert len(found) == count and found.pred_keypoints.shape[1:] == (17, 3)


def test_a_refined_rcnn_reads_at_offsets(paper_config, monkeypatch):
    """Offsets of 0, as random networks begin with, would be passed over."""
    read = []
    plain = DeformableConv2d.convolve

    def convolve(self, x, offsets):
        read.append(bool(offsets.any()))
        return plain(self, x, offsets)

    monkeypatch.setattr(DeformableConv2d, "convolve", convolve)
    options = [*SMALL, "MODEL.ROI_KEYPOINT_HEAD.REFINE", "both"]
    system = build_system(paper_config(CONFIGS["rcnn"], options), 2)
    people = place_people(2, SIZE)
    with torch.no_grad(), system.telling(people, SIZE):
        system.run(inputs_of(SIZE, 1), people)
    assert read and all(read)


def test_figures_are_medians_and_their_ratios(paper_config, monkeypatch):
    class Reference:
        def __init__(self, name: str, device: str) -> None:
            assert (name, device) == ("keypoint_rcnn", "cpu")

        def __call__(self, inputs: list[dict], boxes: torch.Tensor) -> list[dict]:
            return [{"instances": boxes}]

    # Two systems by three turns each, the first of which does not count.
    seconds = iter([9.0, 9.0, 2.0, 1.0, 4.0, 3.0, 2.0, 1.0])

    def seconds_of_one(work, device: str) -> float:
        work()
        return next(seconds)

    monkeypatch.setattr(system_speed, "TopDown", Reference)
    monkeypatch.setattr(system_speed, "seconds_of_one", seconds_of_one)
    cfg = paper_config(CONFIGS["regression"])
    figures = measure_systems({"own": cfg}, persons=[1], size=SIZE, rounds=3)
    assert figures == {
        "systems/seconds/keypoint_rcnn/1": 2.0,
        "systems/seconds/own/1": 1.0,
        "systems/ratio/own/1": 0.5,
    }


def test_a_network_that_loses_somebody_is_not_measured(paper_config, monkeypatch):
    cfg = paper_config(CONFIGS["recurrent"], SMALL)
    monkeypatch.setattr(system_speed, "_SOMEBODY", -10.0)
    monkeypatch.setattr(
        system_speed,
        "TopDown",
        lambda name, device: lambda inputs, boxes: [{"instances": boxes}],
    )
    with pytest.raises(ValueError, match="own: 3 people were put in, 0 came out"):
        measure_systems({"own": cfg}, persons=[3], size=SIZE, rounds=1)
