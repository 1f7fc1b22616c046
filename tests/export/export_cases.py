"""A small network with random weights that finds nobody on black and many people on noise."""

from __future__ import annotations

import copy

from pathlib import Path

import numpy as np
import torch

from mpn_d2.config import load_config
from mpn_d2.engine.build import build_pose_model

REPO = Path(__file__).resolve().parents[2]
CONFIG = "MultiPoseNet/R_18_small.yaml"
SMALL = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.PRN.NODES", "8"]
SMALL += ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96", "MODEL.PEAKS.THRESH", "0.02"]
SMALL += ["MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.0", "TEST.DETECTIONS_PER_IMAGE", "25"]
LEARNED = ["MODEL.ASSEMBLER.EVIDENCE", "learned", "MODEL.ASSEMBLER.SAMPLES", "images"]
LEARNED += ["MODEL.ASSEMBLER.WEIGHTS", "assembler_coco.pth", "MODEL.PRN.CURRICULUM", "none"]
LEARNED += ["MODEL.ASSEMBLER.POSE_SCORE", "['keypoints', 'evidence', 'oks']"]
ARGMAX = ["MODEL.ASSEMBLER.FALLBACK", "argmax"]
HEATMAP = ["MODEL.PRN.INPUT_MODE", "heatmap"]
# Height and width of noise images: none is that of the trace; the second and third are resized to
# the largest longer side, the third rows first.
SIZES = ((33, 47), (70, 110), (150, 61))


def small_config(*options: str):
    """The config with options, not frozen."""
    return load_config(str(REPO / "configs" / CONFIG), [*SMALL, *options])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 with coarse and fine structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (height // 8 + 1, width // 8 + 1, 3))
    image = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return (image + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)


def black(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.zeros((height, width, 3), np.uint8)


def spread_network(cfg):
    """The config's network with random weights, people's scores spread, in evaluation mode."""
    torch.manual_seed(3)
    model = build_pose_model(cfg).eval()
    with torch.no_grad():
        model.head.cls_score.weight.mul_(30)
        model.keypoint_head.predictor.weight.mul_(4)
    return model


def people_threshold(cfg, model) -> float:
    """A box score that noise of all SIZES exceeds and black does not."""
    from mpn_d2.engine.views import View, Viewer

    probe = copy.deepcopy(model)
    probe.test_score_thresh = 0.0
    viewer = Viewer.from_config(cfg, probe)

    def best(image: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        whole = View((0, 0, image.shape[1], image.shape[0]))
        with torch.no_grad():
            found = probe([viewer.network_input(tensor, cfg.INPUT.FORMAT, whole)])[0]["instances"]
        return found.scores

    low = max(float(best(black(*size)).max()) for size in SIZES)
    high = min(float(best(noise(*size)).sort(descending=True).values[14]) for size in SIZES)
    assert low < high, (low, high)
    return (low + high) / 2
