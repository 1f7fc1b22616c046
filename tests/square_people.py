"""People that a few lines of numpy find: upright rectangles of one colour each, on grey.

`SquareNetwork` stands for a trained network where a test asks what becomes of its results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from mpn_d2.structures.skeleton import get_skeleton

# The class under PosePredictor; monkeypatch it with SquareNetwork.
NETWORK = "mpn_d2.engine.pose_predictor.ImagePredictor"
COCO = get_skeleton("coco")
K = COCO.num_keypoints
GREY = 90
# (RGB, box score) by person; the poses score half of it.
PEOPLE = {"red": ((220, 30, 30), 0.9), "blue": ((30, 30, 220), 0.8), "green": ((30, 200, 30), 0.4)}
# Where joints lie in the box.
JOINTS = np.random.default_rng(3).uniform(0.1, 0.9, (K, 2)).astype(np.float32)


def scene(people: dict[str, tuple[int, int, int, int]], size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 with boxes x1, y1, x2, y2 by colour."""
    image = np.full((*size, 3), GREY, np.uint8)
    for name, (x1, y1, x2, y2) in people.items():
        image[y1:y2, x1:x2] = PEOPLE[name][0]
    return image


class SquareNetwork:
    """Stands in for `mpn_d2.engine.predictor.ImagePredictor`; the last joint is never found."""

    def __init__(self, cfg: CfgNode | None = None, weights: str = "") -> None:
        self.heatmaps = cfg is not None and cfg.EVAL.get("HEATMAPS", False)
        self.batches: list[int] = []

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict]:
        self.batches.append(len(images))
        return [self._find(image) for image in images]

    def _find(self, image: np.ndarray) -> dict:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        boxes, poses, scores = [], [], []
        covered = np.zeros(image.shape[:2], np.float32)
        for color, score in PEOPLE.values():
            # Videos blur colours.
            mask = np.abs(image.astype(int) - color).max(axis=2) < 60
            rows, columns = np.nonzero(mask)
            if len(rows) < 20:
                continue
            covered[mask] = 0.9
            low = np.array([columns.min(), rows.min()], np.float32)
            high = np.array([columns.max() + 1, rows.max() + 1], np.float32)
            boxes.append(np.concatenate([low, high]))
            pose = np.concatenate([low + JOINTS * (high - low), np.full((K, 1), 0.7)], axis=1)
            pose[-1] = 0
            poses.append(pose)
            scores.append(score)
        count = len(boxes)
        instances = Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.tensor(np.array(boxes, np.float32).reshape(count, 4))),
            scores=torch.tensor(scores),
            pose_scores=torch.tensor(scores) / 2,
            pred_classes=torch.zeros(count, dtype=torch.long),
            pred_keypoints=torch.tensor(np.array(poses, np.float32).reshape(count, K, 3)),
        )
        mask = torch.from_numpy(covered)
        result = {"instances": instances, "sem_seg": torch.stack([1 - mask, mask])}
        if self.heatmaps:
            # A quarter of the image: bright where the person is.
            result["heatmaps"] = mask[None, ::4, ::4].repeat(K, 1, 1)
        return result
