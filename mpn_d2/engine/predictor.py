"""A trained model on images that are already in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode

from mpn_d2.engine.inference_checks import reads_images
from mpn_d2.engine.inference_model import build_inference_model
from mpn_d2.engine.views import View, Viewer


class ImagePredictor:
    """Builds the model of a config, loads its weights, and predicts batches of images.

    Images are resized as at test time (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST), with the views, members
    and further steps that the config names (TTA, ENSEMBLE, REFINE, OKS_NMS); results come back in
    pixels of the images as given.
    """

    def __init__(self, cfg: CfgNode, weights: str) -> None:
        """
        Args:
            cfg: of any system of mpn_d2; left as it is.
            weights: file or address of a checkpoint, which must fit the config whole.

        Raises:
            FileNotFoundError: no such weights.
            ValueError: no weights named, weights that do not fit, a config that wants
                annotations or another image format than RGB or BGR.
        """
        if not weights:
            raise ValueError(
                "no weights to predict with: give a trained checkpoint as MODEL.WEIGHTS "
                "(MODEL.WEIGHTS output/model_final.pth)"
            )
        if cfg.SINGLE_PERSON.ENABLED:
            raise ValueError(
                "a single-person network looks at people whose boxes are known: give the config "
                "of a whole network, with this one as its REFINE.CONFIG"
            )
        if not reads_images(cfg):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} takes no images: give the "
                "config of a whole network, or assemble keypoints with tools/assemble.py"
            )
        for key in ("KEYPOINT_SOURCE", "BOX_SOURCE"):
            if cfg.EVAL[key] != "pred":
                raise ValueError(
                    f"EVAL.{key} is {cfg.EVAL[key]!r}, but these images have no annotations: "
                    "set it to pred"
                )
        self.model = build_inference_model(cfg, weights)
        # Resizing is this one's work, or that of the model itself where it takes several views.
        self.viewer = Viewer.from_config(cfg, self.model)
        if getattr(self.model, "full_size_input", False):
            self.viewer.min_size = 0

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[dict]:
        """Predicts the people in each image; an image's result does not depend on the others.

        Args:
            images: uint8 RGB arrays (H, W, 3) of any sizes, at least 1 x 1.

        Returns:
            Per image what the model returns, on its device: {"instances": Instances, "sem_seg":
            (2, H, W)} in the frame of that image.

        Raises:
            ValueError: an array of another type or shape.
        """
        inputs = [self._prepare(image) for image in images]
        return self.model(inputs) if inputs else []

    def _prepare(self, image: np.ndarray) -> dict:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(
                f"cannot predict on {image.dtype} {image.shape}: uint8 (H, W, 3) RGB is needed"
            )
        height, width = image.shape[:2]
        tensor = torch.from_numpy(np.array(image.transpose(2, 0, 1)))
        return self.viewer.network_input(tensor, "RGB", View((0, 0, width, height)))
