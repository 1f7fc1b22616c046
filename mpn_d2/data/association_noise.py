"""Degraded boxes and keypoints, made from annotations: what an assembler meets in practice.

All functions are pure: a generator in, copies out. Frames are continuous image pixels; boxes are
(P, 4) x1, y1, x2, y2, keypoints (rows, K, 3) x, y, v of which v > 0 counts. Review notes 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode

from mpn_d2.structures.oks import AREA_OF_BOX
from mpn_d2.structures.skeleton import get_skeleton

# Side that a jittered box keeps at least, pixels.
_SMALLEST = 1.0


@dataclass(frozen=True)
class Noise:
    """How much of each kind.

    Attributes:
        box: standard deviation of each side's place, as a share of the box's width or height.
        missing: share of the labelled keypoints that is left out.
        false: number of false keypoints, as a share of the labelled ones.
        position: standard deviation of a keypoint's place, in COCO sigmas: sigma_k of its type
            times the root of its person's area.
    """

    box: float = 0.0
    missing: float = 0.0
    false: float = 0.0
    position: float = 0.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Noise:
        """From INPUT.NOISE."""
        node = cfg.INPUT.NOISE
        return cls(node.BOX, node.MISSING, node.FALSE, node.POSITION)

    def scaled(self, factors: Sequence[float] | np.ndarray) -> Noise:
        """Each kind times a factor of its own."""
        box, missing, false, position = factors
        return Noise(
            self.box * box, self.missing * missing, self.false * false, self.position * position
        )

    def __bool__(self) -> bool:
        return any(v > 0 for v in (self.box, self.missing, self.false, self.position))


def noisy_boxes(boxes: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """Boxes whose four sides moved by normal noise of `share` of the width or height."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + sides * share * _normal(rng, boxes.shape)
    low = torch.minimum(moved[:, :2], moved[:, 2:])
    high = torch.maximum(moved[:, :2], moved[:, 2:])
    return torch.cat([low, torch.maximum(high, low + _SMALLEST)], dim=1)


def noisy_keypoints(
    keypoints: torch.Tensor,
    boxes: torch.Tensor,
    noise: Noise,
    sigmas: Sequence[float],
    rng: np.random.Generator,
) -> torch.Tensor:
    """Keypoints of one image as a detector might give them.

    Args:
        keypoints: (P, K, 3) of everybody.
        boxes: (P, 4) of the same people: false keypoints lie in and around them, and their area
            (0.53 of the box, design 7.9) scales the position noise.
        noise: `box` is not looked at.
        sigmas: (K,) OKS constants.
        rng: source of all chance.

    Returns:
        (P + Q, K, 3): the people's joints, some of them moved or with v = 0, then Q rows of false
        joints that belong to nobody.
    """
    people, types = keypoints.shape[:2]
    result = keypoints.clone()
    labelled = result[..., 2] > 0
    count = int(labelled.sum())
    if noise.position > 0:
        sides = boxes[:, 2:] - boxes[:, :2]
        scale = (AREA_OF_BOX * sides.prod(dim=1).clamp(min=0.0)).sqrt()
        spread = scale[:, None] * torch.tensor(sigmas, dtype=torch.float32) * noise.position
        result[..., :2] += spread[..., None] * _normal(rng, (people, types, 2))
    if noise.missing > 0:
        gone = torch.from_numpy(rng.random(labelled.shape) < noise.missing)
        result[..., 2] = torch.where(gone, 0.0, result[..., 2])
    extra = int(rng.poisson(count * noise.false)) if noise.false > 0 and people else 0
    if extra == 0:
        return result
    return torch.cat([result, _false_joints(boxes, extra, types, rng)])


def _false_joints(
    boxes: torch.Tensor, count: int, types: int, rng: np.random.Generator
) -> torch.Tensor:
    """(Q, K, 3) `count` joints of any type, anywhere in the boxes enlarged by a tenth."""
    owner = torch.from_numpy(rng.integers(len(boxes), size=count))
    place = torch.from_numpy(rng.uniform(-0.1, 1.1, size=(count, 2))).float()
    points = boxes[owner, :2] + place * (boxes[owner, 2:] - boxes[owner, :2])
    kind = torch.from_numpy(rng.integers(types, size=count))
    # The n-th joint of a type goes to the n-th row.
    rank = (kind[:, None] == kind).tril(-1).sum(dim=1)
    rows = torch.zeros(int(rank.max()) + 1, types, 3)
    rows[rank, kind, :2] = points
    rows[rank, kind, 2] = 2.0
    return rows


def random_scores(candidates: torch.Tensor, people: int, rng: np.random.Generator) -> torch.Tensor:
    """(rows, K) scores between 0.1 and 1 that tell something of who is false, and no more.

    Joints of people (the first rows) get the larger of two uniform numbers, false ones the smaller.
    """
    pairs = rng.uniform(0.1, 1.0, size=(2, *candidates.shape[:2]))
    true = np.arange(len(candidates))[:, None] < people
    return torch.from_numpy(np.where(true, pairs.max(axis=0), pairs.min(axis=0))).float()


def _normal(rng: np.random.Generator, shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape))).float()


def mirror_sample(sample: dict, flip_indices: Sequence[int]) -> dict:
    """A sample in which left and right are exchanged, about the middle of its box or boxes.

    Args:
        sample: see data/association.py; stays as it is.
        flip_indices: K, the joint that each joint becomes (`Skeleton.flip_indices`).
    """
    boxes = sample["box"][None] if "box" in sample else sample["boxes"]
    total = boxes[:, 0].min() + boxes[:, 2].max()
    keypoints = sample["keypoints"][:, list(flip_indices)].clone()
    keypoints[..., 0] = total - keypoints[..., 0]
    if "box" in sample:
        return {**sample, "keypoints": keypoints}
    x1, y1, x2, y2 = boxes.unbind(1)
    return {
        **sample,
        "keypoints": keypoints,
        "boxes": torch.stack([total - x2, y1, total - x1, y2], dim=1),
    }


@dataclass(frozen=True)
class AssociationAugmentation:
    """What happens to training samples: mirrored, degraded, with boxes that own nothing.

    Attributes:
        flip_prob: probability of the mirror image.
        flip_indices: see `mirror_sample`.
        noise: the most of each kind; what a sample gets is uniform from none to that.
        noise_prob: probability that a sample is degraded at all.
        sigmas: (K,) OKS constants.
        unannotated: probability that somebody of an image sample loses all her joints and keeps her
            box, as people without annotated keypoints.
        crowd: probability that an image sample gets one more box, around several people.
        scored: probability that the candidates of a degraded image sample get scores.
    """

    flip_prob: float = 0.0
    flip_indices: tuple[int, ...] = ()
    noise: Noise = Noise()
    noise_prob: float = 0.0
    sigmas: tuple[float, ...] = ()
    unannotated: float = 0.0
    crowd: float = 0.0
    scored: float = 0.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> AssociationAugmentation:
        """From MODEL.PRN.FLIP_PROB and INPUT.NOISE."""
        skeleton = get_skeleton(cfg.MODEL.SKELETON)
        return cls(
            flip_prob=cfg.MODEL.PRN.FLIP_PROB,
            flip_indices=tuple(skeleton.flip_indices),
            noise=Noise.from_config(cfg),
            noise_prob=cfg.INPUT.NOISE.PROB,
            sigmas=tuple(skeleton.sigmas),
            unannotated=cfg.INPUT.NOISE.UNANNOTATED,
            crowd=cfg.INPUT.NOISE.CROWD,
            scored=cfg.INPUT.NOISE.SCORED,
        )

    def __call__(self, sample: dict, rng: np.random.Generator) -> dict:
        """A changed copy, or the sample itself; chance comes from `rng` alone."""
        if rng.random() < self.flip_prob:
            sample = mirror_sample(sample, self.flip_indices)
        if "boxes" in sample:
            sample = self._with_idle_boxes(sample, rng)
        if self.noise and rng.random() < self.noise_prob:
            sample = self._degraded(sample, self.noise.scaled(rng.random(4)), rng)
        return sample

    def _with_idle_boxes(self, sample: dict, rng: np.random.Generator) -> dict:
        people = len(sample["boxes"])
        if people < 2:
            return sample
        keypoints, boxes = sample["keypoints"], sample["boxes"]
        if rng.random() < self.unannotated:
            keypoints = keypoints.clone()
            keypoints[rng.integers(people)] = 0.0
        if rng.random() < self.crowd:
            members = torch.from_numpy(rng.permutation(people)[: rng.integers(2, people + 1)])
            low, high = boxes[members, :2].amin(dim=0), boxes[members, 2:].amax(dim=0)
            boxes = torch.cat([boxes, torch.cat([low, high])[None]])
            keypoints = torch.cat([keypoints, torch.zeros_like(keypoints[:1])])
        return {**sample, "keypoints": keypoints, "boxes": boxes}

    def _degraded(self, sample: dict, noise: Noise, rng: np.random.Generator) -> dict:
        keypoints = sample["keypoints"]
        if "boxes" in sample:
            boxes = sample["boxes"]
            moved = {"boxes": noisy_boxes(boxes, noise.box, rng)}
        else:
            # Only the box of the sample's person is known: others' joints move by their extent.
            boxes = _extents(keypoints)
            moved = {"box": noisy_boxes(sample["box"][None], noise.box, rng)[0]}
        candidates = noisy_keypoints(keypoints, boxes, noise, self.sigmas, rng)
        result = {**sample, **moved, "candidates": candidates}
        if "boxes" in sample and rng.random() < self.scored:
            result["candidate_scores"] = random_scores(candidates, len(keypoints), rng)
        return result


def _extents(keypoints: torch.Tensor) -> torch.Tensor:
    """(P, 4) boxes around the labelled joints of (P, K, 3) people."""
    labelled = keypoints[..., 2:] > 0
    low = torch.where(labelled, keypoints[..., :2], torch.inf).amin(dim=1)
    high = torch.where(labelled, keypoints[..., :2], -torch.inf).amax(dim=1)
    return torch.nan_to_num(torch.cat([low, high], dim=1), posinf=0.0, neginf=0.0)
