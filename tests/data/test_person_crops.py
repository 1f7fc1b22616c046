"""Samples of one person: which people, what the crop shows, where the joints are in it."""

from __future__ import annotations

import itertools
import math
import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from mapper_cases import COCO, drawn, square, turn
from PIL import Image

from mpn_d2.data.loader import build_pose_train_loader
from mpn_d2.data.person_crops import (
    CropTransform,
    PersonCrop,
    SinglePersonMapper,
    crop_matrix,
    has_area,
    people_samples,
    people_to_evaluate,
    training_people,
)


def test_crop_of_a_box_by_hand() -> None:
    # 40 x 60 and a quarter on each side: 60 x 90, in 48 x 48 that is 48 / 90.
    matrix = crop_matrix(np.array([10.0, 20, 50, 80]), (48, 48), 0.25)
    scale = 48 / 90
    np.testing.assert_allclose(matrix @ [30, 50, 1], [24, 24])
    np.testing.assert_allclose(matrix @ [30, 5, 1], [24, 0], atol=1e-12)
    np.testing.assert_allclose(matrix @ [0, 50, 1], [24 - 30 * scale, 24])
    # A flat box: the width decides.
    matrix = crop_matrix(np.array([0.0, 0, 100, 10]), (64, 50), 0.0)
    np.testing.assert_allclose(matrix @ [0, 5, 1], [0, 32], atol=1e-12)
    np.testing.assert_allclose(matrix @ [100, 5, 1], [50, 32])


def test_boxes_without_area() -> None:
    boxes = [[0, 0, 5, 5], [3, 3, 3, 9], [3, 3, 9, 3], [5, 5, 2, 9], [0, 0, math.nan, 4]]
    assert has_area(np.array([*boxes, [0, 0, math.inf, 4]])).tolist() == [True] + 5 * [False]
    assert has_area(np.zeros((0, 4))).tolist() == []


@pytest.mark.parametrize("scale", [0.07, 0.31, 0.5, 0.8, 1.0, 3.7])
def test_a_part_gives_what_the_whole_image_gives(scale: float) -> None:
    """At all borders, turned, far outside; photographs of odd sizes, at any scale."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (31, 47, 3), dtype=np.uint8), (467, 301))
    size = (45, 33)
    for center in ((200.3, 150.7), (3.0, 5.0), (466.0, 300.0), (-50.0, 100.0), (9000.0, -8000.0)):
        for angle in (0, 33, -171):
            whole = turn(angle, scale, center, (16.5, 22.5), size)
            part = CropTransform(whole.matrix, size).apply_image(image).astype(int)
            wanted = whole.apply_image(image).astype(int)
            assert part.shape == (*size, 3)
            # Places are rounded to 1/32 pixel by OpenCV, differently for another offset.
            assert abs(part - wanted).max() <= 8 and abs(part - wanted).mean() < 0.3
    grey = CropTransform(whole.matrix, size).apply_image(image[:, :, 0])
    assert grey.shape == size and (grey == 128).all()


def test_a_part_of_a_huge_image_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    warp, sizes = cv2.warpAffine, []
    monkeypatch.setattr(
        cv2, "warpAffine", lambda x, *a, **k: sizes.append(x.size) or warp(x, *a, **k)
    )
    image = np.zeros((40, 40000, 3), dtype=np.uint8)
    image[10:30, 39000:39010] = 255
    matrix = crop_matrix(np.array([39000.0, 10, 39010, 30]), (40, 20), 0.0)
    crop = CropTransform(matrix, (40, 20)).apply_image(image)
    assert (crop[2:-2, 2:-2] == 255).all()
    assert max(sizes) < 3 * 30 * 20


def test_who_is_a_sample() -> None:
    people = [
        square(0, 0, 10, 20, joints=3),
        square(0, 0, 10, 20, joints=2),
        square(0, 0, 10, 20, joints=5, iscrowd=1),
        square(5, 5, 5, 20, joints=5),
        {k: v for k, v in square(0, 0, 9, 9).items() if k != "keypoints"},
        square(4, 4, 30, 20, joints=4),
    ]
    record = {"file_name": "a.png", "height": 40, "width": 40, "image_id": 9}
    dicts = [{**record, "annotations": people}, {**record, "image_id": 10}]
    samples = people_samples(dicts, min_keypoints=3)
    assert [s["owner"] for s in samples] == [0, 5]
    assert all(s["image_id"] == 9 and len(s["annotations"]) == 1 for s in samples)
    assert samples[1]["annotations"][0]["bbox"] == [4, 4, 30, 20]
    assert "segmentation" not in samples[0]["annotations"][0] and "segmentation" in people[0]
    everybody = people_samples(dicts, min_keypoints=3, everybody=True)
    assert [s["owner"] for s in everybody] == [0, 1, 2, 4, 5]


def test_keys_choose_people(cfg: CfgNode, sample: list[dict]) -> None:
    count = sum(len(d["annotations"]) for d in sample)
    assert len(people_to_evaluate(cfg, sample)) == count
    cfg.EVAL.GT_BOX_FILTER = True
    labelled = len(people_to_evaluate(cfg, sample))
    cfg.SINGLE_PERSON.MIN_KEYPOINTS = 10
    assert 0 < len(training_people(cfg, sample)) < labelled < count
    cfg.SINGLE_PERSON.MIN_KEYPOINTS = COCO.num_keypoints + 1
    with pytest.raises(ValueError, match=r"SINGLE_PERSON\.MIN_KEYPOINTS"):
        training_people(cfg, sample)


def test_nobody_to_evaluate_is_an_error(cfg: CfgNode, sample: list[dict]) -> None:
    without = [{k: v for k, v in record.items() if k != "annotations"} for record in sample]
    with pytest.raises(ValueError, match=r"no annotated person in DATASETS\.TEST"):
        people_to_evaluate(cfg, without)


def test_targets_are_one_persons_alone(cfg: CfgNode, tmp_path) -> None:
    """Somebody else stands in the same crop; joints outside it are not there."""
    other = square(32, 10, 48, 40, joints=COCO.num_keypoints)
    own = square(20, 10, 40, 40, joints=4)
    own["keypoints"][3 * 3 :] = [200.0, 20.0, 2] + own["keypoints"][4 * 3 :]
    record = drawn(tmp_path, other, own, size=(60, 70))
    cfg.SINGLE_PERSON.SIZE, cfg.SINGLE_PERSON.MARGIN = (33, 25), 0.1
    (first, second) = people_samples([record], min_keypoints=1)
    found = SinglePersonMapper(cfg, is_train=False)(second)
    assert found["image"].shape == (3, 33, 25) and found["owner"] == 1
    joints = found["instances"].gt_keypoints.tensor
    assert joints.shape == (1, COCO.num_keypoints, 3)
    assert (joints[0, :, 2] > 0).nonzero()[:, 0].tolist() == [0, 1, 2]
    assert not joints[0, 3:].any()
    # Her middle is that of the crop.
    np.testing.assert_allclose(joints[0, :3, :2], [[12.5, 16.5]] * 3, rtol=1e-5)
    np.testing.assert_allclose(found["to_crop"].numpy() @ [30, 25, 1], [12.5, 16.5])
    assert found["box"].tolist() == [20, 10, 40, 40]
    assert (found["height"], found["width"]) == (60, 70)
    shown = SinglePersonMapper(cfg, is_train=False)(first)["instances"].gt_keypoints.tensor
    assert (shown[0, :, 2] > 0).all()


def test_left_and_right_change_places(cfg: CfgNode, tmp_path) -> None:
    person = square(10, 10, 40, 50)
    names = COCO.keypoint_names
    left, right = names.index("left_wrist"), names.index("right_wrist")
    person["keypoints"] = [0.0] * 3 * COCO.num_keypoints
    person["keypoints"][3 * left : 3 * left + 3] = [14.0, 20.0, 2]
    person["keypoints"][3 * right : 3 * right + 3] = [30.0, 40.0, 1]
    (sample,) = people_samples([drawn(tmp_path, person, size=(60, 64))], min_keypoints=1)
    found = []
    for flip in (0.0, 1.0):
        mapper = SinglePersonMapper(
            is_train=True,
            crop=PersonCrop(size=(80, 60), margin=0.0),
            flip_prob=flip,
            image_format="RGB",
            skeleton=COCO,
        )
        found.append(mapper(sample))
    plain, mirrored = (x["instances"].gt_keypoints.tensor[0] for x in found)
    # 30 x 40 pixels in 60 x 80: twice as large.
    assert plain[left].tolist() == [8, 20, 2] and plain[right].tolist() == [40, 60, 1]
    assert mirrored[right].tolist() == [52, 20, 2] and mirrored[left].tolist() == [20, 60, 1]
    assert torch.equal(found[0]["image"], found[1]["image"].flip(2))
    assert "to_crop" not in found[0]


def test_random_crops_move_pixels_and_joints_together(tmp_path) -> None:
    """A bright spot stays at its joint; scale, turn and jitter keep their bounds and use them."""
    names = COCO.keypoint_names
    spot = names.index("nose")
    person = square(60.0, 40, 120, 160, joints=0)
    person["keypoints"][3 * spot : 3 * spot + 3] = [95.3, 88.6, 2]
    record = drawn(tmp_path, person, size=(211, 197))
    ys, xs = np.mgrid[:211, :197] + 0.5
    blob = 255 * np.exp(-((xs - 95.3) ** 2 + (ys - 88.6) ** 2) / (2 * 3.0**2))
    Image.fromarray(blob.round().astype(np.uint8)).convert("RGB").save(record["file_name"])
    (sample,) = people_samples([record], min_keypoints=1)
    crop = PersonCrop(size=(97, 71), margin=0.1, jitter=0.15, scale_factor=(0.8, 1.4), rotation=30)
    mapper = SinglePersonMapper(
        is_train=True, crop=crop, flip_prob=0.5, image_format="RGB", skeleton=COCO
    )
    np.random.seed(0)
    for _ in range(20):
        found = mapper(sample)
        x, y, v = found["instances"].gt_keypoints.tensor[0, spot].tolist()
        assert v == 2
        pixels = found["image"][0].double().numpy()
        rows, columns = np.mgrid[:97, :71] + 0.5
        # Outside the image it is grey.
        pixels[np.hypot(rows - y, columns - x) > 9] = 0
        middle = (columns * pixels).sum() / pixels.sum(), (rows * pixels).sum() / pixels.sum()
        np.testing.assert_allclose(middle, [x, y], atol=0.4)
    box = np.array([[60.0, 40, 120, 160]])
    base = crop_matrix(box[0], (97, 71), 0.1)[0, 0]
    linear = [crop.get_transform(None, box).matrix for _ in range(300)]
    angles = np.degrees([math.atan2(m[1, 0], m[0, 0]) for m in linear])
    scales = np.array([math.hypot(m[0, 0], m[1, 0]) for m in linear]) / base
    assert -30 <= angles.min() < -25 and 25 < angles.max() <= 30
    assert 0.8 / 1.3 <= scales.min() < 0.8 and 1.4 < scales.max() <= 1.4 / 0.7
    middles = np.array([m[:, :2] @ [90, 100] + m[:, 2] for m in linear]) - [35.5, 48.5]
    assert 2 < abs(middles).max() < 1.4 / 0.7 * base * np.hypot(9, 18)


def test_nothing_is_random_at_test_time(cfg: CfgNode, sample: list[dict]) -> None:
    mapper = SinglePersonMapper(cfg, is_train=False)
    for person in people_to_evaluate(cfg, sample)[:4]:
        first, second = mapper(person), mapper(person)
        assert torch.equal(first["image"], second["image"])
        keypoints = first["instances"].gt_keypoints.tensor
        for found, given in zip(
            keypoints.reshape(-1, 3).tolist(),
            np.reshape(person["annotations"][0].get("keypoints", []), (-1, 3)),
            strict=len(keypoints) > 0,
        ):
            if found[2]:
                there = first["to_crop"].numpy() @ [given[0], given[1], 1]
                np.testing.assert_allclose(found[:2], there, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SIZE", (10,)),
        ("SIZE", (0, 10)),
        ("MARGIN", -0.1),
        ("BOX_JITTER", 0.5),
        ("BOX_JITTER", -0.1),
    ],
)
def test_impossible_values_are_named(cfg: CfgNode, key: str, value: object) -> None:
    cfg.SINGLE_PERSON[key] = value
    with pytest.raises(ValueError, match=rf"SINGLE_PERSON\.{key}"):
        SinglePersonMapper(cfg, is_train=True)


def test_stream_goes_on_where_it_was_with_any_workers(paper_config) -> None:
    options = ["DATASETS.TRAIN", "('coco_sample_train',)", "SOLVER.IMS_PER_BATCH", "3"]
    options += ["SINGLE_PERSON.SIZE", "(48, 36)", "DATALOADER.NUM_WORKERS"]

    def batches(start: int, count: int, workers: int = 0) -> list[list[dict]]:
        cfg = paper_config("quick/single_person_drawn.yaml", [*options, str(workers)])
        return list(itertools.islice(build_pose_train_loader(cfg, start), count))

    whole = batches(0, 20)
    people = {(x["image_id"], x["owner"]) for batch in whole for x in batch}
    cfg = paper_config("quick/single_person_drawn.yaml", [*options, "0"])
    dataset = build_pose_train_loader(cfg).dataset
    # Sixty places: every person of an epoch, then again, differently cut out.
    assert len(people) == len(dataset.dicts) < 60
    for start, workers in ((18, 0), (17, 1)):
        again = batches(start, 20 - start, workers)
        for x, y in zip(itertools.chain(*whole[start:]), itertools.chain(*again), strict=True):
            assert (x["image_id"], x["owner"]) == (y["image_id"], y["owner"])
            assert torch.equal(x["image"], y["image"])
            joints = (z["instances"].gt_keypoints.tensor for z in (x, y))
            assert torch.equal(*joints)
    crops = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(crops[4]["image"], whole[1][1]["image"])
