"""Training batches, the same again whatever the number of workers or processes, and on resuming.

The stream of training images is numbered 0, 1, 2 ... over all processes. Which image stands at a
position, and how it is augmented, depends on (SEED, position) alone (design 7.8); step k trains on
B positions, B being SOLVER.IMS_PER_BATCH.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from mpn_d2.data.association import (
    build_association_images,
    build_association_loader,
    build_association_samples,
)
from mpn_d2.data.association_noise import AssociationAugmentation
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import has_keypoints, load_pose_dicts
from mpn_d2.data.person_crops import SinglePersonMapper, training_people
from mpn_d2.data.workers import start_worker
from mpn_d2.structures.skeleton import get_skeleton

# Batches that aspect-ratio grouping reorders among themselves; one of them may be mixed.
GROUPING_WINDOW = 16


def build_pose_train_loader(cfg: CfgNode, start: int = 0) -> Iterable[list[dict]]:
    """Endless batches of DATASETS.TRAIN: images, or crops of a person each with
    SINGLE_PERSON.ENABLED, or people without images where `trains_without_images`.

    Args:
        cfg: of one stage.
        start: batches that were already trained on; the stream goes on exactly there.

    Returns:
        Iterable of lists of what `PoseDatasetMapper`, `SinglePersonMapper` or
        `build_association_samples` makes; process r of n gets every n-th entry of a batch from r
        on.

    Raises:
        ValueError: nothing to train on, or a batch that does not divide among the processes.
            While iterating: what the mapper raises, an image that cannot be read above all.
    """
    without_images = trains_without_images(cfg)
    # The order must be the same when a run goes on: SEED -1 (random) counts as 0 here.
    seed = max(cfg.SEED, 0)
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    dicts = load_pose_dicts(
        cfg.DATASETS.TRAIN,
        is_train=True,
        min_keypoints_per_image=cfg.INPUT.MIN_KEYPOINTS_PER_IMAGE,
        keep_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not without_images,
        need_images=not without_images,
    )
    dicts = without_crowded_images(dicts, cfg.INPUT.MAX_PEOPLE_PER_IMAGE)
    if without_images:
        return build_association_loader(
            association_samples(cfg, dicts),
            batch_size,
            cfg.MODEL.PRN.CURRICULUM,
            seed,
            start=start,
            augment=AssociationAugmentation.from_config(cfg),
            growing_iters=cfg.MODEL.PRN.GROWING_ITERS,
        )
    if cfg.SINGLE_PERSON.ENABLED:
        dicts, mapper = training_people(cfg, dicts), SinglePersonMapper(cfg, is_train=True)
    else:
        mapper = PoseDatasetMapper(cfg, is_train=True)
    # Crops are all of one size: nothing to group.
    crops = cfg.SINGLE_PERSON.ENABLED or cfg.INPUT.AUGMENTATION == "crop"
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING and not crops
    order = StreamOrder(
        size=len(dicts),
        batch_size=batch_size,
        seed=seed,
        groups=[d["width"] > d["height"] for d in dicts] if grouped else None,
    )
    return build_image_loader(
        dicts,
        mapper,
        order,
        start=start,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def without_crowded_images(dicts: list[dict], most: int) -> list[dict]:
    """Images with at most so many people with labelled keypoints; all where `most` is 0.

    Raises:
        ValueError: no image has so few.
    """
    if most == 0:
        return dicts
    kept = [d for d in dicts if sum(map(has_keypoints, d.get("annotations", []))) <= most]
    if most < 0 or not kept:
        raise ValueError(f"INPUT.MAX_PEOPLE_PER_IMAGE is {most}: no image has so few people")
    return kept


def association_samples(cfg: CfgNode, dicts: list[dict]) -> list[dict]:
    """What the assembly trains on, by MODEL.ASSEMBLER.SAMPLES: people, or whole images."""
    num_keypoints = get_skeleton(cfg.MODEL.SKELETON).num_keypoints
    if cfg.MODEL.ASSEMBLER.SAMPLES == "images":
        return build_association_images(dicts, num_keypoints)
    return build_association_samples(dicts, cfg.MODEL.PRN.MIN_KEYPOINTS, num_keypoints)


def trains_without_images(cfg: CfgNode) -> bool:
    """Whether only the assembly trains, and from annotations: above MODEL.JOINT_LEVEL 0 it learns
    from what the other parts predict in images.
    """
    return list(cfg.MODEL.TRAIN_PARTS) == ["assembly"] and cfg.MODEL.JOINT_LEVEL == 0


class StreamOrder:
    """Which image stands at a position, and which positions a step trains on.

    Each epoch is a shuffling of its own of all images, made from seed and epoch. With `groups`
    (aspect-ratio grouping), the positions of GROUPING_WINDOW batches are sorted by group and their
    batches shuffled: at most one batch of a window mixes groups, and no position leaves its window.
    """

    def __init__(
        self, *, size: int, batch_size: int, seed: int, groups: Sequence[bool] | None = None
    ) -> None:
        """
        Args:
            size: number of images.
            batch_size: images a step over all processes.
            seed: the same on all processes, not negative.
            groups: of each image; None leaves the positions as they are.
        """
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.groups = None if groups is None else np.asarray(groups, dtype=bool)

    def image(self, position: int) -> int:
        """Index of the image at a position."""
        epoch, place = divmod(position, self.size)
        return int(_shuffled(self.size, self.seed, epoch)[place])

    def batches(self, start: int) -> Iterator[list[int]]:
        """The `batch_size` positions of step `start` and all after it, over all processes."""
        window, skipped = divmod(start, GROUPING_WINDOW)
        while True:
            yield from self._window(window)[skipped:].tolist()
            window, skipped = window + 1, 0

    def _window(self, number: int) -> np.ndarray:
        """(GROUPING_WINDOW, batch_size) positions."""
        count = GROUPING_WINDOW * self.batch_size
        positions = np.arange(number * count, (number + 1) * count)
        if self.groups is None:
            return positions.reshape(GROUPING_WINDOW, -1)
        groups = self.groups[[self.image(p) for p in positions.tolist()]]
        batches = positions[np.argsort(groups, kind="stable")].reshape(GROUPING_WINDOW, -1)
        return np.random.default_rng((self.seed, number)).permutation(batches)


# The last and the next epoch, of a loader that trains and perhaps one that is replaced.
@functools.lru_cache(maxsize=4)
def _shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


class StreamDataset(Dataset):
    """Mapped images by position in the stream."""

    def __init__(
        self, dicts: list[dict], mapper: Callable[[dict], dict], order: StreamOrder
    ) -> None:
        # One block of memory that forked workers share.
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper = mapper
        self.order = order

    def __getitem__(self, position: int) -> dict:
        record = self.dicts[self.order.image(position)]
        with seeded(self.order.seed, position):
            return self.mapper(record)


class StreamBatches(Sampler):
    """This process's positions, step by step, without end."""

    def __init__(self, order: StreamOrder, start: int) -> None:
        self.order = order
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        for positions in self.order.batches(self.start):
            yield positions[rank::world]


def build_image_loader(
    dicts: list[dict],
    mapper: Callable[[dict], dict],
    order: StreamOrder,
    *,
    start: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Batches of mapped images, from step `start` on; see the head of this file.

    Raises:
        ValueError: a batch that does not divide among the processes.
    """
    world = comm.get_world_size()
    if order.batch_size < 1 or order.batch_size % world:
        raise ValueError(
            f"a batch of {order.batch_size} images does not divide among {world} processes; "
            "change SOLVER.IMS_PER_BATCH"
        )
    return DataLoader(
        StreamDataset(dicts, mapper, order),
        batch_sampler=StreamBatches(order, start),
        collate_fn=trivial_batch_collator,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        # Its own: the loader would draw a number from the global one.
        generator=torch.Generator().manual_seed(order.seed),
    )


@contextlib.contextmanager
def seeded(seed: int, position: int) -> Iterator[None]:
    """Inside, the global generators of random, numpy and torch start from (seed, position).

    Detectron2's augmentations draw from them. They go on afterwards as if nothing had been drawn.
    """
    numbers = np.random.SeedSequence((seed, position)).generate_state(3)
    # Not torch.manual_seed, which would set the generators of GPUs too.
    generator = torch.default_generator
    before = random.getstate(), np.random.get_state(), generator.get_state()
    random.seed(int(numbers[0]))
    np.random.seed(numbers[1])
    generator.manual_seed(int(numbers[2]))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        generator.set_state(before[2])
