"""Gradient accumulation: what a micro-batch weighs in the losses of its whole batch.

A loss that is a mean over something else than images (positive anchors, people) weighs by how much
of that a micro-batch has. It is counted in the annotations, before any micro-batch is run.
"""

from __future__ import annotations

import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.utils import comm
from torch import nn

from mpn_d2.modeling.meta_arch.joint import samples_from_annotations


def weights_by_part(model: nn.Module, batches: list[list[dict]]) -> dict[str, list[float]]:
    """Weights of micro-batches, by parts of the model whose losses are no means over samples.

    People matched to predicted boxes cannot be counted before: they weigh by their images.

    Args:
        model: a MultiPoseNet.
        batches: the micro-batches of this process.
    """
    counts = {}
    if "person" in model.train_parts:
        counts["person"] = [count_positive_anchors(model, x) for x in batches]
    if "assembly" in model.train_parts and "image" in batches[0][0]:
        if not model.assembly_sees_predictions:
            counts["assembly"] = [count_people(x, model.min_keypoints) for x in batches]
    return {part: weights_of_counts(x, model.device) for part, x in counts.items()}


@torch.no_grad()
def count_positive_anchors(model: RetinaNet, batched_inputs: list[dict]) -> int:
    """Anchors that belong to a person when these images are one padded batch.

    Anchors depend on the padded size and the strides alone: no feature is computed.
    """
    step = model.backbone.size_divisibility
    sizes = [x["image"].shape[-2:] for x in batched_inputs]
    height, width = (-(-max(sides) // step) * step for sides in zip(*sizes, strict=True))
    shapes = model.backbone.output_shape()
    strides = [shapes[name].stride for name in model.head_in_features]
    # Every layer of stride two rounds up, and so does their chain.
    grids = [torch.empty(1, 0, -(-height // s), -(-width // s)) for s in strides]
    gt_instances = [x["instances"].to(model.device) for x in batched_inputs]
    labels, _ = model.label_anchors(model.anchor_generator(grids), gt_instances)
    return sum(int(((x >= 0) & (x != model.num_classes)).sum()) for x in labels)


def count_people(batched_inputs: list[dict], min_keypoints: int) -> int:
    """People that the assembly learns from if it learns from annotations."""
    return len(samples_from_annotations([x["instances"] for x in batched_inputs], min_keypoints))


def weights_of_counts(counts: list[int], device: torch.device) -> list[float]:
    """Weights of the micro-batches of all processes, given this process's counts.

    A loss divides by the count of its micro-batch in all processes, at least 1; so weighted, the
    sum over micro-batches is divided by the count of the batch, at least 1.
    """
    total = torch.tensor(counts, dtype=torch.float64, device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return (total.clamp(min=1) / total.sum().clamp(min=1)).tolist()
