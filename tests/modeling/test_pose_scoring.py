"""OKS of regressed poses against pycocotools, the filter against its rules, the score's loss."""

from __future__ import annotations

import math

import pytest
import torch

from mpn_d2.modeling.heads.pose_scoring import (
    OKSFilter,
    PoseScorer,
    oks_with_people,
    scoring_loss,
)
from mpn_d2.structures.skeleton import get_skeleton
from tests.structures.test_oks import coco_oks

COCO = get_skeleton("coco")
SIGMAS = torch.tensor(COCO.sigmas)
K = COCO.num_keypoints


def people(count: int) -> torch.Tensor:
    keypoints = torch.rand(count, K, 3) * 100
    keypoints[..., 2] = torch.randint(0, 3, (count, K))
    keypoints[:, 0, 2] = 2.0
    return keypoints


def test_oks_is_pycocotools():
    keypoints, areas = people(3), torch.tensor([900.0, 5000.0, 20.0])
    poses = keypoints[[0, 0, 1, 2], :, :2] + 3 * torch.randn(4, K, 2)
    found = oks_with_people(poses, keypoints, areas, SIGMAS)
    with_scores = torch.cat([poses, torch.ones(4, K, 1)], dim=2)
    expected = coco_oks(keypoints.numpy(), with_scores.numpy(), areas.tolist())
    torch.testing.assert_close(found.double(), torch.as_tensor(expected), atol=1e-5, rtol=1e-4)
    assert found.shape == (4, 3) and found[0, 0] > 0.3


def test_oks_of_people_without_joints_or_area():
    keypoints = people(2)
    keypoints[0, :, 2] = 0.0
    poses = keypoints[:, :, :2].clone().requires_grad_()
    found = oks_with_people(poses, keypoints, torch.tensor([100.0, 0.0]), SIGMAS)
    assert not found.requires_grad
    # Nobody resembles a person without joints; an area below 1 counts as 1.
    assert found[:, 0].tolist() == [0.0, 0.0] and found[1, 1] == 1.0
    moved = keypoints[1:, :, :2] + torch.tensor([0.02, 0.0])
    oks = oks_with_people(moved, keypoints[1:], torch.tensor([0.0]), SIGMAS)[0, 0]
    has = keypoints[1, :, 2] > 0
    terms = torch.exp(-(0.02**2) / (2 * (2 * SIGMAS) ** 2))
    torch.testing.assert_close(oks, terms[has].mean(), atol=1e-5, rtol=1e-5)
    assert oks_with_people(poses[:0], keypoints, torch.ones(2), SIGMAS).shape == (0, 2)
    assert oks_with_people(poses, keypoints[:0], torch.ones(0), SIGMAS).shape == (2, 0)


OKS = torch.tensor(
    [
        [0.9, 0.1],  # of person 0, alike
        [0.5, 0.0],  # just enough
        [0.2, 0.7],  # of person 0, but like person 1: kept
        [0.4, 0.3],  # of person 1, unlike anybody
        [0.1, 0.35],  # of person 1, the best of hers: kept as such
    ]
)
OWNERS = torch.tensor([0, 0, 0, 1, 1])


def test_filter_keeps_the_alike_and_the_best_of_each():
    assert OKSFilter(0.5, keep_best=False)(OKS, OWNERS).tolist() == [True] * 3 + [False] * 2
    assert OKSFilter(0.5, keep_best=True)(OKS, OWNERS).tolist() == [True] * 3 + [False, True]
    # Above every OKS the best of each person alone are left.
    assert OKSFilter(1.0)(OKS, OWNERS).nonzero()[:, 0].tolist() == [0, 4]
    assert OKSFilter(0.0, keep_best=False)(OKS, OWNERS).all()
    # A person without locations has no best pose.
    assert OKSFilter(1.0)(OKS[:3], OWNERS[:3]).tolist() == [True, False, False]
    # Even if all are 0.
    assert int(OKSFilter(0.5)(torch.zeros(4, 2), torch.tensor([1, 1, 0, 0])).sum()) == 2


def test_filter_of_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    assert OKSFilter()(torch.zeros(0, 3), none).shape == (0,)
    assert OKSFilter()(torch.zeros(0, 0), none).shape == (0,)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan])
def test_impossible_thresholds(threshold):
    with pytest.raises(ValueError, match=r"FILTER\.THRESH is"):
        OKSFilter(threshold)


def test_score_learns_the_oks():
    logits = torch.tensor([0.3, -2.0, 1.5], requires_grad=True)
    oks = torch.tensor([0.8, 0.1, 1.0], requires_grad=True)
    loss = scoring_loss(logits, oks)
    p = logits.detach().sigmoid()
    expected = -(oks * p.log() + (1 - oks) * (1 - p).log()).sum()
    torch.testing.assert_close(loss, expected.detach())
    loss.backward()
    torch.testing.assert_close(logits.grad, p - oks.detach())
    assert oks.grad is None
    empty = scoring_loss(logits[:0], oks[:0])
    assert empty == 0 and empty.requires_grad
    assert PoseScorer(4)(torch.randn(2, 4, 3, 5)).shape == (2, 1, 3, 5)
