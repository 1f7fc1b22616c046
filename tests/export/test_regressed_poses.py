"""Networks that regress poses as files: ONNX Runtime and TorchScript against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from export_cases import REPO, SIZES, picture, predict
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.engine.build import build_pose_model
from mpn_d2.export import writing
from mpn_d2.export.image_network import PEOPLE_NAMES
from mpn_d2.export.network import check_exportable, export_network
from mpn_d2.export.runtime import ExportedFile
from mpn_d2.export.soft_suppression import TracedSuppression
from mpn_d2.structures.nms import METHODS, BoxSuppression

CONFIG = "PoseRegression/R_18_small.yaml"
SMALL = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "32"]
SMALL += ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"]
# Batch norm lets contrast through, as in export_cases.py.
SMALL += ["MODEL.FPN.NORM", "BN", "MODEL.RETINANET.NORM", "BN"]
SMALL += ["MODEL.PIXEL_MEAN", "[103.0, 116.0, 123.0]", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.3"]
KEYS = "MODEL.POSE_REGRESSION."
KINDS = {
    "map": [],
    "keypoint": [KEYS + "ALIGN.MODE", "keypoint", "MODEL.RETINANET.NMS", "soft_gaussian"],
    "one stage": [KEYS + "ALIGN.MODE", "none", KEYS + "NUM_STAGES", "1", "MODEL.RETINANET.NMS"]
    + ["hard", KEYS + "FILTER.ENABLED", "False", KEYS + "TRAIN_PSM", "False"]
    + [KEYS + "TRAIN_CENTERNESS", "True", KEYS + "TEST_SCORE", "centerness"],
}


def small_config(*options: str):
    return load_config(str(REPO / "configs" / CONFIG), [*SMALL, *options])


def small_network(cfg) -> nn.Module:
    """Random weights whose outputs differ from place to place, and find more with contrast."""
    torch.manual_seed(3)
    model = build_pose_model(cfg).eval()
    head = model.head
    with torch.no_grad():
        for tower in (head.cls_tower, head.pose_tower):
            for conv in tower:
                conv.weight.mul_(5)
        for output, std in ((head.cls_output, 0.4), (head.first_output, 0.1)):
            nn.init.normal_(output.weight, std=std)
        head.cls_output.bias.fill_(-1.5)
        head.first_output.bias.normal_(std=2.0)
        if head.final_output is not None:
            nn.init.normal_(head.final_output.weight, std=0.3)
        if head.scorer is not None:
            nn.init.normal_(head.scorer.conv.weight, std=0.5)
    return model


def assert_agrees(cfg, model, found: dict[str, np.ndarray], image: np.ndarray) -> int:
    people = predict(cfg, model, image)["instances"]
    assert found["keypoints"].shape == (len(people), 17, 3)
    for name, wanted, bound in (
        ("boxes", people.pred_boxes.tensor, 0.01),
        ("scores", people.scores, 1e-5),
        ("pose_scores", people.pose_scores, 1e-5),
        ("keypoints", people.pred_keypoints, 0.01),
    ):
        np.testing.assert_allclose(found[name], wanted.numpy(), atol=bound, rtol=0, err_msg=name)
    return len(people)


@pytest.fixture(
    scope="module",
    params=[("map", "onnx"), ("keypoint", "onnx"), ("one stage", "onnx"), ("map", "torchscript")],
    ids=" ".join,
)
def written(request, tmp_path_factory):
    """Config, model and opened file of an export that passed its own comparison."""
    kind, file_format = request.param
    if file_format == "onnx":
        for name in ("onnx", "onnxruntime"):
            pytest.importorskip(name, reason=f"{name} is missing: the extra `export` brings it")
    cfg = small_config(*KINDS[kind])
    model = small_network(cfg)
    path = tmp_path_factory.mktemp("export") / "network"
    images = [("noise", picture(*SIZES[1], 0.6))]
    done = writing.write_export(cfg, model, path, kind=file_format, images=images)
    # The picture and its parts.
    assert done.agreement.images == 4 and done.agreement.people > 10
    assert "person_mask" not in done.agreement.largest
    return cfg, model, ExportedFile(path)


@pytest.mark.parametrize("size", SIZES)
def test_many_people_at_odd_sizes(written, size):
    cfg, model, file = written
    image = picture(*size, 1.0)
    found = file.find(image)
    assert tuple(found) == PEOPLE_NAMES
    assert assert_agrees(cfg, model, found, image) >= 5


def test_nobody_and_one(written):
    cfg, model, file = written
    nobody = picture(*SIZES[1], 0.0)
    assert assert_agrees(cfg, model, file.find(nobody), nobody) == 0
    tried = ((seed, contrast) for seed in range(20) for contrast in np.linspace(0.05, 1.0, 15))
    images = (picture(72, 66, contrast, seed) for seed, contrast in tried)
    one = next(x for x in images if len(predict(cfg, model, x)["instances"]) == 1)
    assert assert_agrees(cfg, model, file.find(one), one) == 1


def test_the_file_is_a_model_without_a_mask(written):
    _, _, file = written
    image = torch.from_numpy(np.ascontiguousarray(picture(70, 110, 1.0).transpose(2, 0, 1)))
    (result,) = file([{"image": image}])
    assert set(result) == {"instances"} and len(result["instances"]) > 0
    assert file.description["outputs"] == list(PEOPLE_NAMES)
    assert "matching" not in file.description and "peak_thresh" not in file.description


@pytest.mark.parametrize("bottom_up", ["resnet", "hrnet"])
def test_group_norms_and_hrnet(tmp_path, bottom_up):
    """What the paper's configs have, in sizes other than that of the trace."""
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is missing: the extra `export` brings it")
    options = ["MODEL.FPN.NORM", "GN", "MODEL.RETINANET.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", "64"]
    if bottom_up == "hrnet":
        options += ["MODEL.BACKBONE.NAME", "build_high_resolution_pyramid_backbone"]
        options += ["MODEL.POSE_FPN.BOTTOM_UP", "build_hrnet_backbone", "MODEL.HRNET.WIDTH", "4"]
        options += ["MODEL.FPN.IN_FEATURES", "['stride4', 'stride8', 'stride16', 'stride32']"]
    cfg = small_config(*options)
    model = small_network(cfg)
    images = [("noise", picture(*SIZES[1], 0.6))]
    writing.write_export(cfg, model, tmp_path / "network.onnx", images=images)
    file = ExportedFile(tmp_path / "network.onnx")
    for size in SIZES:
        image = picture(*size, 1.0)
        assert assert_agrees(cfg, model, file.find(image), image) > 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_files_run_and_are_near(tmp_path, precision):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is missing: the extra `export` brings it")
    cfg = small_config()
    model, image = small_network(cfg), picture(70, 110, 0.6)
    path = tmp_path / "small.onnx"
    done = writing.write_export(
        cfg, model, path, precision=precision, images=[("noise", image)], calibration=[image]
    )
    values = sum(p.numel() for p in model.parameters())
    assert done.size < {"fp16": 2.5, "int8": 1.7}[precision] * values
    assert done.agreement.people > 0 and done.agreement.largest["scores"] > 0


def test_half_precision_leaves_the_model():
    cfg = small_config()
    model = small_network(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = {"min_size": 64, "max_size": 96}
    image = torch.from_numpy(picture(70, 110, 1.0))
    found = export_network(model, **sizes, precision="fp16")(image)
    assert len(found) == 4 and all(x.dtype == torch.float32 for x in found)
    whole = export_network(model, **sizes)(image)
    assert abs(float(found[1][0] - whole[1][0])) < 0.05
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="precision is 'fp8'"):
        export_network(model, **sizes, precision="fp8")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("most", [1, 7, 40])
def test_suppression_in_operations_of_a_trace(method, most):
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        corner = torch.rand(30, 2, generator=draw) * 40
        boxes = torch.cat([corner, corner + torch.rand(30, 2, generator=draw) * 40], dim=1)
        boxes[:2, 2:] = boxes[:2, :2]  # of no size
        boxes[3] = boxes[4]
        scores = torch.rand(30, generator=draw)
        plain = BoxSuppression(method, 0.3, 0.4, min_score=0.1 * (seed % 2))
        kept, values = TracedSuppression(plain)(boxes, scores, most)
        expected, expected_values = plain(boxes, scores, most)
        assert kept.tolist() == expected.tolist()
        torch.testing.assert_close(values, expected_values, atol=1e-6, rtol=1e-6)
        none = TracedSuppression(plain)(boxes[:0], scores[:0], most)
        assert [len(x) for x in none] == [0, 0] and none[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["TTA.ENABLED", "True"], "TTA"),
        (["OKS_NMS.MODE", "hard"], "OKS_NMS"),
        (["SPEED.MODE", "fp32"], "SPEED.MODE"),
        (["EVAL.BOX_SOURCE", "gt"], "EVAL.BOX_SOURCE"),
    ],
)
def test_configs_that_a_file_cannot_follow_are_refused(options, key):
    with pytest.raises(ValueError, match=key):
        check_exportable(small_config(*options))
    check_exportable(small_config())
