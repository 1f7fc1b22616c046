"""Annotated keypoints and boxes as input of the assembly (EVAL.KEYPOINT_SOURCE, BOX_SOURCE)."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances

from mpn_d2.structures.outputs import Candidates


def gt_candidates(instances: Instances, num_keypoints: int) -> Candidates:
    """Every labelled joint (v > 0) of every person as a candidate of score 1.

    Args:
        instances: annotated people of one image with `gt_keypoints` (P, K, 3); frame: network
            input.
        num_keypoints: K.

    Returns:
        Candidates in the same frame, ordered by person, then type. Empty without people.

    Raises:
        ValueError: the annotations have another number of keypoints.
    """
    keypoints = instances.gt_keypoints.tensor
    if keypoints.shape[1] != num_keypoints:
        raise ValueError(
            f"annotated people have {keypoints.shape[1]} keypoints, the model {num_keypoints}: "
            "MODEL.SKELETON must be the dataset's"
        )
    labelled = keypoints[..., 2] > 0
    types = torch.arange(num_keypoints, device=keypoints.device).expand(labelled.shape)
    points = keypoints[labelled][:, :2]
    return Candidates(points=points, types=types[labelled], scores=torch.ones_like(points[:, 0]))


def gt_boxes(batched_input: dict, filter: bool) -> torch.Tensor:
    """Annotated boxes of one image, (P, 4) x1, y1, x2, y2; frame: network input.

    Args:
        batched_input: what `PoseDatasetMapper` returns with annotations: `instances` and
            `crowd_boxes`.
        filter: leave out crowds and people without labelled keypoints (`EVAL.GT_BOX_FILTER`);
            otherwise everybody's boxes, crowds last.
    """
    instances = batched_input["instances"]
    boxes = instances.gt_boxes.tensor
    if filter:
        return boxes[(instances.gt_keypoints.tensor[..., 2] > 0).any(dim=1)]
    return torch.cat([boxes, batched_input["crowd_boxes"].to(boxes)])


def gt_people(
    batched_input: dict, size: tuple[int, int], device: torch.device, filter: bool
) -> Instances:
    """Annotated people of one image as if they had been detected, with score 1.

    Args:
        batched_input, filter: see `gt_boxes`.
        size: (height, width) of the network input.
        device: of the result.
    """
    boxes = gt_boxes(batched_input, filter).to(device)
    scores = boxes.new_ones(len(boxes))
    classes = scores.new_zeros(len(boxes), dtype=torch.long)
    return Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
