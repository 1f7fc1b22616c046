"""A small network with random weights that finds as many people as a picture has contrast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mpn_d2.config import load_config
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.views import View, Viewer

REPO = Path(__file__).resolve().parents[1]
CONFIG = "MultiPoseNet/R_18_small.yaml"
SMALL = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.PRN.NODES", "8"]
SMALL += ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96", "MODEL.PEAKS.THRESH", "0.55"]
# Batch norm lets contrast through; the mean is a colour that a picture can have.
SMALL += ["MODEL.FPN.NORM", "BN", "MODEL.RETINANET.NORM", "BN", "MODEL.KP_SUBNET.NORM", "BN"]
SMALL += ["MODEL.PIXEL_MEAN", "[103.0, 116.0, 123.0]", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.3"]
SMALL += ["MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.4", "TEST.DETECTIONS_PER_IMAGE", "25"]
LEARNED = ["MODEL.ASSEMBLER.EVIDENCE", "learned", "MODEL.ASSEMBLER.SAMPLES", "images"]
LEARNED += ["MODEL.ASSEMBLER.WEIGHTS", "assembler_coco.pth", "MODEL.PRN.CURRICULUM", "none"]
LEARNED += ["MODEL.ASSEMBLER.POSE_SCORE", "['keypoints', 'evidence', 'oks']"]
ARGMAX = ["MODEL.ASSEMBLER.FALLBACK", "argmax"]
HEATMAP = ["MODEL.PRN.INPUT_MODE", "heatmap"]
# Height and width: none is that of the trace; the second and third are reduced to the largest
# longer side, the third rows first.
SIZES = ((33, 47), (70, 110), (150, 61))


def small_config(*options: str):
    """The config with options, not frozen."""
    return load_config(str(REPO / "configs" / CONFIG), [*SMALL, *options])


def small_network(cfg):
    """The config's network with random weights, in evaluation mode."""
    torch.manual_seed(3)
    model = build_pose_model(cfg).eval()
    with torch.no_grad():
        model.head.cls_score.weight.mul_(1000)
        model.head.bbox_pred.weight.mul_(100)
        # Logarithms beside peaks, which decoding takes, are of no numbers about 0.
        model.keypoint_head.predictor.bias.fill_(0.5)
    return model


def picture(height: int, width: int, contrast: float, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 BGR, coarse noise about the mean colour; nothing at contrast 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-100, 100, (height // 8 + 1, width // 8 + 1, 3))
    values = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return (np.array([103.0, 116.0, 123.0]) + contrast * values).clip(0, 255).round().astype("u1")


def predict(cfg, model, image: np.ndarray) -> dict:
    """What a model finds on an image (H, W, 3), resized as at test time."""
    viewer = Viewer.from_config(cfg, model)
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    whole = View((0, 0, image.shape[1], image.shape[0]))
    with torch.no_grad():
        return model([viewer.network_input(tensor, cfg.INPUT.FORMAT, whole)])[0]


def picture_of_one(cfg, model) -> np.ndarray:
    """A picture in which the model finds one person."""
    for contrast in np.linspace(0.02, 1.0, 50):
        image = picture(72, 66, contrast)
        count = len(predict(cfg, model, image)["instances"])
        if count:
            break
    assert count == 1, f"{count} people at contrast {contrast:.2f}"
    return image
