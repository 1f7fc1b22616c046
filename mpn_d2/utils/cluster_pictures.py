"""A picture of typical poses: one skeleton per cluster, in the frame of the box."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, Keypoints

from mpn_d2.structures.skeleton import Skeleton
from mpn_d2.utils.pose_clusters import PoseClusters
from mpn_d2.utils.target_pictures import join, stack
from mpn_d2.utils.visualize import draw_annotations

_COLUMNS = 5
# Height of a panel, pixels, as near as whole pixels a cell come to it.
_HEIGHT = 280
_BACKGROUND = 30
# A joint that fewer of the members have is not drawn [ours].
_LEAST_SHARE = 0.5


def draw_clusters(clusters: PoseClusters, size: tuple[int, int], skeleton: Skeleton) -> np.ndarray:
    """A grid of panels, largest cluster first, each with its share of all clustered people.

    Joints that less than half of a cluster's people have are left out.

    Args:
        clusters: poses in cells.
        size: (h, w) cells of the box.
        skeleton: of the keypoints.

    Returns:
        RGB uint8 picture.

    Raises:
        ValueError: there is no cluster.
    """
    if not len(clusters.centres):
        raise ValueError("no cluster to draw: no pose has a joint")
    shares = 100 * clusters.counts / clusters.counts.sum()
    panels = [_draw_pose(centre, size, skeleton) for centre in clusters.centres]
    captions = [
        f"{share:.1f} % ({count})"
        for share, count in zip(shares.tolist(), clusters.counts.tolist(), strict=True)
    ]
    rows = range(0, len(panels), _COLUMNS)
    return stack([join(panels[i : i + _COLUMNS], captions[i : i + _COLUMNS]) for i in rows])


def _draw_pose(centre: torch.Tensor, size: tuple[int, int], skeleton: Skeleton) -> np.ndarray:
    scale = cluster_scale(size)
    height, width = (side * scale for side in size)
    keypoints = centre.detach().cpu().float().clone()
    keypoints[:, :2] *= scale
    # As labelled and visible, or not labelled.
    keypoints[:, 2] = 2.0 * (keypoints[:, 2] >= _LEAST_SHARE)
    person = Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor([[0.0, 0.0, width, height]])),
        gt_keypoints=Keypoints(keypoints[None]),
    )
    canvas = np.full((height, width, 3), _BACKGROUND, dtype=np.uint8)
    return draw_annotations(canvas, person, skeleton)


def cluster_scale(size: tuple[int, int]) -> int:
    """Pixels a side that a cell of a box of (h, w) cells is drawn with."""
    return max(1, round(_HEIGHT / size[0]))
