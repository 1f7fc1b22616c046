"""Training people for the keypoint-to-person assembly, from annotations alone (no images).

A sample is one annotated person together with the labelled joints of everybody in the image:
{"image_id", "keypoints": (people, K, 3) float32 x, y, v in continuous image pixels, "owner": row
of the sample's person, "box": (4,) float32 x1, y1, x2, y2}. Spec sections 5.4 and 9.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import IterableDataset

from mpn_d2.data.datasets import has_keypoints

CURRICULA = ("sorted", "none")


def build_association_samples(
    dataset_dicts: list[dict], min_keypoints: int, num_keypoints: int | None = None
) -> list[dict]:
    """Samples of all people who are no crowd and have enough labelled keypoints.

    Args:
        dataset_dicts: Detectron2's dataset dicts (keypoints already in continuous pixels).
        min_keypoints: fewest labelled keypoints (v > 0) of a sample's person.
        num_keypoints: K of the skeleton; None takes that of the first person.

    Returns:
        Samples in the order of the annotations. People with fewer keypoints, and crowds with
        labelled keypoints, are no samples but stay among everybody's joints. Samples of one
        image share their "keypoints" tensor.

    Raises:
        ValueError: keypoints that are not K, with the image named.
    """
    samples = []
    length = 3 * (num_keypoints or 0)
    for record in dataset_dicts:
        people = [a for a in record.get("annotations", ()) if has_keypoints(a)]
        if not people:
            continue
        length = length or len(people[0]["keypoints"])
        for person in people:
            if len(person["keypoints"]) != length or length % 3:
                raise ValueError(
                    f"image {record['image_id']}: a person has {len(person['keypoints']) / 3:g} "
                    f"keypoints, expected {length / 3:g}: correct the annotations, or set "
                    "MODEL.SKELETON to the dataset's"
                )
        flat = torch.tensor([person["keypoints"] for person in people], dtype=torch.float32)
        keypoints = flat.view(len(people), -1, 3)
        labelled = (keypoints[..., 2] > 0).sum(dim=1).tolist()
        for owner, person in enumerate(people):
            if person.get("iscrowd", 0) or labelled[owner] < min_keypoints:
                continue
            box = BoxMode.convert(list(person["bbox"]), person["bbox_mode"], BoxMode.XYXY_ABS)
            samples.append(
                {
                    "image_id": record["image_id"],
                    "keypoints": keypoints,
                    "owner": owner,
                    "box": torch.tensor(box, dtype=torch.float32),
                }
            )
    return samples


def order_samples(samples: list[dict], curriculum: str, seed: int, epoch: int = 0) -> list[dict]:
    """The samples in the order of one epoch.

    Args:
        samples: see `build_association_samples`.
        curriculum: "sorted": people with many labelled keypoints first, among equals the largest
            box (paper: each epoch goes from easy to hard); every epoch alike. "none": shuffled.
        seed: of the shuffling; the same on all processes.
        epoch: each epoch shuffles anew.
    """
    _check_curriculum(curriculum)
    if curriculum == "sorted":
        # Stable: equal people keep the order of the annotations.
        return sorted(samples, key=_ease, reverse=True)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [samples[index] for index in torch.randperm(len(samples), generator=generator).tolist()]


class AssociationStream(IterableDataset):
    """Endless batches of samples, resumable and sharded; see `build_association_loader`."""

    def __init__(
        self,
        samples: list[dict],
        batch_size: int,
        curriculum: str,
        seed: int,
        start: int,
        flip_prob: float,
        flip_indices: Sequence[int],
    ) -> None:
        # The sorted order never changes, and sorting 150,000 people takes seconds.
        self.samples = samples if curriculum == "none" else order_samples(samples, curriculum, seed)
        self.batch_size = batch_size
        self.curriculum = curriculum
        self.seed = seed
        self.start = start
        self.flip_prob = flip_prob
        self.flip_indices = list(flip_indices)

    def __iter__(self) -> Iterator[list[dict]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        position = self.start * self.batch_size
        epoch, offset = divmod(position, len(self.samples))
        stream = itertools.chain.from_iterable(
            self._epoch(number)[offset if number == epoch else 0 :]
            for number in itertools.count(epoch)
        )
        for first in itertools.count(position, self.batch_size):
            batch = list(itertools.islice(stream, self.batch_size))
            yield [
                self._augmented(sample, place) for place, sample in enumerate(batch, start=first)
            ][rank::world]

    def _augmented(self, sample: dict, position: int) -> dict:
        """The sample or its mirror image, drawn by the position in the stream alone."""
        if np.random.default_rng((self.seed, position)).random() >= self.flip_prob:
            return sample
        return mirror_sample(sample, self.flip_indices)

    def _epoch(self, number: int) -> list[dict]:
        if self.curriculum == "sorted":
            return self.samples
        return order_samples(self.samples, self.curriculum, self.seed, number)


def mirror_sample(sample: dict, flip_indices: Sequence[int]) -> dict:
    """A sample in which left and right are exchanged, about the middle of its box.

    Args:
        sample: see the head of this file; stays as it is.
        flip_indices: K, the joint that each joint becomes (`Skeleton.flip_indices`).
    """
    keypoints = sample["keypoints"][:, list(flip_indices)].clone()
    keypoints[..., 0] = sample["box"][0] + sample["box"][2] - keypoints[..., 0]
    return {**sample, "keypoints": keypoints}


def build_association_loader(
    samples: list[dict],
    batch_size: int,
    curriculum: str,
    seed: int,
    start: int = 0,
    flip_prob: float = 0.0,
    flip_indices: Sequence[int] = (),
) -> AssociationStream:
    """An endless iterable of batches; epochs follow one another without a short last batch.

    Args:
        samples: see `build_association_samples`.
        batch_size: people per step over all processes together.
        curriculum, seed: see `order_samples`.
        start: steps (batches) already done; the stream goes on exactly there.
        flip_prob: probability, 0 to 1, that a sample is its mirror image.
        flip_indices: see `mirror_sample`; needed where flip_prob is not 0.

    Returns:
        Iterable of lists of samples; process r of n gets every n-th sample of a batch from r on.

    Raises:
        ValueError: no samples, or a batch that does not divide among the processes.
    """
    _check_curriculum(curriculum)
    world = comm.get_world_size()
    if not samples:
        raise ValueError(
            "no person to train the assembly on: nobody in DATASETS.TRAIN has as many labelled "
            "keypoints as MODEL.PRN.MIN_KEYPOINTS asks for; lower it or name other datasets"
        )
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"a batch of {batch_size} people does not divide among {world} processes; "
            "change SOLVER.IMS_PER_BATCH"
        )
    return AssociationStream(samples, batch_size, curriculum, seed, start, flip_prob, flip_indices)


def _ease(sample: dict) -> tuple[int, float]:
    labelled = int((sample["keypoints"][sample["owner"], :, 2] > 0).sum())
    x1, y1, x2, y2 = sample["box"].tolist()
    return labelled, (x2 - x1) * (y2 - y1)


def _check_curriculum(curriculum: str) -> None:
    if curriculum not in CURRICULA:
        known = ", ".join(CURRICULA)
        raise ValueError(f"MODEL.PRN.CURRICULUM is {curriculum!r}; choose one of {known}")
