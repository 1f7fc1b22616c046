"""Clusters of poses against slow loops and poses made up in groups."""

from __future__ import annotations

import math

import pytest
import torch

from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.pose_clusters import cluster_poses, grid_poses

COCO = get_skeleton("coco")
K = COCO.num_keypoints
SIGMAS = torch.tensor(COCO.sigmas)
AREA = 56.0 * 36.0


def groups(counts, spread=0.3, seed=1):
    """Poses around as many far apart prototypes, shuffled, and the group of each."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(len(counts), K, 2, generator=generator) * torch.tensor([36.0, 56.0])
    truth = torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
    truth = truth[torch.randperm(len(truth), generator=generator)]
    noise = spread * torch.randn(len(truth), K, 2, generator=generator)
    poses = torch.cat([prototypes[truth] + noise, torch.ones(len(truth), K, 1)], dim=-1)
    return poses, truth, prototypes


def slow_oks(pose, centre):
    """Formula of COCO, s^2 the cells of the box, over the pose's joints."""
    values = []
    for joint, other, sigma in zip(pose.tolist(), centre.tolist(), COCO.sigmas, strict=True):
        if joint[2] > 0:
            squared = (joint[0] - other[0]) ** 2 + (joint[1] - other[1]) ** 2
            has = other[2] > 0
            values.append(has * math.exp(-squared / (2 * AREA * (2 * sigma) ** 2)))
    return sum(values) / len(values)


def slow_mean(poses, kind):
    rows = [p[kind].tolist() for p in poses if p[kind, 2] > 0]
    if not rows:
        return [0.0, 0.0, 0.0]
    x, y = (sum(row[i] for row in rows) / len(rows) for i in (0, 1))
    return [x, y, len(rows) / len(poses)]


def test_made_up_groups_are_found_largest_first():
    counts = [5, 40, 12, 21, 33]
    poses, truth, prototypes = groups(counts)
    found = cluster_poses(poses, AREA, SIGMAS, 5)
    assert found.counts.tolist() == sorted(counts, reverse=True)
    order = [counts.index(count) for count in found.counts.tolist()]
    assert torch.equal(torch.tensor(order)[found.labels], truth)
    assert (found.centres[..., :2] - prototypes[order]).abs().max() < 0.6
    assert (found.centres[..., 2] == 1).all()


def test_clusters_are_a_fixed_point_of_slow_k_means():
    # Overlapping groups with joints missing: neither easy nor complete.
    poses, _, _ = groups([20, 15, 10, 9], spread=4.0)
    gaps = torch.rand(poses.shape[:2], generator=torch.Generator().manual_seed(3)) < 0.3
    poses = poses * ~gaps[..., None]
    found = cluster_poses(poses, AREA, SIGMAS, 4)
    assert len(found.counts) == 4
    for index, centre in enumerate(found.centres):
        members = poses[found.labels == index]
        assert len(members) == found.counts[index]
        expected = torch.tensor([slow_mean(members, kind) for kind in range(K)])
        assert torch.allclose(centre, expected, atol=1e-4)
    for pose, label, value in zip(poses, found.labels, found.similarity, strict=True):
        similar = [slow_oks(pose, centre) for centre in found.centres]
        assert similar[label] == pytest.approx(max(similar), abs=1e-5)
        assert float(value) == pytest.approx(similar[label], abs=1e-5)


def test_equal_seeds_give_equal_clusters():
    poses, _, _ = groups([20, 15, 10, 9], spread=4.0)
    first, again = (cluster_poses(poses, AREA, SIGMAS, 4, seed=5) for _ in range(2))
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.centres, again.centres)


def test_joint_that_nobody_of_a_group_has_is_missing_in_its_centre():
    poses, truth, _ = groups([10, 20])
    poses[truth == 0, 3] = 0
    poses[torch.nonzero(truth == 1)[:5, 0], 4] = 0
    found = cluster_poses(poses, AREA, SIGMAS, 2)
    assert found.centres[1, 3].tolist() == [0, 0, 0]
    assert float(found.centres[0, 4, 2]) == pytest.approx(15 / 20)
    # A joint the centre lacks counts as missed.
    late = poses[truth == 0][0].clone()
    late[3] = torch.tensor([1.0, 1.0, 1.0])
    assert slow_oks(late, found.centres[1]) < (K - 1) / K + 1e-6


def test_poses_without_joints_belong_nowhere():
    poses, _, _ = groups([3, 4])
    poses[2] = 0
    found = cluster_poses(poses, AREA, SIGMAS, 2)
    assert found.labels[2] == -1 and found.similarity[2] == 0
    assert found.counts.sum() == 6 and (found.labels >= 0).sum() == 6
    for nothing in (torch.zeros(0, K, 3), torch.zeros(4, K, 3)):
        empty = cluster_poses(nothing, AREA, SIGMAS, 3)
        assert empty.centres.shape == (0, K, 3) and empty.counts.shape == (0,)
        assert empty.labels.tolist() == [-1] * len(nothing)


def test_equal_poses_make_one_cluster():
    poses, _, _ = groups([1])
    found = cluster_poses(poses.repeat(6, 1, 1), AREA, SIGMAS, 20)
    assert found.counts.tolist() == [6]
    with pytest.raises(ValueError, match="0 clusters: at least 1"):
        cluster_poses(poses, AREA, SIGMAS, 0)


def test_pose_of_a_grid_is_the_middle_of_the_largest_cell():
    grids = torch.full((2, K, 7, 5), 0.001)
    grids[0, 0, 4, 3] = 0.5
    grids[1, 2, 6, 0] = 0.2
    grids[1, 2, 0, 4] = 0.1
    grids[1, 5] = 0
    grids[1, 6, 1, 1] = 0.0015
    poses = grid_poses(grids)
    assert poses.shape == (2, K, 3)
    assert poses[0, 0].tolist() == [3.5, 4.5, 1]
    assert poses[1, 2].tolist() == [0.5, 6.5, 1]
    # All others are flat, nearly flat or empty: nowhere.
    assert poses[..., 2].sum() == 2 and (poses != 0).any(dim=-1).sum() == 2
    assert grid_poses(grids[:0]).shape == (0, K, 3)
