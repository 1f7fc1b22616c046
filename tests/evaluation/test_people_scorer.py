"""AP of groups of people, and the OKS that COCO sees, by hand and against pycocotools."""

from __future__ import annotations

import math

import pytest
import torch
from pycocotools.cocoeval import COCOeval
from scene_cases import SIDES, K, coco, person

from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.evaluation.assembly import evaluate_poses
from mpn_d2.evaluation.owners import own_joints
from mpn_d2.evaluation.people_scorer import PeopleScorer, joints_between, overlap_between
from mpn_d2.evaluation.scenes import annotated_scenes, to_instances
from mpn_d2.structures.outputs import AssembledPoses
from mpn_d2.structures.skeleton import get_skeleton

SIGMAS = get_skeleton("coco").sigmas


@pytest.fixture()
def case(register_coco):
    """Scenes of one full person, one with 4 joints, a crowd, nobody, two that overlap; scorer."""
    people = [
        person(1, 10, 20),
        person(1, 300, 20, joints=4),
        person(1, 200, 20, iscrowd=1),
        person(1, 500, 20, joints=0),
        person(3, 10, 20, joints=9),
        person(3, 60, 30, joints=11),
    ]
    name = register_coco(coco(people))
    dicts = load_pose_dicts([name], is_train=False, need_images=False)
    return name, annotated_scenes(dicts, K), PeopleScorer(name, SIGMAS)


def true_poses(scene, moved=()):
    """Everybody's own joints; those of the people in `moved` lie far away."""
    joints = own_joints(scene, K)
    for row in moved:
        joints[row, :, :2] += 200 * (joints[row, :, 2:] > 0)
    ids = torch.full(joints.shape[:2], -1)
    return AssembledPoses(joints, joints[..., 2].mean(dim=1), ids)


def test_score_is_that_of_the_evaluator(case):
    name, scenes, scorer = case
    poses = [true_poses(scenes[0], [0]), true_poses(scenes[1]), true_poses(scenes[2])]
    expected = evaluate_poses(name, scenes, poses, SIGMAS)["AP"]
    assert 0 < expected < 100 and scorer.score(scenes, poses) == pytest.approx(expected)


def test_groups_count_alone(case):
    """The full person's pose is wrong: it costs her own group everything, the others nothing."""
    _, scenes, scorer = case
    poses = [true_poses(scenes[0], [0]), true_poses(scenes[1]), true_poses(scenes[2])]

    def score(group):
        return scorer.score_group(scenes, scenes, poses, group)

    assert score(joints_between(1, 5)) == (pytest.approx(100.0), 1)
    assert score(joints_between(6, 11)) == (pytest.approx(100.0), 2)
    assert score(joints_between(12, K)) == (0.0, 1)
    assert score(joints_between(5, 8)) == (None, 0)
    # Everybody again afterwards.
    assert 0 < scorer.score(scenes, poses) < 100


def test_groups_of_filtered_boxes(case):
    """Without the crowd's box the boxes have other rows, and the people are the same."""
    _, scenes, scorer = case
    keep = torch.tensor([1, 3])
    first = type(scenes[0])(**{**vars(scenes[0]), "boxes": scenes[0].boxes[keep], "people": keep})
    filtered = [first, *scenes[1:]]
    poses = [true_poses(scene) for scene in filtered]
    found = scorer.score_group(scenes, filtered, poses, joints_between(1, 5))
    assert found == (pytest.approx(100.0), 1)
    # The full person has no box any more.
    assert scorer.score_group(scenes, filtered, poses, joints_between(12, K)) == (0.0, 1)


def test_overlap_by_hand():
    width, height = SIDES
    boxes = torch.tensor([[0.0, 0, 100, 100], [50, 0, 150, 100], [500, 500, 600, 600]])
    labelled = torch.tensor([3, 0, 2])
    third = 1 / 3  # half of each is shared
    meant = overlap_between(0.3, 0.4)(boxes, labelled)
    # The second has no joints and still overlaps the first.
    assert meant.tolist() == [True, False, False]
    assert overlap_between(0.0, third - 1e-3)(boxes, labelled).tolist() == [False, False, True]
    assert overlap_between(third + 1e-3, math.inf)(boxes, labelled).tolist() == [False] * 3
    same = torch.tensor([[0.0, 0, width, height]] * 2)
    assert overlap_between(0.5, math.inf)(same, labelled[:2] + 1).tolist() == [True, True]
    assert overlap_between(0.0, 0.1)(boxes[:0], labelled[:0]).shape == (0,)
    flat = torch.tensor([[0.0, 0, 0, 10], [0, 0, 0, 10]])
    assert overlap_between(0.0, 0.1)(flat, labelled[:2] + 1).tolist() == [True, True]


def test_best_oks_is_that_of_pycocotools(case):
    _, scenes, scorer = case
    torch.manual_seed(3)
    for scene in scenes:
        pose = true_poses(scene)
        pose.keypoints[..., :2] += torch.randn_like(pose.keypoints[..., :2]) * 20
        pose.keypoints[..., 2] = 1.0
        scorer.score([scene], [pose])
        boxed = to_instances(scene, pose)
        best = scorer.best_oks(scene, pose)
        assert best.shape == (len(boxed),)
        if len(boxed) == 0:
            continue
        truth, results = scorer._coco_api, scorer._predictions[0]["keypoints"]
        judge = COCOeval(truth, truth.loadRes([{**r, "category_id": 1} for r in results]))
        judge.params.iouType, judge.params.kpt_oks_sigmas = "keypoints", scorer._sigmas
        judge._prepare()
        people = judge._gts[scene.image_id, 1]
        ious = judge.computeOks(scene.image_id, 1)
        counted = [i for i, g in enumerate(people) if not g["iscrowd"] and g["num_keypoints"]]
        order = sorted(range(len(boxed)), key=lambda i: -pose.scores[i].item())
        expected = torch.from_numpy(ious[:, counted].max(axis=1)).float()
        assert 0.1 < expected.max() < 0.95
        torch.testing.assert_close(best[order], expected, rtol=1e-3, atol=1e-4)
