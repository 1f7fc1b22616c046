"""Detectron2's R-CNN: an image's result does not depend on its batch; what it cannot do is told."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.inference_model import check_inference_config
from mpn_d2.engine.size_groups import SizeGroups, same_in_any_batch
from mpn_d2.engine.stages import stage_config

CONFIG = "MultitaskRCNN/quick_overfit_two.yaml"


class Padding(nn.Module):
    """Notes the sizes of its batches; answers the number of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.backbone.size_divisibility = 32
        self.batches = []

    def forward(self, inputs: list[dict]) -> list[dict]:
        self.batches.append([tuple(x["image"].shape[-2:]) for x in inputs])
        return [{"number": x["number"]} for x in inputs]


def test_images_of_one_padded_size_go_together_and_come_back_in_order():
    model = Padding()
    sizes = [(33, 64), (64, 50), (32, 32), (64, 64), (1, 9)]
    images = [{"image": torch.zeros(3, *size), "number": i} for i, size in enumerate(sizes)]
    assert SizeGroups(model)(images) == [{"number": i} for i in range(5)]
    assert model.batches == [[sizes[0], sizes[1], sizes[3]], [sizes[2], sizes[4]]]
    assert SizeGroups(model)([]) == []


def test_an_r_cnn_alone_needs_it(paper_config):
    model = build_model(paper_config(CONFIG)).eval()
    assert isinstance(same_in_any_batch(model), SizeGroups)
    other = nn.Linear(1, 1)
    assert same_in_any_batch(other) is other


@pytest.mark.parametrize(
    "options, message",
    [
        (["EVAL.TASKS", "['sem_seg']"], r"EVAL\.TASKS .* \(sem_seg\)"),
        (["MODEL.MASK_ON", "False"], r"EVAL\.TASKS .*segm.*MODEL\.MASK_ON"),
        (["MODEL.KEYPOINT_ON", "False"], r"MODEL\.KEYPOINT_ON is False"),
        (["EVAL.BOX_SOURCE", "gt"], r"EVAL\.BOX_SOURCE is 'gt'"),
        (["SPEED.MODE", "fp32"], r"SPEED\.MODE is 'fp32'"),
        (["EVAL.HEATMAPS", "True"], r"EVAL\.HEATMAPS is True"),
        (["EVAL.ERROR_BUDGET", "True"], r"EVAL\.ERROR_BUDGET is True"),
    ],
)
def test_what_it_cannot_do_is_one_line(options, message, paper_config):
    with pytest.raises(ValueError, match=message):
        check_inference_config(paper_config(CONFIG, options))


def test_masks_of_a_model_without(paper_config):
    cfg = paper_config("MultiPoseNet/R_18_small.yaml", ["EVAL.TASKS", "['segm']"])
    with pytest.raises(ValueError, match=r"EVAL\.TASKS is \['segm'\]"):
        check_inference_config(cfg)


@pytest.mark.parametrize("stage", ["keypoint", "person", "assembly"])
def test_no_part_of_it_trains_alone(stage, paper_config):
    with pytest.raises(ValueError, match=r"trains as a whole: give --stage joint"):
        build_pose_model(stage_config(paper_config(CONFIG), stage, []))
