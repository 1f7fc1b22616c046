"""Simulated detections: shares, scores, places and owners over many people."""

from __future__ import annotations

import pytest
import torch
from scene_cases import K, coco, person

from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.evaluation.detections import simulated_detections
from mpn_d2.evaluation.scenes import annotated_scenes, owner_share, to_instances
from mpn_d2.structures.outputs import AssembledPoses
from mpn_d2.structures.skeleton import get_skeleton

COCO = get_skeleton("coco")
IMAGES = 400


@pytest.fixture()
def dicts(register_coco):
    """One person in each image but the last, which holds nobody."""
    people = [person(i, 10 + i, 20) for i in range(1, IMAGES)]
    name = register_coco(coco(people, images=IMAGES))
    return load_pose_dicts([name], is_train=False, need_images=False)


def test_shares_and_places(dicts):
    found = simulated_detections(dicts, COCO, seed=3)
    boxes = torch.cat([scene.boxes for scene in found])
    people = torch.cat([scene.people for scene in found])
    assert (people >= 0).float().mean() * len(people) / (IMAGES - 1) == pytest.approx(
        0.95, abs=0.04
    )
    # Second boxes of a fifth of them, and two an image that are false.
    others = int((people < 0).sum()) / IMAGES
    assert others == pytest.approx(0.19 + 2, abs=0.25)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    truth = torch.cat(
        [s.boxes for s, f in zip(annotated_scenes(dicts, K), found) if (f.people >= 0).any()]
    )
    sides = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
    off = (boxes[people >= 0] - truth) / sides
    assert off.std() == pytest.approx(0.05, abs=0.005) and off.mean().abs() < 0.005
    last = found[-1]
    assert len(last.candidates) == 0 and (last.people < 0).all()
    owners = torch.cat([scene.owners for scene in found])
    labelled = K * (IMAGES - 1)
    assert (owners >= 0).sum() / labelled == pytest.approx(0.9, abs=0.02)
    assert (owners < 0).sum() / labelled == pytest.approx(0.2, abs=0.02)


def test_scores_tell_a_little_of_what_is_true(dicts):
    found = simulated_detections(dicts, COCO, seed=3)
    for scores, true in (
        (
            torch.cat([s.candidates.scores for s in found]),
            torch.cat([s.owners for s in found]) >= 0,
        ),
        (torch.cat([s.box_scores for s in found]), torch.cat([s.people for s in found]) >= 0),
    ):
        assert scores.min() >= 0.1 and scores.max() <= 1
        # The larger and the smaller of two uniform numbers between 0.1 and 1.
        assert scores[true].mean() == pytest.approx(0.1 + 0.9 * 2 / 3, abs=0.03)
        assert scores[~true].mean() == pytest.approx(0.1 + 0.9 / 3, abs=0.03)


def test_seed_and_image_decide(dicts):
    first, again, other = (simulated_detections(dicts[:9], COCO, seed=s) for s in (3, 3, 4))
    alone = simulated_detections(dicts[4:5], COCO, seed=3)[0]
    for a, b in (*zip(first, again, strict=True), (first[4], alone)):
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.box_scores, b.box_scores)
        assert torch.equal(a.candidates.points, b.candidates.points)
        assert torch.equal(a.candidates.scores, b.candidates.scores)
    assert not torch.equal(first[4].box_scores, other[4].box_scores)


def test_owners_count_in_their_better_box_alone(dicts):
    """Everybody's own keypoints in the first box that is hers; none elsewhere."""
    found = simulated_detections(dicts, COCO, seed=3)
    poses = []
    for scene in found:
        ids = torch.full((len(scene.boxes), K), -1)
        for index, (kind, owner) in enumerate(zip(scene.candidates.types, scene.owners)):
            for row in (scene.people == owner).nonzero()[:, 0]:
                ids[row, kind] = index
        keypoints = torch.zeros(len(ids), K, 3)
        poses.append(AssembledPoses(keypoints, torch.ones(len(ids)), ids))
        assert len(to_instances(scene, poses[-1])) == len(scene.boxes)
    assert owner_share(found, poses) == pytest.approx(100 * 0.95 * 0.9, abs=4)
