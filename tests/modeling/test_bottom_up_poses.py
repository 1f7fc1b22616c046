"""Heatmaps averaged over views, and poses as people with boxes: against what is known of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mpn_d2.modeling.heads.bottom_up_features import BottomUpMaps
from mpn_d2.modeling.meta_arch.bottom_up_poses import (
    SCALES,
    instances_of_poses,
    look_again,
    mean_of_joints,
    view_scales,
)


def test_views_of_a_ramp_lie_on_each_other():
    """A network that shows the colours at stride 4: no view moves them, left and right swap."""
    height, width = 64, 96
    x = (torch.arange(width) + 0.5).expand(height, width)
    y = (torch.arange(height) + 0.5)[:, None].expand(height, width)
    images = torch.stack([x, y, x + y, 3 * x])[None]
    sizes = []

    def look(view):
        sizes.append(tuple(view.shape[-2:]))
        maps = F.avg_pool2d(view, 4)
        return BottomUpMaps(maps, maps, None)

    seen = look(images)
    base = seen.heatmaps
    sizes.clear()
    found, tags = look_again(look, images, seen, 32, [0, 1, 3, 2], SCALES)
    assert tags is None
    # Itself is not looked at again; everything else is, mirrored, too.
    assert sorted(sizes) == sorted([(64, 96), *[(32, 64)] * 2, *[(128, 192)] * 2])
    # Half of the views of types 2 and 3 are those of the other.
    either = (base[:, 2] + base[:, 3]) / 2
    wanted = torch.stack([base[:, 0], base[:, 1], either, either], dim=1)
    # Borders apart, where resizing repeats the last cells.
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(found[inner], wanted[inner], atol=0.05, rtol=0)


def test_tags_of_image_and_mirror_image_stay_two():
    images = torch.rand(2, 3, 32, 64)

    def look(view):
        # Its tags tell left from right of the network's input.
        ramp = torch.arange(view.shape[-1] // 4.0).expand(2, 3, view.shape[-2] // 4, -1)
        maps = F.avg_pool2d(view, 4)
        return BottomUpMaps(maps, maps, 100 * maps + ramp)

    seen, order = look(images), [0, 2, 1]
    alone, tags = look_again(
        look, images, seen, 32, order, view_scales(flip=False, multiscale=False)
    )
    assert torch.equal(alone, seen.heatmaps) and torch.equal(tags, seen.tags[:, None])
    both, tags = look_again(look, images, seen, 32, order, view_scales(flip=True, multiscale=False))
    ramp = torch.arange(16.0)
    torch.testing.assert_close(both, (seen.heatmaps + seen.heatmaps[:, order]) / 2)
    torch.testing.assert_close(tags[:, 0], 100 * seen.heatmaps + ramp)
    torch.testing.assert_close(tags[:, 1], 100 * seen.heatmaps[:, order] + ramp.flip(0))
    _, several = look_again(look, images, seen, 32, order, view_scales(flip=False, multiscale=True))
    assert torch.equal(several, tags)


def test_poses_get_boxes_and_the_best_comes_first():
    poses = torch.zeros(4, 3, 3)
    poses[0, 0] = torch.tensor([10.0, 20.0, 0.5])
    poses[1, 0], poses[1, 2] = torch.tensor([2.0, 5.0, 0.9]), torch.tensor([30.0, 1.0, 0.7])
    poses[3, 1] = torch.tensor([59.0, 39.0, 0.1])
    scores = mean_of_joints(poses)
    torch.testing.assert_close(scores, torch.tensor([0.5, 0.8, 0.0, 0.1]))
    people = instances_of_poses(poses, scores, (40, 60), 4.0)
    # The third has no joint.
    torch.testing.assert_close(people.pose_scores, torch.tensor([0.8, 0.5, 0.1]))
    torch.testing.assert_close(people.pred_keypoints, poses[[1, 0, 3]])
    boxes = [[0.0, 0.0, 34.0, 9.0], [6.0, 16.0, 14.0, 24.0], [55.0, 35.0, 60.0, 40.0]]
    torch.testing.assert_close(people.pred_boxes.tensor, torch.tensor(boxes))
    assert len(instances_of_poses(poses[:0], scores[:0], (40, 60), 4.0)) == 0
