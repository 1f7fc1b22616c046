"""Keypoints and boxes as a detector gives them, made from annotations: with scores, some missed,
some found twice, some false. What scores of poses are compared on without any image.
"""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

import numpy as np
import torch

from mpn_d2.data.association_noise import Noise, noisy_boxes, random_scores
from mpn_d2.evaluation.scenes import NOBODY, Scene, annotated_scenes
from mpn_d2.structures.outputs import Candidates
from mpn_d2.structures.skeleton import Skeleton

# Of keypoints.
_KEYPOINTS = Noise(missing=0.1, false=0.2, position=0.5)
# Of boxes: shares of people found, and of these found twice; standard deviation of the sides of the
# better and of the worse box; false boxes per image; their sides as a share of the image's.
_FOUND, _TWICE = 0.95, 0.2
_SIDES, _WORSE_SIDES = 0.05, 0.15
_FALSE_BOXES = 2.0
_FALSE_SIDES = (0.05, 0.5)


def simulated_detections(
    dataset_dicts: list[dict], skeleton: Skeleton, *, seed: int = 0
) -> list[Scene]:
    """Scenes of annotated images as a detector might give them, the same for the same seed.

    A tenth of the keypoints is missing, a fifth as many are false, the others are half a COCO sigma
    off. True keypoints and the better box of a person have the larger of two uniform scores between
    0.1 and 1, false ones and further boxes the smaller.
    """
    scenes = annotated_scenes(
        dataset_dicts,
        skeleton.num_keypoints,
        noise=_KEYPOINTS,
        sigmas=skeleton.sigmas,
        seed=seed,
    )
    return [_detected(scene, seed) for scene in scenes]


def _detected(scene: Scene, seed: int) -> Scene:
    rng = np.random.default_rng((seed, crc32(f"boxes of {scene.image_id}".encode())))
    found = torch.from_numpy(rng.random(len(scene.boxes)) < _FOUND)
    twice = found & torch.from_numpy(rng.random(len(scene.boxes)) < _TWICE)
    false = _false_boxes(scene.size, rng)
    boxes = [
        noisy_boxes(scene.boxes[found], _SIDES, rng),
        noisy_boxes(scene.boxes[twice], _WORSE_SIDES, rng),
        false,
    ]
    others = torch.full((int(twice.sum()) + len(false),), NOBODY)
    candidates = scene.candidates
    scores = _scores(scene.owners.ge(0), rng)
    return replace(
        scene,
        candidates=Candidates(candidates.points, candidates.types, scores),
        boxes=torch.cat(boxes),
        box_scores=_scores(torch.arange(sum(map(len, boxes))) < len(boxes[0]), rng),
        people=torch.cat([scene.people[found], others]),
    )


def _false_boxes(size: tuple[int, int], rng: np.random.Generator) -> torch.Tensor:
    count = int(rng.poisson(_FALSE_BOXES))
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    sides = torch.from_numpy(rng.uniform(*_FALSE_SIDES, size=(count, 2))).float()
    corner = torch.from_numpy(rng.random((count, 2))).float() * (1 - sides)
    return torch.cat([corner, corner + sides], dim=1) * extent.repeat(2)


def _scores(true: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """(n,) scores of what is true and what is not."""
    count = len(true)
    large = random_scores(true[:, None], count, rng)[:, 0]
    small = random_scores(true[:, None], 0, rng)[:, 0]
    return torch.where(true, large, small)
