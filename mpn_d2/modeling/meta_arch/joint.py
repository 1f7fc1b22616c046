"""Joint training: which loss trains what, and the assembly's samples from predictions.

MODEL.JOINT_LEVEL (review notes, section 4.2) says how far gradients go when several parts train
in one graph. The trunk (bottom-up network), the keypoint pyramid and the keypoint head make the
keypoint part; the keypoint losses train all of it at every level.

| level | the person losses train | the assembly learns from | its loss trains |
|---|---|---|---|
| 0 | person pyramid, person heads | annotations | the assembly |
| 1 | person pyramid, person heads | predicted keypoints and boxes | the assembly |
| 2 | person pyramid, person heads | predicted heatmaps and boxes | + keypoint head, its pyramid |
| 3 | + trunk, + a shared pyramid | predicted heatmaps and boxes | + trunk |

Level 0 is the paper's stages side by side. Boxes carry no gradient at any level. Of all this only
parts in MODEL.TRAIN_PARTS train; others have no loss, get no gradient and keep their statistics,
but make the predictions that the assembly learns from above level 0. The review notes' level 1,
the assembly fine-tuned with all else frozen, is MODEL.TRAIN_PARTS [assembly] at level 1 (levels 2
and 3 then do the same); with all three parts, the other two go on learning by their own losses.
"""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou

LEVELS = (0, 1, 2, 3)
# A predicted box below this overlap belongs to nobody (review notes, section 4.2).
MIN_IOU = 0.5


def check_joint_level(level: int, differentiable: bool) -> None:
    """ValueError for an unknown level, or one whose gradient the grid input does not pass."""
    if level not in LEVELS:
        raise ValueError(f"MODEL.JOINT_LEVEL is {level}; choose one of 0, 1, 2, 3")
    if level >= 2 and not differentiable:
        raise ValueError(
            f"MODEL.JOINT_LEVEL {level} sends gradients through the assembly's input: set "
            "MODEL.PRN.INPUT_MODE to heatmap (peaks have none)"
        )


def samples_from_annotations(
    gt_instances: list[Instances], min_keypoints: int, *, by_image: bool = False
) -> list[dict]:
    """Assembly samples, as mpn_d2.data.association makes them, of the people in a batch.

    Args:
        gt_instances: per image, with `gt_boxes` and `gt_keypoints`.
        min_keypoints: of a person sample.
        by_image: image samples, of images in which anybody has labelled keypoints.
    """
    samples = []
    for instances in gt_instances:
        keypoints = instances.gt_keypoints.tensor.float()
        if by_image:
            if bool((keypoints[..., 2] > 0).any()):
                samples.append({"keypoints": keypoints, "boxes": instances.gt_boxes.tensor})
            continue
        labelled = (keypoints[:, :, 2] > 0).sum(dim=1)
        for owner in torch.nonzero(labelled >= min_keypoints)[:, 0].tolist():
            box = instances.gt_boxes.tensor[owner]
            samples.append({"keypoints": keypoints, "owner": owner, "box": box})
    return samples


@torch.no_grad()
def match_boxes(
    boxes: Boxes, gt_instances: Instances, min_keypoints: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The predicted box of each annotated person of one image that has one.

    A box belongs to the person it overlaps most, of anybody annotated; a person takes the
    best of her own boxes if their IoU is at least 0.5, else she is left out.

    Args:
        boxes: (R, 4) predicted; frame of the annotations.
        gt_instances: `gt_boxes`, `gt_keypoints` (P, K, 3).
        min_keypoints: people with fewer labelled keypoints are left out.

    Returns:
        (Q, 4) boxes and (Q, K, 3) x, y, v of their people; Q may be 0.
    """
    keypoints = gt_instances.gt_keypoints.tensor.float()
    if len(boxes) == 0 or len(gt_instances) == 0:
        return boxes.tensor[:0], keypoints[:0]
    iou = pairwise_iou(gt_instances.gt_boxes, boxes)
    people = torch.arange(len(iou), device=iou.device)
    own = torch.where(people[:, None] == iou.argmax(dim=0), iou, 0.0)
    best_iou, best = own.max(dim=1)
    enough = (keypoints[:, :, 2] > 0).sum(dim=1) >= min_keypoints
    keep = (best_iou >= MIN_IOU) & enough
    return boxes.tensor[best[keep]], keypoints[keep]
