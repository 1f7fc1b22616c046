"""Exported files: written from a network, and their description inside them."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from mpn_d2.export.image_network import INPUT_NAME, PEOPLE_NAMES, ImageNetwork
from mpn_d2.export.network import OUTPUT_NAMES, regresses
from mpn_d2.export.onnx_operators import OPSET, further_operators
from mpn_d2.structures.skeleton import get_skeleton

FORMATS = {"onnx": ".onnx", "torchscript": ".pt"}
# Key of the description: a property of an ONNX file, an extra file of a TorchScript one.
DESCRIPTION = "mpn_d2"
# Layers whose outputs are places and scores: eight bits are too few for them.
_LAST_LAYERS = (
    *("predictor", "cls_score", "bbox_pred"),  # of boxes and heatmaps
    *("cls_output", "first_output", "final_output", "centerness_output", "scorer", "to_shifts"),
)
# Weights of a linear layer from which on eight bits are worth it: the PRN's, no small ones.
_MANY_WEIGHTS = 2**16


def require_export_packages(*names: str) -> None:
    """Raises a ValueError that says how to get the first of these packages that is missing."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"export needs the package {name}, which cannot be imported ({error}): run "
                "`pip install onnx onnxruntime` (the extra `export` of mpn_d2)"
            ) from error


def describe(cfg: CfgNode, precision: str) -> dict:
    """What a user of the file has to know, as plain values for JSON."""
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    kind = {"outputs": list(PEOPLE_NAMES), "pose_min_score": cfg.MODEL.POSE_REGRESSION.MIN_SCORE}
    if not regresses(cfg):
        kind = {
            "outputs": list(OUTPUT_NAMES),
            "matching": "mutual_best",
            "pose_box_score_thresh": cfg.MODEL.ASSEMBLER.BOX_SCORE_THRESH,
            "peak_thresh": cfg.MODEL.PEAKS.THRESH,
        }
    return {
        "input": f"{INPUT_NAME}: uint8 (height, width, 3), one image of any size",
        "color_order": cfg.INPUT.FORMAT,
        **kind,
        "frame": "pixels of the image, cell i spans i to i + 1",
        "resize": "inside the file",
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "precision": precision,
        "box_score_thresh": cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
        "most_people": cfg.TEST.DETECTIONS_PER_IMAGE,
        "skeleton": skeleton.name,
        "keypoint_names": list(skeleton.keypoint_names),
        "edges": [list(edge) for edge in skeleton.edges],
        "sigmas": list(skeleton.sigmas),
    }


def write_onnx(network: ImageNetwork, path: str | os.PathLike, description: dict) -> None:
    """Writes an ONNX file of opset `OPSET`; height, width and number of people are free.

    Raises:
        ValueError: the network has operations that ONNX has not.
    """
    import onnx

    sides = {0: "height", 1: "width"}
    axes = {name: {0: "people"} for name in network.outputs}
    if "person_mask" in axes:
        axes["person_mask"] = sides
    try:
        with _quiet(), further_operators():
            torch.onnx.export(
                network,
                (_noise(),),
                os.fspath(path),
                # The exporter that traces: the other one specialises to what one image shows.
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=list(network.outputs),
                dynamic_axes={INPUT_NAME: sides, **axes},
            )
    except RuntimeError as error:  # the exporter's classes are
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"this network cannot be an ONNX file of opset {OPSET} ({reason}): --format torchscript"
        ) from error
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {DESCRIPTION: json.dumps(description)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_torchscript(network: ImageNetwork, path: str | os.PathLike, description: dict) -> None:
    """Writes a traced TorchScript file; torchvision's operators must be imported to load it."""
    with _quiet():
        traced = torch.jit.trace(network, (_noise(),), check_trace=False)
    # Not into the file itself: on a full disk torch's writer ends the process (SIGABRT).
    packed = io.BytesIO()
    torch.jit.save(traced, packed, _extra_files={DESCRIPTION: json.dumps(description)})
    Path(path).write_bytes(packed.getbuffer())


def quantize_onnx(
    source: str | os.PathLike,
    path: str | os.PathLike,
    images: Iterable[np.ndarray],
    description: dict,
) -> None:
    """Writes an 8-bit copy of an ONNX file: weights and activations of convolutions and of the
    large linear layers (QDQ, per channel), ranges measured on images (H, W, 3) uint8."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict | None:
            image = next(self.images, None)
            return None if image is None else {INPUT_NAME: image}

    with _quiet():
        quantize_static(
            os.fspath(source),
            os.fspath(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            nodes_to_quantize=_layers_to_quantize(onnx.load(source)),
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {DESCRIPTION: json.dumps(description)})
    onnx.save(model, path)


def _layers_to_quantize(model) -> list[str]:
    """Names of the nodes of an ONNX model that eight bits are for."""
    sizes = {x.name: int(np.prod(x.dims)) for x in model.graph.initializer}
    names = []
    for node in model.graph.node:
        large = node.op_type == "Gemm" and sizes.get(node.input[1], 0) >= _MANY_WEIGHTS
        if node.op_type == "Conv" or large:
            if not any(f"/{layer}" in node.name for layer in _LAST_LAYERS):
                names.append(node.name)
    return names


def _noise() -> torch.Tensor:
    """An image to trace with: what it shows must not matter, and noise shows nobody."""
    values = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    return torch.from_numpy(values)


class _quiet(warnings.catch_warnings):
    """Hides what tracing, compiling and quantizing warn of: branches and lengths that are fixed on
    purpose. That nothing else is, the comparison on other images shows."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        return self

    def __exit__(self, *error):
        logging.disable(self._level)
        return super().__exit__(*error)
