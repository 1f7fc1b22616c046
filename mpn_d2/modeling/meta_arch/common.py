"""Steps that every meta-architecture shares: input, batching by size, finishing results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpn_d2.codecs.resample import Window, grid_size, resample_maps
from mpn_d2.structures.nms import BoxSuppression


def group_by_padded_size(images: list[torch.Tensor], divisibility: int) -> list[list[int]]:
    """Indices of images that have the same size once padded to multiples of `divisibility`.

    Padding turns non-zero after the first bias or norm, and GroupNorm counts it; an image padded
    to its own multiple in every batch gets the same result alone and in any batch (design 7.2).

    Args:
        images: (3, H, W) each.
    """
    step = max(divisibility, 1)
    groups = defaultdict(list)
    for i, image in enumerate(images):
        groups[tuple(-(-side // step) * step for side in image.shape[-2:])].append(i)
    return list(groups.values())


def build_box_suppression(cfg: CfgNode) -> BoxSuppression:
    """How repeated person boxes are suppressed: MODEL.RETINANET.NMS and what belongs to it."""
    return BoxSuppression(
        method=cfg.MODEL.RETINANET.NMS,
        threshold=cfg.MODEL.RETINANET.NMS_THRESH_TEST,
        sigma=cfg.MODEL.RETINANET.SOFT_NMS_SIGMA,
        min_score=cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
    )


def restart_levels(head: nn.Module) -> None:
    """Lets norms that each pyramid level has its own of begin with the first level again.

    Detectron2's CycleBatchNormList, and what engine/fast.py makes of it, count the levels as they
    come: a pass that ended among them (Ctrl-C, no memory left) would shift all that follow.
    """
    for module in head.modules():
        if hasattr(module, "_pos"):
            module._pos = 0  # type: ignore[assignment]  # a plain number


def in_groups(work: Callable[..., list], groups: list[list[int]], *columns: list) -> list:
    """`work` on the entries of each group, the results in the order of the entries.

    Args:
        work: takes equally long lists, gives one as long.
        groups: indices; together each entry once.
        columns: what `work` takes, entry by entry.
    """
    results: list = [None] * sum(map(len, groups))
    for group in groups:
        found = work(*([column[i] for i in group] for column in columns))
        for i, result in zip(group, found, strict=True):
            results[i] = result
    return results


def final_size(batched_input: dict) -> tuple[int, int]:
    """(height, width) that an image's results are wanted in: the file's, else its own."""
    size = batched_input["image"].shape[-2:]
    return batched_input.get("height", size[0]), batched_input.get("width", size[1])


def finish_instances(instances: Instances, height: int, width: int) -> Instances:
    """Scales results from the network input to the (height, width) of the original image.

    Boxes are clipped; instances whose box is empty are dropped, as Detectron2 does. The given
    instances stay as they are (detector_postprocess scales tensors in place).
    """
    fields = {name: value.clone() for name, value in instances.get_fields().items()}
    return detector_postprocess(Instances(instances.image_size, **fields), height, width)


def finish_person_mask(
    probability: torch.Tensor,
    stride: int,
    image_size: tuple[int, int],
    height: int,
    width: int,
) -> torch.Tensor:
    """Person probability at stride cells -> (2, height, width) = [1 - p, p] (design 7.6).

    Args:
        probability: (H, W) in [0, 1] over the padded network input.
        stride: cell side, network-input pixels.
        image_size: (height, width) of the network input without padding.
        height, width: of the original image.
    """
    p = F.interpolate(
        probability[None, None], scale_factor=stride, mode="bilinear", align_corners=False
    )[0]
    p = sem_seg_postprocess(p, image_size, height, width)
    return torch.cat([1 - p, p])


def image_heatmaps(maps: torch.Tensor, stride: int, image_size: tuple[int, int]) -> torch.Tensor:
    """Heatmaps (K, H, W) over a padded network input -> (K, h, w) that span exactly the image.

    Args:
        maps: (K, H, W), cells of `stride` network-input pixels.
        stride: cell side.
        image_size: (height, width) of the network input without padding.

    Returns:
        (K, ceil(height / stride), ceil(width / stride)): the cells as they are where they fit the
        image, else read at their centres, interpolated.
    """
    return resample_maps(maps, stride, Window.whole(image_size), grid_size(image_size, stride))


def require_training_fields(batched_inputs: list[dict]) -> None:
    """Raises a ValueError if a batch of images has no annotations to train on."""
    for field in ("instances", "crowd_boxes", "person_mask", "ignore_mask"):
        if field not in batched_inputs[0]:
            raise ValueError(
                f"training input has no {field!r} (it has {sorted(batched_inputs[0])}): "
                "use mpn_d2's PoseDatasetMapper for images"
            )


def mean_over_processes(count: float, device: torch.device, least: float = 1.0) -> float:
    """Positive anchors (or people, or weights) of all processes, at least `least`, per process: the
    normaliser.

    The mean over processes (DDP) is then what one process finds on the whole batch.
    """
    total, world = torch.tensor(float(count), device=device), comm.get_world_size()
    if world > 1:
        torch.distributed.all_reduce(total)
    return max(total.item(), least) / world


def per_person_of_all_processes(
    losses: dict[str, torch.Tensor], count: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Means over `count` people of this process, weighted by them, see `mean_over_processes`."""
    weight = count / mean_over_processes(count, device)
    return {name: weight * loss for name, loss in losses.items()}


@contextmanager
def statistics_stay(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, batch norms in training mode normalise as ever but leave their running statistics.

    For layers that see one batch twice in a step.
    """
    norms = [m for top in modules for m in top.modules() if isinstance(m, _BatchNorm)]
    # In eval mode the flag would make them use the batch's statistics.
    norms = [m for m in norms if m.training]
    before = [(m.track_running_stats, m.momentum) for m in norms]
    try:
        for norm in norms:
            # The momentum for Detectron2's own synchronised norm, which ignores the flag.
            norm.track_running_stats, norm.momentum = False, 0.0
        yield
    finally:
        for norm, (tracked, momentum) in zip(norms, before, strict=True):
            norm.track_running_stats, norm.momentum = tracked, momentum


def mostly_inside(boxes: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """(R,) bool: more than half of the box (R, 4) lies inside one of the regions (M, 4).

    Anchors in a crowd are neither people nor background (design 4.7).
    """
    if len(regions) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    corner = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    opposite = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    common = (opposite - corner).clamp(min=0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return (common > 0.5 * area[:, None]).any(dim=1)
