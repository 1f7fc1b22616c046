"""Detectron2's RetinaNet and Keypoint R-CNN, as their model zoo writes them."""

from __future__ import annotations

import pickle

import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model

from mpn_d2.convert import convert
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.modeling.weight_settings import check_settings
from mpn_d2.utils.safe_files import read_foreign_weights

NARROW = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32]
NARROW += ["MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.FPN.OUT_CHANNELS", 16]
# R_50.yaml under the settings of the zoo.
ZOO = ["INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"]
ZOO += ["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", "MODEL.RESNETS.STRIDE_IN_1X1", "True"]
ZOO += ["MODEL.RESNETS.NORM", "FrozenBN"]
ANCHORS = ["MODEL.ANCHOR_GENERATOR.OFFSET", "0.0"]
# Nothing is cut off, and no two anchors have just this IoU: sizes are rounded in our configs.
OPEN = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.01, "TEST.DETECTIONS_PER_IMAGE", 1_000_000]
OPEN += ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", 1_000_000, "MODEL.RETINANET.NMS_THRESH_TEST", 0.47]
IMAGE = torch.randint(0, 256, (3, 90, 130), generator=torch.Generator().manual_seed(2)).byte()


def zoo_model(name: str, options: list):
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *NARROW, *options])
    model = build_model(cfg).eval()
    for name, buffer in model.named_buffers():
        # Frozen norms as trained ones have them.
        if name.endswith("norm.running_var") or name.endswith("norm.weight"):
            buffer.copy_(0.5 + torch.rand(buffer.shape))
        elif name.endswith(("norm.bias", "norm.running_mean")):
            buffer.copy_(0.2 * torch.randn(buffer.shape))
    return model


def write_zoo_file(model, path):
    """A .pkl as published: numpy arrays, author, anchors and pixel buffers of old versions."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    weights["pixel_mean"] = model.pixel_mean.numpy()
    weights["pixel_std"] = model.pixel_std.numpy()
    content = {"model": weights, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content))
    return str(path)


@pytest.fixture(scope="module")
def retinanet():
    torch.manual_seed(5)
    model = zoo_model("COCO-Detection/retinanet_R_50_FPN_1x.yaml", OPEN)
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.3)
    torch.nn.init.normal_(model.head.bbox_pred.weight, std=0.05)
    return model


@pytest.fixture()
def converted(retinanet, tmp_path):
    done = convert(
        "detectron2_retinanet", read_foreign_weights(write_zoo_file(retinanet, tmp_path / "r.pkl"))
    )
    path = str(tmp_path / "ours.pth")
    torch.save({"model": done.weights, "settings": done.settings}, path)
    return path


def our_model(paper_config, path: str, options: list):
    narrow = [str(x) for x in [*NARROW, *OPEN, "MODEL.PRN.NODES", 4]]
    cfg = paper_config("MultiPoseNet/R_50.yaml", [*narrow, *ZOO, *options])
    model = build_model(cfg).eval()
    checkpointer = PoseCheckpointer(model, cfg=cfg)
    checkpointer.load(path)
    return model, checkpointer.not_loaded


def test_person_boxes_are_those_of_class_0(retinanet, converted, paper_config):
    model, not_loaded = our_model(paper_config, converted, ANCHORS)
    parts = {name.split(".")[1 if name.startswith("backbone") else 0] for name in not_loaded}
    assert parts == {"keypoint_fpn", "keypoint_head", "assembler"}
    image = {"image": IMAGE, "height": 180, "width": 260}
    with torch.no_grad():
        theirs = retinanet([image])[0]["instances"]
        ours = model([image])[0]["instances"]
    theirs = theirs[theirs.pred_classes == 0]
    assert len(theirs) > 50 and theirs.scores.max() > 0.1
    assert len(ours) == len(theirs)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"\(MODEL\.ANCHOR_GENERATOR\.OFFSET is 0\.5\)"),
        ([*ANCHORS, "INPUT.FORMAT", "RGB"], r"\(INPUT\.FORMAT is 'RGB'\): give INPUT.FORMAT \"BGR"),
        ([*ANCHORS, "MODEL.RESNETS.STRIDE_IN_1X1", "False"], r"STRIDE_IN_1X1 is False"),
        ([*ANCHORS, "MODEL.RESNETS.DEPTH", "101"], r"DEPTH is 101"),
    ],
)
def test_other_settings_are_refused(options, message, converted, paper_config):
    with pytest.raises(ValueError, match=message):
        our_model(paper_config, converted, options)


def test_keypoint_rcnn_fills_trunk_and_keypoint_pyramid(tmp_path, paper_config):
    torch.manual_seed(6)
    heads = ["MODEL.ROI_BOX_HEAD.FC_DIM", 8, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [8]]
    theirs = zoo_model("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", heads)
    state = read_foreign_weights(write_zoo_file(theirs, tmp_path / "k.pkl"))
    done = convert("detectron2_keypoint_rcnn", state)
    assert any(name.startswith("roi_heads.keypoint_head.") for name in done.unused)
    path = str(tmp_path / "ours.pth")
    torch.save({"model": done.weights, "settings": done.settings}, path)
    model, not_loaded = our_model(paper_config, path, [])
    assert not any(name.startswith(("backbone.bottom_up", "backbone.key")) for name in not_loaded)
    image = [{"image": IMAGE}]
    with torch.no_grad():
        expected = theirs.backbone(theirs.preprocess_image(image).tensor)
        found = model.backbone(model.preprocess_image(image).tensor)
    for level in range(2, 6):
        torch.testing.assert_close(found[f"k{level}"], expected[f"p{level}"], rtol=1e-4, atol=1e-4)


def test_names_that_lack_and_names_too_many_are_listed(retinanet):
    state = retinanet.state_dict()
    broken = dict(state)
    for name in (
        "backbone.bottom_up.res3.1.conv2.norm.bias",
        "backbone.bottom_up.res4.0.shortcut.weight",
        "backbone.bottom_up.stem.conv1.norm.running_var",
        "head.cls_score.bias",
        "backbone.top_block.p7.weight",
    ):
        del broken[name]
    broken["head.centerness.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        convert("detectron2_retinanet", broken)
    message = str(error.value)
    for name in set(state) - set(broken):
        assert name in message
    assert "5 missing" in message and "1 unknown: head.centerness.weight" in message
    with pytest.raises(ValueError, match=r"no ResNet of Detectron2's model zoo"):
        convert("detectron2_retinanet", {"stem.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="class outputs of 80 channels: no multiple of 9"):
        convert("detectron2_retinanet", {**state, "head.cls_score.weight": torch.zeros(80, 1)})


@pytest.mark.parametrize(
    ("source", "zoo", "ours", "needed"),
    [
        (
            "detectron2_retinanet",
            "COCO-Detection/retinanet_R_101_FPN_3x.yaml",
            "MultiPoseNet/R_101.yaml",
            ANCHORS,
        ),
        (
            "detectron2_keypoint_rcnn",
            "COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x.yaml",
            "MultiPoseNet/R_101.yaml",
            [],
        ),
        (
            "detectron2_keypoint_rcnn",
            "COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x.yaml",
            "MultiPoseNet/X_101_32x8d.yaml",
            [],
        ),
    ],
)
def test_full_size_networks_fit_our_configs(source, zoo, ours, needed, paper_config):
    """Shapes alone; docs/checkpoints.md has these pairs."""
    cfg = model_zoo.get_config(zoo)
    cfg.MODEL.DEVICE = "meta"
    own = paper_config(ours, needed)
    own.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        state, places = build_model(cfg).state_dict(), build_model(own).state_dict()
    done = convert(source, state)
    assert {n: x.shape for n, x in done.weights.items()} == {
        n: places[n].shape for n in done.weights
    }
    check_settings(done.settings, done.weights, own, "x")
    # They are the settings of the zoo's own config.
    trunk = done.settings["backbone.bottom_up."]
    assert trunk["INPUT.FORMAT"] == cfg.INPUT.FORMAT
    assert trunk["MODEL.PIXEL_MEAN"] == cfg.MODEL.PIXEL_MEAN
    assert trunk["MODEL.PIXEL_STD"] == cfg.MODEL.PIXEL_STD
    assert trunk["MODEL.RESNETS.STRIDE_IN_1X1"] == cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert trunk["MODEL.RESNETS.DEPTH"] == cfg.MODEL.RESNETS.DEPTH
