"""Scenes: keypoints and boxes of images, from annotations and from files of others."""

from __future__ import annotations

import json

import pytest
import torch
from scene_cases import SIDES, K, coco, person

from mpn_d2.data.association_noise import Noise
from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.evaluation.pose_evaluator import export_instances
from mpn_d2.evaluation.scenes import (
    Skipped,
    annotated_scenes,
    check_one_to_one,
    owner_share,
    to_instances,
    with_boxes,
    with_keypoints,
)
from mpn_d2.structures.outputs import AssembledPoses
from mpn_d2.structures.skeleton import get_skeleton

SIGMAS = get_skeleton("coco").sigmas
ELSEWHERE = "entries of images that are not in the annotations"


@pytest.fixture()
def dicts(register_coco):
    """Image 1: somebody, nobody's joints, a crowd; image 2: nobody; image 3: two people."""
    people = [
        person(1, 10, 20, joints=4),
        person(1, 300, 20, joints=0),
        person(1, 200, 20, iscrowd=1),
        person(3, 10, 20),
        person(3, 60, 30, joints=6),
    ]
    name = register_coco(coco(people))
    return load_pose_dicts([name], is_train=False, need_images=False)


def poses_of(scene, ids):
    """Poses that give these candidates, K a box and -1 for none, with score 1."""
    ids = torch.tensor(ids, dtype=torch.int64).view(-1, K)
    found = ids >= 0
    points = scene.candidates.points[ids.clamp(min=0)]
    keypoints = torch.cat([points, torch.ones(*ids.shape, 1)], dim=2) * found[..., None]
    return AssembledPoses(keypoints, found.float().mean(dim=1), ids)


def written(tmp_path, content):
    path = tmp_path / "given.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_annotated_scenes(dicts):
    first, empty, last = annotated_scenes(dicts, K)
    assert [s.image_id for s in (first, empty, last)] == [1, 2, 3]
    assert first.size == (700, 900) and first.people.tolist() == [0, 1, 2]
    # The crowd keeps its box and loses its joints.
    assert first.owners.tolist() == [0] * 4 and first.labelled == 4
    assert first.candidates.types.tolist() == [0, 1, 2, 3]
    assert first.candidates.points[0].tolist() == [19.5, 31.5]
    assert first.candidates.scores.tolist() == [1.0] * 4
    assert first.boxes[0].tolist() == [10, 20, 10 + SIDES[0], 20 + SIDES[1]]
    assert len(empty.candidates) == len(empty.boxes) == len(empty.people) == empty.labelled == 0
    assert last.owners.tolist() == [0] * K + [1] * 6 and last.labelled == K + 6


def test_filtered_boxes_keep_who_they_are(dicts):
    first, empty, last = annotated_scenes(dicts, K, filter_boxes=True)
    assert first.people.tolist() == [0] and len(first.boxes) == 1 and len(empty.boxes) == 0
    assert last.people.tolist() == [0, 1]
    moved = annotated_scenes(list(reversed(dicts)), K, filter_boxes=True)[2]
    assert torch.equal(moved.boxes, first.boxes)


def test_people_of_another_skeleton_are_an_error(dicts):
    with pytest.raises(ValueError, match=f"image 1: .* {K} keypoints, expected 14.*SKELETON"):
        annotated_scenes(dicts, 14)


@pytest.mark.parametrize(
    "noise",
    [Noise(box=0.1), Noise(missing=0.2), Noise(false=0.5), Noise(position=1.0)],
    ids=["box", "missing", "false", "position"],
)
def test_noise_depends_on_seed_and_image_alone(dicts, noise):
    def scenes(records, seed=7):
        return annotated_scenes(records, K, noise=noise, sigmas=SIGMAS, seed=seed)

    def numbers(scene):
        return [*scene.boxes.flatten().tolist(), *scene.candidates.points.flatten().tolist()]

    clean, together = annotated_scenes(dicts, K)[2], scenes(dicts)[2]
    alone = scenes(dicts[2:])[0]
    assert numbers(together) == numbers(alone) != numbers(clean)
    assert numbers(scenes(dicts, seed=8)[2]) != numbers(alone)
    assert alone.labelled == clean.labelled
    again = scenes([{**dicts[2], "image_id": "another"}])[0]
    assert numbers(again) != numbers(alone)
    counted = len(alone.candidates) - len(clean.candidates)
    assert (counted < 0) == bool(noise.missing) and (counted > 0) == bool(noise.false)
    assert ((alone.owners < 0).sum() > 0) == bool(noise.false)


def test_grouped_poses_are_taken_apart(dicts, tmp_path):
    values = [0.0, 0.0, 0.0] * K
    values[3:6], values[9:12] = [40, 50, 0.5], [7, 8, 2.0]
    other = [0.0, 0.0, 0.0] * K
    other[3:6] = [90, 91, 0.25]
    rows = [{"image_id": 3, "keypoints": v, "score": 0.3} for v in (values, other)]
    skipped = Skipped()
    scenes = with_keypoints(annotated_scenes(dicts, K), written(tmp_path, rows), K, skipped)
    found = scenes[2].candidates
    assert found.types.tolist() == [1, 3, 1]
    assert skipped.lines() == ["1 scores above 1 count as 1: give scores from 0 to 1"]
    assert found.points.tolist() == [[40.5, 50.5], [7.5, 8.5], [90.5, 91.5]]
    assert found.scores.tolist() == [0.5, 1.0, 0.25]
    assert scenes[2].owners is None and len(scenes[2].boxes) == 2
    assert len(scenes[0].candidates) == 0


def test_lists_of_keypoints_keep_their_pixel_indices(dicts, tmp_path):
    rows = [{"image_id": 1, "keypoints": [[2, 30, 41, 0.5], [0, 33.25, 44, 0.75]]}]
    scenes = with_keypoints(annotated_scenes(dicts, K), written(tmp_path, rows), K, Skipped())
    scene = scenes[0]
    assert scene.candidates.points.tolist() == [[30.5, 41.5], [33.75, 44.5]]
    ids = [[1, -1, 0] + [-1] * (K - 3)] + [[-1] * K] * 2
    (row,) = export_instances(to_instances(scene, poses_of(scene, ids)), 1)[1]
    assert row["keypoints"][:9] == [33.25, 44, 1, 0, 0, 0, 30, 41, 1]
    assert row["keypoints"][9:] == [0] * (3 * K - 9)


def test_unusable_keypoints_are_counted(dicts, tmp_path):
    text = (
        '[{"image_id": 99, "keypoints": [[0, 1, 2, 1]]}, {"image_id": 1, "keypoints": '
        "[[0, NaN, 2, 1], [1, 5, Infinity, 1], [2, 5, 6, NaN], [3, 5, 6, 0], [4, 5, 6, 1]]}, "
        '{"image_id": 1, "keypoints": []}]'
    )
    skipped = Skipped()
    scenes = with_keypoints(annotated_scenes(dicts, K), written(tmp_path, text), K, skipped)
    assert scenes[0].candidates.types.tolist() == [4]
    assert skipped.lines() == [
        f"skipped 1 {ELSEWHERE}",
        "skipped 3 keypoints with a coordinate or score that is no number or beyond 100,000",
        "skipped 1 keypoints with score 0 or less",
    ]


def test_entries_of_other_categories_are_not_read(dicts, tmp_path):
    odd = [
        {"image_id": 1, "category_id": 9, "keypoints": [1, 2, 1] * 20},
        {"image_id": 1, "category_id": 9, "keypoints": None, "bbox": "none"},
        {"category_id": 9},
    ]
    people = [{"image_id": 1, "category_id": 1, "keypoints": [[4, 5, 6, 1]], "bbox": [1, 2, 3, 4]}]
    path, scenes = written(tmp_path, odd + people), annotated_scenes(dicts, K)
    for read in (
        lambda s: with_keypoints(scenes, path, K, s, 1),
        lambda s: with_boxes(scenes, path, s, 1),
    ):
        skipped = Skipped()
        first = read(skipped)[0]
        assert 1 in (len(first.candidates), len(first.boxes))
        assert skipped.lines() == ["skipped 3 entries of other categories than people"]


def test_boxes_of_a_file(dicts, tmp_path):
    text = (
        '[{"image_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}, {"image_id": 9, "bbox": '
        '[1, 2, 3, 4]}, {"image_id": 1, "bbox": [1, 2, 0, 4]}, {"image_id": 1, "bbox": '
        '[1, 2, 3, -4]}, {"image_id": 1, "bbox": [NaN, 2, 3, 4]}, {"image_id": 1, "bbox": '
        '[1, 2, 1e39, 4]}, {"image_id": 1, "bbox": [1, 2, 3' + 400 * "0" + ", 4]}, "
        '{"image_id": 3, "bbox": '
        '[5, 6, 7.5, 8], "score": 80}]'
    )
    skipped = Skipped()
    scenes = with_boxes(annotated_scenes(dicts, K), written(tmp_path, text), skipped)
    assert scenes[0].boxes.tolist() == [[1, 2, 31, 42]] and scenes[0].box_scores.tolist() == [0.5]
    assert scenes[2].boxes.tolist() == [[5, 6, 12.5, 14]] and scenes[2].box_scores.tolist() == [1]
    assert scenes[1].boxes.shape == (0, 4) and scenes[0].people.tolist() == [-2]
    assert skipped.large_scores == 1
    assert dict(skipped.counts) == {
        ELSEWHERE: 1,
        "boxes without area": 2,
        "boxes with a side or score that is no number or beyond 100,000": 3,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "is not JSON"),
        ({"annotations": []}, "a list of results is needed"),
        ([3], 'entry 0 is no {"image_id", "keypoints"}'),
        (100_000 * "[", "is not JSON"),
        ([{"image_id": 1}], 'entry 0 has no "image_id" or no'),
        ([{"image_id": [1], "keypoints": []}], "image_id must be a number or a text"),
        ([{"image_id": 1, "keypoints": [1, 2, 1] * 14}], f"14 keypoints, expected {K}"),
        ([{"image_id": 1, "keypoints": [1, 2, 1, 1]}], f"1.33333 keypoints, expected {K}"),
        ([{"image_id": 1, "keypoints": [[1, 2, 1]]}], "a list of .type, x, y, score."),
        ([{"image_id": 1, "keypoints": [["nose", 2, 1, 1]]}], "a list of .type"),
        ([{"image_id": 1, "keypoints": "none"}], "a list of .type"),
        ([{"image_id": 1, "keypoints": [[K, 2, 1, 1]]}], f"type {K} is none of 0..{K - 1}"),
        ([{"image_id": 1, "keypoints": [[0.5, 2, 1, 1]]}], "type 0.5 is none of"),
    ],
)
def test_faulty_keypoint_files_are_errors(dicts, tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=f"given.json.*{message}"):
        with_keypoints(annotated_scenes(dicts, K), path, K, Skipped())


@pytest.mark.parametrize(
    "entry",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": "all"},
        {"bbox": [1, 2, 3, "4"]},
        {"bbox": [1] * 4, "score": "a"},
    ],
)
def test_faulty_boxes_are_errors(dicts, tmp_path, entry):
    path = written(tmp_path, [{"image_id": 1, **entry}])
    with pytest.raises(ValueError, match="entry 0: bbox must be four numbers x, y, width, height"):
        with_boxes(annotated_scenes(dicts, K), path, Skipped())


def test_owner_share_by_hand(dicts):
    scenes = annotated_scenes(dicts, K)
    own = list(range(K)), [*range(K, K + 6), *[-1] * (K - 6)]
    first = poses_of(scenes[0], [[0, 1, -1, -1] + [-1] * (K - 4)] + [[-1] * K] * 2)
    empty = poses_of(scenes[1], [])
    swapped = poses_of(scenes[2], [[K, *own[0][1:]], [0, *own[1][1:]]])
    # 2 of 4 joints in image 1; in image 3 two of K + 6 went to the other.
    expected = 100 * (2 + K + 4) / (4 + K + 6)
    assert owner_share(scenes, [first, empty, swapped]) == pytest.approx(expected)
    assert owner_share(scenes[1:2], [empty]) is None
    scenes[2].owners = None
    assert owner_share(scenes, [first, empty, swapped]) is None


def test_shared_and_invented_joints_are_caught(dicts):
    scene = annotated_scenes(dicts, K)[2]
    fine = poses_of(scene, [list(range(K)), [-1] * K])
    check_one_to_one([scene], [fine])
    shared = poses_of(scene, [list(range(K)), [0] + [-1] * (K - 1)])
    with pytest.raises(ValueError, match="image 3: a keypoint was given to two boxes"):
        check_one_to_one([scene], [shared])
    fine.keypoints[1, 0] = torch.tensor([4.0, 5.0, 0.0])
    with pytest.raises(ValueError, match="image 3: a joint that is no candidate.*FALLBACK"):
        check_one_to_one([scene], [fine])
