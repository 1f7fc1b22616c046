"""Training samples for the keypoint-to-person assembly, from annotations alone (no images).

A person sample is one annotated person together with the labelled joints of everybody in the image:
{"image_id", "keypoints": (people, K, 3) float32 x, y, v in continuous image pixels, "owner": row
of the sample's person, "box": (4,) float32 x1, y1, x2, y2}. Spec sections 5.4 and 9.

An image sample is everybody of one image: {"image_id", "keypoints": (people, K, 3), "boxes":
(people, 4)}, people without labelled joints and crowds included.

Either may carry "candidates" (people and more, K, 3): the joints as a detector might give them, of
the same people in the same order, then rows of joints that belong to nobody. An image sample may
carry their "candidate_scores" (rows, K) as well; without, all are 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import IterableDataset

from mpn_d2.data.association_noise import AssociationAugmentation
from mpn_d2.data.datasets import has_keypoints

CURRICULA = ("sorted", "growing", "none")
# Fewest labelled keypoints of the people that "growing" begins with (spec section 9).
_GROWS_FROM = 4


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
    for record, people, keypoints in _images_with_keypoints(dataset_dicts, num_keypoints):
        labelled = (keypoints[..., 2] > 0).sum(dim=1).tolist()
        rows = [row for row, count in enumerate(labelled) if count]
        seen = keypoints[rows]
        for owner, row in enumerate(rows):
            if people[row].get("iscrowd", 0) or labelled[row] < min_keypoints:
                continue
            samples.append(
                {
                    "image_id": record["image_id"],
                    "keypoints": seen,
                    "owner": owner,
                    "box": _box(people[row]),
                }
            )
    return samples


def build_association_images(
    dataset_dicts: list[dict], num_keypoints: int | None = None
) -> list[dict]:
    """Image samples of all images in which anybody has labelled keypoints.

    Args, errors: as for `build_association_samples`. Crowds are people without keypoints here:
    their box is there, whatever joints it covers belong to others.
    """
    samples = []
    for record, people, keypoints in _images_with_keypoints(dataset_dicts, num_keypoints):
        crowd = torch.tensor([bool(person.get("iscrowd", 0)) for person in people])
        keypoints[crowd] = 0.0
        samples.append(
            {
                "image_id": record["image_id"],
                "keypoints": keypoints,
                "boxes": torch.stack([_box(person) for person in people]),
            }
        )
    return samples


def _images_with_keypoints(
    dataset_dicts: list[dict], num_keypoints: int | None
) -> Iterator[tuple[dict, list[dict], torch.Tensor]]:
    """Record, people and their (people, K, 3) keypoints of each image with a labelled one."""
    length = 3 * (num_keypoints or 0)
    for record in dataset_dicts:
        people = record.get("annotations", ())
        if not any(has_keypoints(person) for person in people):
            continue
        length = length or next(len(p["keypoints"]) for p in people if has_keypoints(p))
        rows = []
        for person in people:
            row = person["keypoints"] if has_keypoints(person) else [0.0] * length
            if len(row) != length or length % 3:
                raise ValueError(
                    f"image {record['image_id']}: a person has {len(row) / 3:g} "
                    f"keypoints, expected {length / 3:g}: correct the annotations, or set "
                    "MODEL.SKELETON to the dataset's"
                )
            rows.append(row)
        yield record, people, torch.tensor(rows, dtype=torch.float32).view(len(people), -1, 3)


def _box(person: dict) -> torch.Tensor:
    box = BoxMode.convert(list(person["bbox"]), person["bbox_mode"], BoxMode.XYXY_ABS)
    return torch.tensor(box, dtype=torch.float32)


class SampleOrder:
    """In which order samples train, endlessly and from any position on.

    - "sorted": people with many labelled keypoints first, among equals the largest box (paper: each
      epoch goes from easy to hard); every epoch alike.
    - "growing": people with at most 4 labelled keypoints, after `phase_length` samples those with
      at most 5 and so on, at last all; shuffled anew each epoch (spec section 9).
    - "none": all, shuffled anew each epoch.

    Args:
        samples: person samples; image samples with "none" only.
        curriculum: see above.
        seed: of the shuffling; the same on all processes.
        phase_length: samples between two steps of "growing".
    """

    def __init__(
        self, samples: list[dict], curriculum: str, seed: int, phase_length: int = 0
    ) -> None:
        _check_curriculum(curriculum)
        self.curriculum = curriculum
        self.seed = seed
        self.phase_length = max(phase_length, 1)
        # Stable: equal people keep the order of the annotations.
        self.samples = (
            sorted(samples, key=_ease, reverse=True) if curriculum == "sorted" else samples
        )
        self.limits = [0]
        if curriculum == "growing":
            self.labelled = [_ease(sample)[0] for sample in samples]
            least, most = max(_GROWS_FROM, min(self.labelled)), max(self.labelled)
            self.limits = list(range(least, max(most, least) + 1))

    def stream(self, position: int) -> Iterator[dict]:
        """The samples from a position on."""
        while True:
            phase = min(position // self.phase_length, len(self.limits) - 1)
            begin = phase * self.phase_length
            pool = self._pool(phase)
            epoch, offset = divmod(position - begin, len(pool))
            part = self._shuffled(pool, phase, epoch)[offset:]
            if phase < len(self.limits) - 1:
                part = part[: begin + self.phase_length - position]
            yield from part
            position += len(part)

    def _pool(self, phase: int) -> list[dict]:
        if self.curriculum != "growing":
            return self.samples
        limit = self.limits[phase]
        return [s for s, count in zip(self.samples, self.labelled) if count <= limit]

    def _shuffled(self, pool: list[dict], phase: int, epoch: int) -> list[dict]:
        if self.curriculum == "sorted":
            return pool
        number = self.seed * 1_000_003 + phase * 10_007 + epoch
        generator = torch.Generator().manual_seed(number)
        return [pool[index] for index in torch.randperm(len(pool), generator=generator).tolist()]


class AssociationStream(IterableDataset):
    """Endless batches of samples, resumable and sharded; see `build_association_loader`."""

    def __init__(
        self, order: SampleOrder, batch_size: int, start: int, augment: AssociationAugmentation
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self.start = start
        self.augment = augment

    def __iter__(self) -> Iterator[list[dict]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        position = self.start * self.batch_size
        stream = self.order.stream(position)
        for first in itertools.count(position, self.batch_size):
            batch = list(itertools.islice(stream, self.batch_size))[rank::world]
            places = range(first + rank, first + self.batch_size, world)
            yield [
                self.augment(sample, np.random.default_rng((self.order.seed, place)))
                for place, sample in zip(places, batch, strict=True)
            ]


def build_association_loader(
    samples: list[dict],
    batch_size: int,
    curriculum: str,
    seed: int,
    start: int = 0,
    augment: AssociationAugmentation | None = None,
    growing_iters: int = 0,
) -> AssociationStream:
    """An endless iterable of batches; epochs follow one another without a short last batch.

    Args:
        samples: person samples, or image samples (curriculum "none").
        batch_size: samples per step over all processes together.
        curriculum, seed: see `SampleOrder`.
        start: steps (batches) already done; the stream goes on exactly there.
        augment: what happens to a sample, drawn by its position in the stream alone.
        growing_iters: steps between two steps of curriculum "growing".

    Returns:
        Iterable of lists of samples; process r of n gets every n-th sample of a batch from r on.

    Raises:
        ValueError: no samples, an unknown curriculum or one that image samples do not know, or a
            batch that does not divide among the processes.
    """
    _check_curriculum(curriculum)
    world = comm.get_world_size()
    if not samples:
        raise ValueError(
            "no person to train the assembly on: nobody in DATASETS.TRAIN has as many labelled "
            "keypoints as MODEL.PRN.MIN_KEYPOINTS asks for; lower it or name other datasets"
        )
    if "boxes" in samples[0] and curriculum != "none":
        raise ValueError(
            f"MODEL.PRN.CURRICULUM {curriculum} orders people, but MODEL.ASSEMBLER.EVIDENCE trains "
            "on whole images: set it to none"
        )
    if batch_size < 1 or batch_size % world:
        raise ValueError(
            f"a batch of {batch_size} people does not divide among {world} processes; "
            "change SOLVER.IMS_PER_BATCH"
        )
    order = SampleOrder(samples, curriculum, seed, growing_iters * batch_size)
    return AssociationStream(order, batch_size, start, augment or AssociationAugmentation())


def _ease(sample: dict) -> tuple[int, float]:
    labelled = int((sample["keypoints"][sample["owner"], :, 2] > 0).sum())
    x1, y1, x2, y2 = sample["box"].tolist()
    return labelled, (x2 - x1) * (y2 - y1)


def _check_curriculum(curriculum: str) -> None:
    if curriculum not in CURRICULA:
        known = ", ".join(CURRICULA)
        raise ValueError(f"MODEL.PRN.CURRICULUM is {curriculum!r}; choose one of {known}")
