"""Exported files run by ONNX Runtime and TorchScript against the model in PyTorch."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
import torch
from export_cases import (
    ARGMAX,
    LEARNED,
    SIZES,
    picture,
    picture_of_one,
    predict,
    small_config,
    small_network,
)
from torchvision.ops import deform_conv2d

from mpn_d2.export import files, writing
from mpn_d2.export.agreement import reference_model
from mpn_d2.export.files import DESCRIPTION, require_export_packages
from mpn_d2.export.network import OUTPUT_NAMES
from mpn_d2.export.runtime import ExportedFile
from mpn_d2.structures.skeleton import get_skeleton

KINDS = {"prn": ARGMAX, "learned": LEARNED}
BOUNDS = {"boxes": 0.01, "scores": 1e-5, "pose_scores": 1e-5, "keypoints": 0.01}


def need(*names: str) -> None:
    for name in names:
        pytest.importorskip(name, reason=f"{name} is missing: the extra `export` brings it")


@pytest.fixture(
    scope="module", params=[("prn", "onnx"), ("learned", "onnx"), ("prn", "torchscript")]
)
def written(request, tmp_path_factory):
    """Config, model, opened file and path of an export that passed its own comparison."""
    kind, file_format = request.param
    if file_format == "onnx":
        need("onnx", "onnxruntime")
    # What the trace sees must not matter: here many people, there nobody.
    traced = picture(50, 80, 0.0 if kind == "learned" else 1.0)
    cfg = small_config(*KINDS[kind])
    model = small_network(cfg)
    path = tmp_path_factory.mktemp("export") / "network"
    images = [("noise", picture(*SIZES[1], 0.6))]
    with mock.patch.object(files, "_noise", lambda: torch.from_numpy(traced)):
        done = writing.write_export(cfg, model, path, kind=file_format, images=images)
    assert done.size == path.stat().st_size and done.seconds > 0
    # The picture and its parts.
    assert done.agreement.images == 4 and done.agreement.people > 20
    return cfg, model, ExportedFile(path), path


def assert_agrees(written, image: np.ndarray) -> int:
    cfg, model, file, _ = written
    expected = predict(cfg, reference_model(model), image)
    people = expected["instances"]
    found = file.find(image)
    assert tuple(found) == OUTPUT_NAMES
    assert found["keypoints"].shape == (len(people), 17, 3)
    fields = (people.pred_boxes.tensor, people.scores, people.pose_scores, people.pred_keypoints)
    for (name, bound), wanted in zip(BOUNDS.items(), fields, strict=True):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], wanted.numpy(), atol=bound, rtol=0, err_msg=name)
    mask = expected["sem_seg"][1].numpy()
    np.testing.assert_allclose(found["person_mask"], mask, atol=1e-5, rtol=0)
    return len(people)


@pytest.mark.parametrize("size", SIZES)
def test_many_people_at_odd_sizes(written, size):
    assert assert_agrees(written, picture(*size, 1.0)) >= 15


def test_one_person_and_nobody(written):
    cfg, model, *_ = written
    assert assert_agrees(written, picture_of_one(cfg, model)) == 1
    assert assert_agrees(written, picture(45, 90, 0.0)) == 0


def test_results_are_those_of_a_model(written):
    """In full size, as evaluators want them."""
    _, _, file, _ = written
    image = picture(70, 110, 1.0)
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    (result,) = file([{"image": tensor}])
    people, found = result["instances"], file.find(image)
    assert file.full_size_input and people.image_size == (70, 110)
    np.testing.assert_array_equal(people.pred_keypoints.numpy(), found["keypoints"])
    np.testing.assert_array_equal(result["sem_seg"][1].numpy(), found["person_mask"])
    torch.testing.assert_close(result["sem_seg"].sum(dim=0), torch.ones(70, 110))


def test_the_file_describes_itself(written):
    description, skeleton = written[2].description, get_skeleton("coco")
    assert description["color_order"] == "BGR"
    assert (description["min_size"], description["max_size"]) == (64, 96)
    assert tuple(description["keypoint_names"]) == skeleton.keypoint_names
    assert [tuple(edge) for edge in description["edges"]] == list(skeleton.edges)
    assert description["box_score_thresh"] == 0.3 and description["precision"] == "fp32"
    json.dumps(description)


def test_onnx_file_is_plain(written):
    path = written[3]
    if path.read_bytes()[:2] == b"PK":
        pytest.skip("the TorchScript file")
    import onnx

    model = onnx.load(path)
    assert {x.domain for x in model.opset_import} == {""}
    assert [x.version for x in model.opset_import] == [16]
    assert DESCRIPTION in {x.key for x in model.metadata_props}
    names = {d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim}
    assert {"height", "width"} <= names
    operators = {node.op_type for node in model.graph.node}
    assert {"NonMaxSuppression", "Loop", "TopK"} <= operators


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_files_run_and_are_near(tmp_path, precision):
    need("onnx", "onnxruntime")
    cfg = small_config("MODEL.PRN.NODES", "32")
    model = small_network(cfg)
    image = picture(70, 110, 0.6)
    path = tmp_path / "small.onnx"
    done = writing.write_export(
        cfg, model, path, precision=precision, images=[("noise", image)], calibration=[image]
    )
    values = sum(p.numel() for p in model.parameters())
    assert done.size < {"fp16": 2.2, "int8": 1.5}[precision] * values
    file = ExportedFile(path)
    assert file.description["precision"] == precision
    expected = predict(cfg, reference_model(model), image)["sem_seg"][1].numpy()
    gap = np.abs(file.find(image)["person_mask"] - expected)
    # It was computed otherwise, and is not something else.
    assert 0 < gap.max() and gap.mean() < {"fp16": 0.002, "int8": 0.1}[precision]


class Shifted(ExportedFile):
    """A file whose boxes are a tenth of a pixel off."""

    def find(self, image):
        found = super().find(image)
        return {**found, "boxes": found["boxes"] + np.float32(0.1)}


def test_a_file_that_disagrees_is_not_written(tmp_path, monkeypatch):
    need("onnx", "onnxruntime")
    monkeypatch.setattr(writing, "ExportedFile", Shifted)
    cfg = small_config()
    path = tmp_path / "network.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=r"network.onnx is not written: .* noise: boxes differ"):
        writing.write_export(
            cfg, small_network(cfg), path, images=[("noise", picture(70, 110, 0.6))]
        )
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


class NotFinite(ExportedFile):
    """A file whose mask has a number that is none, as where half precision is too small."""

    def find(self, image):
        found = super().find(image)
        found["person_mask"][0, 0] = np.nan
        return found


def test_a_small_file_of_no_numbers_is_not_written(tmp_path, monkeypatch):
    cfg = small_config()
    model, images = small_network(cfg), [("noise", picture(70, 110, 0.6))]
    made = {"kind": "torchscript", "precision": "fp16", "images": images}
    done = writing.write_export(cfg, model, tmp_path / "network.pt", **made)
    assert done.agreement.people > 5 and 0 < done.agreement.largest["person_mask"] < 0.02
    (tmp_path / "network.pt").unlink()
    monkeypatch.setattr(writing, "ExportedFile", NotFinite)
    with pytest.raises(ValueError, match="is not written: its person_mask is not finite"):
        writing.write_export(cfg, model, tmp_path / "network.pt", **made)
    assert not list(tmp_path.iterdir())


def test_operations_that_onnx_has_not_are_named(tmp_path):
    need("onnx")

    class Deformable(torch.nn.Module):
        outputs = ("pixels",)

        def forward(self, image):
            pixels = image.permute(2, 0, 1)[None].float()
            offsets = torch.zeros_like(pixels[:, :2])
            return deform_conv2d(pixels, offsets, torch.ones(1, 3, 1, 1))

    message = "this network cannot be an ONNX file of opset 16 .*deform_conv2d.*: --format torch"
    with pytest.raises(ValueError, match=message):
        files.write_onnx(Deformable(), tmp_path / "network.onnx", {})


def test_a_file_that_cannot_be_run_on_an_image_says_so(tmp_path):
    class OneSize(torch.nn.Module):
        def forward(self, image):
            return image.float().view(97, 131, 3)

    path = tmp_path / "one_size.pt"
    files.write_torchscript(OneSize(), path, {})
    with pytest.raises(ValueError, match=r"one_size\.pt fails on an image of shape \(5, 7, 3\): "):
        ExportedFile(path).find(np.zeros((5, 7, 3), np.uint8))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="package onnxruntime.*pip install onnx onnxruntime"):
        require_export_packages("onnxruntime")
    with pytest.raises(ValueError, match="pip install onnx onnxruntime"):
        writing.check_export(small_config(), "onnx", "fp32")
    writing.check_export(small_config(), "torchscript", "fp32")


def test_what_does_not_go_together_is_refused(tmp_path):
    cfg = small_config()
    with pytest.raises(ValueError, match="--precision int8 .*--format onnx"):
        writing.check_export(cfg, "torchscript", "int8")
    with pytest.raises(ValueError, match="no images to compare"):
        writing.write_export(cfg, small_network(cfg), tmp_path / "x", images=[])
    with pytest.raises(FileNotFoundError, match="nothing.onnx not found"):
        ExportedFile(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("content", [b"PK no archive", b"no model"])
def test_other_files_are_refused(tmp_path, content):
    if content[:2] != b"PK":
        need("onnxruntime")
    path = tmp_path / "photo.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="photo.onnx is no exported network"):
        ExportedFile(path)
