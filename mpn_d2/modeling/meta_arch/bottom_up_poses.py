"""What meta-architectures share that find people without boxes: views of the base, results.

Spec of unified association, section 7. Letters: N images, K keypoint types, P people, H x W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances

from mpn_d2.modeling.heads.bottom_up_features import BottomUpMaps

# TEST.MULTISCALE: sizes of the views, the first is the base. [AE]
SCALES = (1.0, 0.5, 2.0)


def mean_heatmaps(
    look: Callable[[torch.Tensor], BottomUpMaps],
    images: torch.Tensor,
    base: torch.Tensor,
    divisibility: int,
    flip_indices: Sequence[int],
) -> torch.Tensor:
    """Heatmaps averaged over SCALES and their mirrored views, at the base's resolution.

    Args:
        look: images (N, 3, h, w), h and w multiples of `divisibility` -> maps.
        images: (N, 3, H, W), normalised and padded.
        base: (N, K, h, w) the heatmaps of `images` themselves.
        divisibility: of the network's inputs.
        flip_indices: K indices, see Skeleton.

    Returns:
        (N, K, h, w). Each view is the whole padded image, resized to the nearest multiples, so
        that the maps of all cover the same ground.
    """
    size, total = base.shape[-2:], torch.zeros_like(base)
    for scale in SCALES:
        sides = [
            max(round(side * scale / divisibility), 1) * divisibility for side in images.shape[-2:]
        ]
        view = images
        if scale != 1:
            view = F.interpolate(
                images, size=sides, mode="bilinear", align_corners=False, antialias=True
            )
        seen = base if scale == 1 else look(view).heatmaps
        mirrored = look(view.flip(-1)).heatmaps[:, list(flip_indices)].flip(-1)
        for maps in (seen, mirrored):
            if maps.shape[-2:] != size:
                maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            total = total + maps
    return total / (2 * len(SCALES))


def instances_of_poses(
    poses: torch.Tensor, scores: torch.Tensor, image_size: tuple[int, int], margin: float
) -> Instances:
    """People of one image, with boxes around their joints.

    Args:
        poses: (P, K, 3) x, y, score; (0, 0, 0) where missing. Who has no joint is left out.
        scores: (P,) in [0, 1], of the pose; also that of the box.
        image_size: (height, width), pixels.
        margin: of the box beyond the outermost joints, pixels: that of a single joint has an area,
            too.

    Returns:
        In the frame of the poses, best first: `pred_boxes` (clipped to the image), `scores`,
        `pose_scores`, `pred_classes`, `pred_keypoints`.
    """
    kept = (poses[..., 2] > 0).any(dim=1)
    poses, scores = poses[kept], scores[kept]
    order = torch.argsort(scores, descending=True, stable=True)
    poses, scores = poses[order], scores[order]
    has = poses[..., 2:] > 0
    low = torch.where(has, poses[..., :2], torch.inf).amin(dim=1) - margin
    high = torch.where(has, poses[..., :2], -torch.inf).amax(dim=1) + margin
    people = Instances(image_size)
    people.pred_boxes = Boxes(torch.cat([low, high], dim=1))
    people.pred_boxes.clip(image_size)
    people.scores = scores
    people.pose_scores = scores.clone()
    people.pred_classes = torch.zeros(len(poses), dtype=torch.int64, device=poses.device)
    people.pred_keypoints = poses
    return people


def mean_of_joints(poses: torch.Tensor) -> torch.Tensor:
    """(P,) mean score of the joints that each of the poses (P, K, 3) has; 0 without any."""
    has = (poses[..., 2] > 0).to(poses)
    return (poses[..., 2] * has).sum(dim=1) / has.sum(dim=1).clamp(min=1)
