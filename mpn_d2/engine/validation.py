"""The training loss on images that are not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from mpn_d2.data.dataset_mapper import PoseDatasetMapper, build_augmentations
from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.data.loader import association_samples, trains_without_images
from mpn_d2.data.person_crops import SinglePersonMapper, training_people
from mpn_d2.data.workers import detection_test_loader


@torch.no_grad()
def validation_loss(cfg: CfgNode, model: nn.Module) -> float:
    """Mean of the summed losses of the training parts over DATASETS.TEST.

    The mean runs over the images that training would keep, resized as at test time and without
    augmentation, or over the people while only the assembly trains or each has a crop. Norm layers
    use their running statistics, dropout is off, and no buffer of the model changes. With several
    processes, losses that are normalised over all processes see as many images at once as there
    are processes, so that the value depends on their number.

    Args:
        cfg: of one stage.
        model: not wrapped; it is left in training mode.
    """
    batches, size = _build_batches(cfg)
    total = torch.zeros(2, dtype=torch.float64)
    with losses_without_training(model), EventStorage():
        for number, batch in enumerate(batches):
            # Shares are filled up to equal length: models exchange numbers in every step.
            weight = len(batch) if number * comm.get_world_size() + comm.get_rank() < size else 0
            total += weight * torch.tensor([float(sum(model(batch).values())), 1.0])
    sums = torch.stack(comm.all_gather(total)).sum(dim=0)
    return float(sums[0] / sums[1])


@contextmanager
def losses_without_training(model: nn.Module) -> Iterator[None]:
    """Inside, the model returns losses, but norms and dropout work as in evaluation."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase | _DropoutNd):
            module.eval()
    try:
        yield
    finally:
        model.train()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _build_batches(cfg: CfgNode) -> tuple[Iterator[list[dict]], int]:
    """This process's batches, and how many there are over all processes before filling up."""
    without_images = trains_without_images(cfg)
    dicts = load_pose_dicts(
        cfg.DATASETS.TEST,
        is_train=True,
        min_keypoints_per_image=cfg.INPUT.MIN_KEYPOINTS_PER_IMAGE,
        keep_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not without_images,
        need_images=not without_images,
    )
    if without_images:
        people = association_samples(cfg, dicts)
        if not people:
            raise ValueError(
                f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)}: nobody has MODEL.PRN.MIN_KEYPOINTS "
                f"{cfg.MODEL.PRN.MIN_KEYPOINTS} labelled keypoints, no loss to validate with"
            )
        step = cfg.SOLVER.IMS_PER_BATCH
        batches = [people[first : first + step] for first in range(0, len(people), step)]
        return (batches[i] for i in _equal_share(len(batches))), len(batches)
    if cfg.SINGLE_PERSON.ENABLED:
        dicts, mapper = training_people(cfg, dicts), SinglePersonMapper(cfg, is_train=False)
    else:
        mapper = PoseDatasetMapper(
            cfg, is_train=True, augmentations=build_augmentations(cfg, is_train=False)
        )
    # One image at a time: the padding of a batch would enter the loss.
    loader = detection_test_loader(
        dicts,
        mapper=mapper,
        sampler=_equal_share(len(dicts)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return iter(loader), len(dicts)


def _equal_share(size: int) -> list[int]:
    """This process's indices: every n-th, and the first ones again until all have as many."""
    rank, world = comm.get_rank(), comm.get_world_size()
    rounds = -(-size // world)
    return [(step * world + rank) % size for step in range(rounds)]
