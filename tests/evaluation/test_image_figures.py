"""Pairs of people and poses, and the order of images, on made-up people."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpn_d2.evaluation.image_figures import LEAST_OKS, ImageFigures, image_figures
from mpn_d2.structures.oks import pairwise_oks
from mpn_d2.structures.skeleton import get_skeleton

SKELETON = get_skeleton("coco")
K = SKELETON.num_keypoints
SIDE = 100.0


def joints(x: float, flag: int = 2) -> list[float]:
    """Somebody's keypoints in a box of SIDE at (x, 50)."""
    spread = np.random.default_rng(0).random((K, 2)) * SIDE
    return np.column_stack([spread + (x, 50), np.full(K, flag)]).reshape(-1).tolist()


def person(image_id: int, x: float, **changes: object) -> dict:
    return {
        "image_id": image_id,
        "category_id": 1,
        "bbox": [x, 50, SIDE, SIDE],
        "area": SIDE**2,
        "keypoints": joints(x),
        "num_keypoints": K,
        "iscrowd": 0,
        **changes,
    }


def pose(image_id: int, x: float, score: float = 0.5) -> dict:
    row = {"image_id": image_id, "category_id": 1, "keypoints": joints(x), "score": score}
    return {**row, "bbox": [x, 50, SIDE, SIDE]}


def figures(
    people: list[dict], poses: list[dict], threshold: float = 0.0, images: int = 1
) -> list[ImageFigures]:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{**p, "id": i} for i, p in enumerate(people, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(poses) if poses else COCO()
        scorer = COCOeval(truth, results, "keypoints")
        scorer.params.kpt_oks_sigmas = np.array(SKELETON.sigmas)
        scorer.evaluate()
    return image_figures(scorer, threshold)


def test_oks_and_pairs() -> None:
    """The larger sum of OKS wins, not the nearer neighbour of whoever comes first."""
    places, found = (100.0, 130.0, 700.0), (118.0, 86.0, 400.0)
    people = [person(1, x) for x in places]
    poses = [pose(1, x, score) for x, score in zip(found, (0.9, 0.8, 0.7), strict=True)]
    (image,) = figures(people, poses)
    oks = pairwise_oks(
        torch.tensor([p["keypoints"] for p in people]).view(-1, K, 3),
        torch.tensor([p["keypoints"] for p in poses]).view(-1, K, 3),
        torch.full((3,), SIDE**2),
        torch.tensor(SKELETON.sigmas),
    )
    # The first pose is nearer to both than the second is, but one person would be left.
    assert oks[0, 1] > LEAST_OKS and oks[0, 0] > LEAST_OKS
    assert image.pose_of == [1, 0, None]
    assert image.oks == pytest.approx([float(oks[0, 1]), float(oks[1, 0]), 0], abs=1e-5)
    assert image.missed == [2] and image.false == [2] and not image.excused
    assert image.quality == pytest.approx(sum(image.oks) / 4)


def test_pairs_are_those_of_a_search() -> None:
    from itertools import permutations

    rng = np.random.default_rng(4)
    for _ in range(20):
        people = [person(1, x) for x in rng.uniform(0, 120, 3)]
        poses = [pose(1, x, s) for x, s in zip(rng.uniform(0, 120, 4), rng.random(4), strict=True)]
        (image,) = figures(people, poses)
        oks = pairwise_oks(
            torch.tensor([p["keypoints"] for p in people]).view(-1, K, 3),
            torch.tensor([p["keypoints"] for p in poses]).view(-1, K, 3),
            torch.full((3,), SIDE**2),
            torch.tensor(SKELETON.sigmas),
        )
        oks = torch.where(oks < LEAST_OKS, 0.0, oks)
        best = max(
            sum(float(oks[i, j]) for i, j in enumerate(p)) for p in permutations(range(4), 3)
        )
        assert sum(image.oks) == pytest.approx(best, abs=1e-5)
        assert [p["score"] for p in image.poses] == sorted(p["score"] for p in poses)[::-1]


def test_who_does_not_count() -> None:
    nobody = {"keypoints": [0] * (3 * K), "num_keypoints": 0}
    people = [person(1, 0), person(1, 300, **nobody), person(1, 600, iscrowd=1)]
    poses = [pose(1, 0), pose(1, 310), pose(1, 1000)]
    (image,) = figures(people, poses)
    assert len(image.people) == 1 and len(image.ignored) == 2
    assert image.pose_of == [0] and image.oks == [pytest.approx(1)]
    assert image.excused == {1} and image.false == [2]
    assert image.quality == pytest.approx(0.5)


def test_low_scores_and_more_than_twenty_are_left_out() -> None:
    poses = [pose(1, 300.0, 0.3), pose(1, 0.0, 0.2)]
    (image,) = figures([person(1, 0)], poses, threshold=0.25)
    assert image.pose_of == [None] and image.false == [0] and image.quality == 0
    (image,) = figures([person(1, 0)], poses, threshold=0.2)
    assert image.pose_of == [1] and image.quality == pytest.approx(0.5)
    (image,) = figures([person(1, 0)], [pose(1, 500.0, 0.5)] * 20 + [pose(1, 0.0, 0.4)])
    assert len(image.poses) == 20 and image.missed == [0]


def test_the_worst_image_comes_first() -> None:
    people = [person(2, 0), person(3, 0), person(3, 300), person(4, 0), person(4, 300)]
    poses = [pose(2, 0), pose(3, 0), pose(6, 0), pose(5, 0), pose(5, 300), pose(5, 600)]
    found = figures(people, poses, images=7)
    # 4: two missed, 5: three false, 6: one false, 3: one of two, 1, 2 and 7: nothing wrong.
    assert [f.image["id"] for f in found] == [5, 4, 6, 3, 1, 2, 7]
    assert [f.quality for f in found] == pytest.approx([0, 0, 0, 0.5, 1, 1, 1])
