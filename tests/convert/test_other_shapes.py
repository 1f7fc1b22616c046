"""Tensors of other shapes than the source has: one line that names the tensor, no traceback."""

from __future__ import annotations

import pytest
import torch
import torchvision

from mpn_d2.convert import convert
from mpn_d2.convert.person_head import normalised, scale_major
from mpn_d2.convert.prn import ENTRIES
from mpn_d2.convert.rcnn_weights import fit_rcnn_weights


def resnet(name: str) -> dict[str, torch.Tensor]:
    """Names of a ResNet, its tensors cut to a few numbers."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    return {
        n: torch.zeros([min(x, 4) for x in value.shape], dtype=value.dtype)
        for n, value in network.state_dict().items()
    }


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 3), (4, 0, 3, 3), (4, 3, 3, 3)])
def test_widths_of_a_resnet(shape):
    state = {**resnet("resnet50"), "layer1.0.conv2.weight": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"its layer1\.0\.conv2\.weight has the shape \("):
        convert("torchvision_resnet", state)


def test_counters_of_a_resnet():
    state = {**resnet("resnet18"), "bn1.num_batches_tracked": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"its bn1\.num_batches_tracked has the shape \(3,\)"):
        convert("timm_resnet", state)


@pytest.mark.parametrize("shape", [(), (2,), (0, 0)])
def test_layers_of_a_prn(shape):
    state = {f"{name}.bias": torch.zeros(2) for name in ("dens1", "bneck", "dens2")}
    state["dens1.weight"] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"its dens1\.weight has the shape .*: a PRN layer"):
        convert("prn_pytorch", state)


def test_biases_of_a_prn_in_keras():
    shapes = {"a/k": (ENTRIES, 2), "a/b": (2,), "b/k": (2, ENTRIES), "b/b": (0,)}
    with pytest.raises(ValueError, match=r"its b/b has the shape \(0,\): a PRN layer of 0 entries"):
        convert("prn_keras", {name: torch.zeros(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("name", ["res2.0.conv2.weight", "pixel_mean"])
def test_trunks_of_the_zoo(name):
    prefix = "backbone.bottom_up."
    names = [
        f"{prefix}res{level}.{block}.conv{i}.weight"
        for level, count in enumerate((3, 4, 6, 3), start=2)
        for block in range(count)
        for i in (1, 2, 3)
    ]
    state = {n: torch.zeros(4, 4, 3, 3) for n in names}
    state[name if name == "pixel_mean" else prefix + name] = torch.zeros(())
    for source in ("detectron2_retinanet", "detectron2_keypoint_rcnn", "detectron2_rcnn"):
        with pytest.raises(ValueError, match=rf"its .*{name} has the shape \(\): "):
            convert(source, state)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (37, 2)])
def test_boxes_of_a_head(shape):
    for change in (normalised, scale_major):
        with pytest.raises(ValueError, match="outputs of [0-9]+ channels: "):
            change(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (0, 8), (1, 8)])
@pytest.mark.parametrize(
    "name",
    [
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.keypoint_head.score_lowres.weight",
        "proposal_generator.rpn_head.anchor_deltas.weight",
    ],
)
def test_heads_that_cannot_be_fitted(name, shape):
    with pytest.raises(ValueError, match=rf"{name} is \(.* in the weights and \(2, 9\) in the net"):
        fit_rcnn_weights({name: torch.zeros(shape)}, {name: torch.zeros(2, 9)})


def test_what_no_converter_has_a_message_for(monkeypatch):
    def fails(*_):
        raise IndexError("Dimension out of range")

    monkeypatch.setattr("mpn_d2.convert.prn_pytorch.move_prn", fails)
    with pytest.raises(ValueError, match="other shapes than a checkpoint of prn_pytorch: Dimen"):
        convert("prn_pytorch", {})
