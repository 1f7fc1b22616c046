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


def view_scales(*, flip: bool, multiscale: bool) -> tuple[float, ...]:
    """Scales at which an image and its mirror image are looked at; none: the image alone."""
    return SCALES if multiscale else SCALES[:1] if flip else ()


def look_again(
    look: Callable[[torch.Tensor], BottomUpMaps],
    images: torch.Tensor,
    seen: BottomUpMaps,
    divisibility: int,
    flip_indices: Sequence[int],
    scales: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Heatmaps averaged over scales and their mirrored views, at the base's resolution, and tags.

    Args:
        look: images (N, 3, h, w), h and w multiples of `divisibility` -> maps.
        images: (N, 3, H, W), normalised and padded.
        seen: in `images` themselves, h x w cells.
        divisibility: of the network's inputs.
        flip_indices: K indices, see Skeleton.
        scales: of the views, see `view_scales`; none: nothing but what was seen.

    Returns:
        Heatmaps (N, K, h, w). Each view is the whole padded image, resized to the nearest
        multiples, so that the maps of all cover the same ground. Tags (N, 2, K, h, w) of scale 1
        and its mirrored view, where the network has tags and 1 is one of the scales, otherwise
        (N, 1, K, h, w): the two views say different numbers of a person, so they are not averaged.
        [AE]
    """
    order = list(flip_indices)
    size, total = seen.heatmaps.shape[-2:], torch.zeros_like(seen.heatmaps)
    tags = None if seen.tags is None else seen.tags[:, None]
    if not scales:
        return seen.heatmaps, tags
    for scale in scales:
        sides = [
            max(round(side * scale / divisibility), 1) * divisibility for side in images.shape[-2:]
        ]
        view, straight = images, seen
        if scale != 1:
            view = F.interpolate(
                images, size=sides, mode="bilinear", align_corners=False, antialias=True
            )
            straight = look(view)
        mirrored = look(view.flip(-1))
        if scale == 1 and seen.tags is not None and mirrored.tags is not None:
            tags = torch.stack([seen.tags, mirrored.tags[:, order].flip(-1)], dim=1)
        for maps in (straight.heatmaps, mirrored.heatmaps[:, order].flip(-1)):
            if maps.shape[-2:] != size:
                maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            total = total + maps
    return total / (2 * len(scales)), tags


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
