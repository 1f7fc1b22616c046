"""Exported files as models: what a file finds on images, as the results of its network.

Letters: H x W the image, P people, K keypoint types.
"""

from __future__ import annotations

import json
import os
import warnings

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from mpn_d2.export.files import DESCRIPTION, require_export_packages
from mpn_d2.export.image_network import INPUT_NAME


class ExportedFile(nn.Module):
    """Runs an ONNX file (ONNX Runtime, CPU) or a TorchScript one.

    As a model it takes images in full size and gives what the network that was exported does,
    {"instances"} and, where it has a person mask, "sem_seg", so that evaluators and drawing take it
    for one.

    Attributes:
        path: of the file.
        description: what is written in the file, see `files.describe`.
    """

    full_size_input = True

    def __init__(self, path: str | os.PathLike) -> None:
        """
        Args:
            path: .onnx or .pt, in any other name by its content.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file cannot be loaded, or is not one of ours.
        """
        super().__init__()
        path = self.path = os.fspath(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"exported file {path} not found")
        with open(path, "rb") as file:
            is_archive = file.read(2) == b"PK"  # TorchScript files are zip archives
        self._run = self._load_torchscript(path) if is_archive else self._load_onnx(path)

    def find(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """What the file says of an image (H, W, 3) uint8 in its colour order, by name.

        Raises:
            ValueError: it cannot be run on that image.
        """
        try:
            values = self._run(np.ascontiguousarray(image))
        except Exception as error:  # a runtime's own classes
            raise ValueError(
                f"{self.path} fails on an image of shape {image.shape}: {_first_line(error)}"
            ) from error
        return dict(zip(self.description["outputs"], values, strict=True))

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Results per image of {"image": (3, H, W) uint8 in full size}."""
        return [self._result(x["image"].permute(1, 2, 0).numpy()) for x in batched_inputs]

    def _result(self, image: np.ndarray) -> dict:
        found = {name: torch.from_numpy(value) for name, value in self.find(image).items()}
        people = Instances(
            image.shape[:2],
            pred_boxes=Boxes(found["boxes"]),
            scores=found["scores"],
            pose_scores=found["pose_scores"],
            pred_classes=torch.zeros(len(found["scores"]), dtype=torch.int64),
            pred_keypoints=found["keypoints"],
        )
        if "person_mask" not in found:
            return {"instances": people}
        person = found["person_mask"]
        return {"instances": people, "sem_seg": torch.stack([1 - person, person])}

    def _load_onnx(self, path: str):
        require_export_packages("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            properties = session.get_modelmeta().custom_metadata_map
            self.description = json.loads(properties[DESCRIPTION])
        except Exception as error:  # its own classes, one for each kind of failure
            raise ValueError(f"{path} is no exported network: {_first_line(error)}") from error
        return lambda image: session.run(None, {INPUT_NAME: image})

    def _load_torchscript(self, path: str):
        import torchvision  # noqa: F401  its operators are in the file

        extra = {DESCRIPTION: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # deprecated, but what was asked for
                network = torch.jit.load(path, map_location="cpu", _extra_files=extra)
            self.description = json.loads(extra[DESCRIPTION])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is no exported network: {_first_line(error)}") from error
        return lambda image: [x.numpy() for x in network(torch.from_numpy(image))]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
