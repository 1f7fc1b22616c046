"""OKS against pycocotools and hand-made cases; suppression against slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpn_d2.structures.oks import oks_nms, pairwise_oks, self_oks, soft_oks_nms
from mpn_d2.structures.skeleton import get_skeleton

SIGMAS = torch.tensor([0.026, 0.05, 0.107])


def coco_oks(truth, found, areas):
    """(D, G) OKS by pycocotools, coordinates as they are."""
    anns = [
        {
            "id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": float(area),
            "bbox": [0, 0, 10, 10], "keypoints": pose.flatten().tolist(),
            "num_keypoints": int((pose[:, 2] > 0).sum()),
        }
        for i, (pose, area) in enumerate(zip(truth, areas))
    ]  # fmt: skip
    results = [
        {"image_id": 1, "category_id": 1, "score": 1.0 - i / 100, "keypoints": p.flatten().tolist()}
        for i, p in enumerate(found)
    ]
    coco = COCO()
    coco.dataset = {"images": [{"id": 1}], "annotations": anns, "categories": [{"id": 1}]}
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
    evaluation._prepare()
    return evaluation.computeOks(1, 1)


def test_equals_pycocotools(capsys):
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 100, (5, 17, 3))
    truth[..., 2] = generator.integers(0, 3, (5, 17))
    truth[:, 0, 2] = 2
    found = truth[[0, 1, 2, 3]] + generator.normal(0, 3, (4, 17, 3))
    found[..., 2] = 1
    areas = generator.uniform(500, 5000, 5)
    sigmas = torch.tensor(get_skeleton("coco").sigmas, dtype=torch.float64)
    ours = pairwise_oks(torch.tensor(truth), torch.tensor(found), torch.tensor(areas), sigmas)
    np.testing.assert_allclose(ours.T.numpy(), coco_oks(truth, found, areas), atol=1e-6)


def test_worked_example():
    pose = torch.tensor([[[0.0, 0.0, 2.0], [10.0, 0.0, 2.0], [99.0, 99.0, 0.0]]])
    other = torch.tensor([[[0.0, 0.0], [13.0, 4.0], [0.0, 0.0]]])
    value = pairwise_oks(pose, other, torch.tensor([400.0]), SIGMAS)
    expected = (1 + math.exp(-25 / (2 * 400 * 0.1**2))) / 2
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_poses_without_joints_or_area_and_empty_sets():
    pose = torch.zeros(2, 3, 3)
    pose[0, 0] = torch.tensor([5.0, 5.0, 1.0])
    value = pairwise_oks(pose, pose, torch.zeros(2), SIGMAS)
    assert value.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    none = torch.zeros(0, 3, 3)
    assert pairwise_oks(none, pose, torch.zeros(0), SIGMAS).shape == (0, 2)
    assert pairwise_oks(pose, none, torch.zeros(2), SIGMAS).shape == (2, 0)
    assert oks_nms(none, torch.zeros(0), torch.zeros(0), SIGMAS, 0.9).shape == (0,)
    kept, scores = soft_oks_nms(none, torch.zeros(0), torch.zeros(0), SIGMAS, 0.9)
    assert kept.shape == scores.shape == (0,)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="expected"):
        pairwise_oks(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.zeros(2), SIGMAS)
    with pytest.raises(ValueError, match="areas"):
        pairwise_oks(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3), torch.zeros(3), SIGMAS)


def random_poses(seed, number=12):
    generator = torch.Generator().manual_seed(seed)
    poses = torch.rand(number, 3, 3, generator=generator) * 20
    poses[..., 2] = (torch.rand(number, 3, generator=generator) > 0.2).float()
    scores = torch.rand(number, generator=generator)
    areas = torch.rand(number, generator=generator) * 4000 + 1000
    return poses, scores, areas


def slow_similarity(a, b, area_a, area_b):
    total, joints_a, joints_b = 0.0, 0, 0
    for k, sigma in enumerate(SIGMAS.tolist()):
        joints_a += int(a[k][2] > 0)
        joints_b += int(b[k][2] > 0)
        if a[k][2] > 0 and b[k][2] > 0:
            squared = (a[k][0] - b[k][0]) ** 2 + (a[k][1] - b[k][1]) ** 2
            total += math.exp(-squared / (2 * (area_a + area_b) / 2 * (2 * sigma) ** 2))
    return total / max(min(joints_a, joints_b), 1)


@pytest.mark.parametrize("seed", range(4))
def test_hard_suppression_equals_slow_loop(seed):
    poses, scores, areas = random_poses(seed)
    rows, area = poses.tolist(), areas.tolist()
    waiting = sorted(range(len(rows)), key=lambda i: -scores[i].item())
    kept = []
    while waiting:
        best = waiting.pop(0)
        kept.append(best)
        waiting = [
            i for i in waiting if slow_similarity(rows[best], rows[i], area[best], area[i]) <= 0.3
        ]
    assert 2 < len(kept) < len(rows)
    assert oks_nms(poses, scores, areas, SIGMAS, 0.3).tolist() == kept


@pytest.mark.parametrize("seed", range(4))
def test_soft_suppression_equals_slow_loop(seed):
    poses, scores, areas = random_poses(seed)
    rows, area, current = poses.tolist(), areas.tolist(), scores.tolist()
    waiting, kept, lowered = list(range(len(rows))), [], []
    while waiting:
        best = max(waiting, key=lambda i: current[i])
        if current[best] < 0.2:
            break
        waiting.remove(best)
        kept.append(best)
        lowered.append(current[best])
        for i in waiting:
            oks = slow_similarity(rows[best], rows[i], area[best], area[i])
            current[i] *= math.exp(-(oks**2) / 0.5)
    index, values = soft_oks_nms(poses, scores, areas, SIGMAS, 0.5, min_score=0.2)
    assert index.tolist() == kept
    assert values.tolist() == pytest.approx(lowered, rel=1e-4)


def test_poses_sharing_one_joint_of_many_are_no_repeats():
    poses = torch.zeros(2, 3, 3)
    poses[:, 0] = torch.tensor([5.0, 5.0, 1.0])
    poses[0, 1] = torch.tensor([9.0, 5.0, 1.0])
    poses[1, 2] = torch.tensor([9.0, 5.0, 1.0])
    assert self_oks(poses, torch.tensor([900.0, 900.0]), SIGMAS)[0, 1] == 0.5
