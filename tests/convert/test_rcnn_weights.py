"""Weights of Detectron2's zoo and of our bottom-up systems as the start of an R-CNN."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from repo_tools import load_tool
from torch import nn

from mpn_d2.convert.rcnn_weights import fit_rcnn_weights, trunk_weights

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / "configs" / "MultitaskRCNN"
SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"]
SMALL += ["MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.FPN.OUT_CHANNELS", "16"]
SMALL += ["MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]
SMALL += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8, 8)"]
# The framework's own classes throughout.
THEIRS = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]
THEIRS += ["MODEL.ROI_KEYPOINT_HEAD.NAME", "KRCNNConvDeconvUpsampleHead"]
THEIRS += ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
ZOO = "MultitaskRCNN/R_50_standard.yaml"


def looks_like(instances):
    return instances.pred_boxes.tensor, instances.scores


def test_a_keypoint_rcnn_of_the_zoo_goes_on_as_it_was(paper_config):
    zoo = build_model(paper_config(ZOO, [*SMALL, *THEIRS, "MODEL.MASK_ON", "False"])).eval()
    ours = build_model(paper_config("MultitaskRCNN/R_50_standard_RB_H.yaml", SMALL)).eval()
    # Random networks of this depth explode, which Detectron2's decoding cannot take.
    nn.init.normal_(zoo.roi_heads.keypoint_head.score_lowres.weight, std=1e-5)
    weights = {name: tensor.clone() for name, tensor in zoo.state_dict().items()}
    fitted = fit_rcnn_weights(weights, ours.state_dict())
    assert all(torch.equal(weights[k], v) for k, v in zoo.state_dict().items())
    assert set(fitted) == set(weights)
    missing, _ = ours.load_state_dict(fitted, strict=False)
    assert all(".offset." in name or ".mask_head." in name for name in missing)
    image = [{"image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)}]
    with torch.no_grad():
        for model in (zoo, ours):
            model.roi_heads.box_predictor.test_score_thresh = 0.0
        before, after = zoo(image)[0]["instances"], ours(image)[0]["instances"]
    assert len(before) > 0
    for a, b in zip(looks_like(before), looks_like(after), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(before.pred_keypoints, after.pred_keypoints)


def test_without_masks_a_keypoint_rcnn_is_evaluated_as_documented(paper_config):
    """Evaluation loads nothing but whole networks."""
    zoo = build_model(paper_config(ZOO, [*SMALL, *THEIRS, "MODEL.MASK_ON", "False"]))
    tasks = ["EVAL.TASKS", "['bbox', 'keypoints']"]
    ours = build_model(paper_config(ZOO, [*SMALL, "MODEL.MASK_ON", "False", *tasks]))
    ours.load_state_dict(fit_rcnn_weights(zoo.state_dict(), ours.state_dict()), strict=True)


def test_a_mask_rcnn_of_80_classes_keeps_the_person(paper_config):
    options = [*SMALL, *THEIRS, "MODEL.KEYPOINT_ON", "False", "MODEL.ROI_HEADS.NUM_CLASSES", "80"]
    zoo = build_model(paper_config(ZOO, options)).eval()
    ours = build_model(paper_config("MultitaskRCNN/R_50_multi_heatmap.yaml", SMALL)).eval()
    weights = zoo.state_dict()
    fitted = fit_rcnn_weights(weights, ours.state_dict())
    scores = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(fitted[scores], weights[scores][[0, 80]])
    deltas = "roi_heads.box_predictor.bbox_pred.bias"
    assert torch.equal(fitted[deltas], weights[deltas][:4])
    masks = "roi_heads.mask_head.predictor.weight"
    assert torch.equal(fitted[masks], weights[masks][:1])
    # Two sizes on each level, ordered before the three ratios.
    anchors = "proposal_generator.rpn_head.anchor_deltas.weight"
    assert fitted[anchors].shape[0] == 24
    assert torch.equal(fitted[anchors][:12], weights[anchors])
    assert torch.equal(fitted[anchors][12:], weights[anchors])
    # The level that the smaller pyramid lacks is left out.
    assert "backbone.fpn_lateral2.weight" in weights
    assert not any("fpn_lateral2" in name for name in fitted)
    ours.load_state_dict(fitted, strict=False)
    # One class: the softmax over person and background is that over these two rows.
    x = torch.randn(5, 16)
    with torch.no_grad():
        theirs = zoo.roi_heads.box_predictor.cls_score(x)[:, [0, 80]]
        torch.testing.assert_close(ours.roi_heads.box_predictor.cls_score(x), theirs)


def test_offsets_that_the_zoo_has_beside_its_convolutions(paper_config):
    ours = build_model(paper_config("MultitaskRCNN/R_50_multi_RB.yaml", SMALL))
    wanted = ours.state_dict()
    inside = "backbone.bottom_up.res3.0.conv2.offset.weight"
    zoo = {inside.replace("conv2.offset", "conv2_offset"): torch.randn_like(wanted[inside])}
    assert set(fit_rcnn_weights(zoo, wanted)) == {inside}


def test_the_command_fits_a_zoo_file_to_a_config(paper_config, tmp_path, capsys):
    zoo = build_model(paper_config(ZOO, [*THEIRS, "MODEL.ROI_HEADS.NUM_CLASSES", "80"]))
    file, output = tmp_path / "zoo.pth", tmp_path / "start.pth"
    torch.save({"model": zoo.state_dict()}, file)
    config = CONFIGS / "R_50_standard_RB_H.yaml"
    command = ["convert_checkpoint", "--from", "detectron2_rcnn", "--input", str(file)]
    command += ["--output", str(output)]
    tool = load_tool("convert_checkpoint")
    with pytest.raises(ValueError, match="--from detectron2_rcnn needs --config-file"):
        tool.main(parsed(tool, command))
    tool.main(parsed(tool, [*command, "--config-file", str(config)]))
    done = torch.load(output, weights_only=True)
    name = "roi_heads.keypoint_head.score_lowres.weight"
    assert done["model"][name].shape[1] == 51
    assert torch.equal(done["model"][name][:, :17], zoo.state_dict()[name])
    assert done["model"]["roi_heads.mask_head.predictor.weight"].shape[0] == 1
    assert done["settings"]["backbone.bottom_up."]["INPUT.FORMAT"] == "BGR"
    # Without a pyramid it is no R-CNN of the zoo; nothing is written.
    weights = {k: v for k, v in zoo.state_dict().items() if "fpn_output4" not in k}
    torch.save({"model": weights}, file)
    output.unlink()
    with pytest.raises(ValueError, match=r"2 missing: backbone\.fpn_output4\.weight"):
        tool.main(parsed(tool, [*command, "--config-file", str(config)]))
    assert not output.exists()


def parsed(tool, command: list[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        return tool.parse_args()


def test_weights_that_do_not_fit_are_named(paper_config):
    ours = build_model(paper_config("MultitaskRCNN/R_50_multi_H.yaml", SMALL)).state_dict()
    name = "roi_heads.box_head.fc1.weight"
    with pytest.raises(ValueError, match=rf"{name} is \(3, 4\) in the weights"):
        fit_rcnn_weights({name: torch.zeros(3, 4)}, ours)
    maps = "roi_heads.keypoint_head.score_lowres.bias"
    with pytest.raises(ValueError, match=rf"{maps} is \(14,\) in the weights and \(51,\)"):
        fit_rcnn_weights({maps: torch.zeros(14)}, ours)
    with pytest.raises(ValueError, match="nothing in these weights belongs to the network"):
        fit_rcnn_weights({"head.weight": torch.zeros(3)}, ours)


def test_trunk_and_pyramid_of_the_drawn_people_s_network(paper_config):
    source = build_model(paper_config("quick/drawn_v1.yaml", ["MODEL.PRN.NODES", "8"]))
    network = build_model(paper_config("MultitaskRCNN/quick_drawn_v1.yaml"))
    weights, wanted = source.state_dict(), network.state_dict()
    found = trunk_weights(weights, wanted)
    missing, unexpected = network.load_state_dict(found, strict=False)
    assert not unexpected
    assert not any(n.startswith("backbone.") and "num_batches" not in n for n in missing)
    source.eval(), network.eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs, ours = source.backbone(image), network.backbone(image)
    for level in "2345":
        torch.testing.assert_close(ours[f"p{level}"], theirs[f"k{level}"], atol=1e-4, rtol=1e-4)
    first = "backbone.bottom_up.stem.conv1.weight"
    with pytest.raises(ValueError, match=f"the trunk has no {first}"):
        trunk_weights({k: v for k, v in weights.items() if k != first}, wanted)
    with pytest.raises(ValueError, match=r"stem\.conv1\.weight is \(3,\), the network's"):
        trunk_weights({**weights, first: torch.zeros(3)}, wanted)
