"""Person IoU against a slow count over pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog

from mpn_d2.data import register_pose_datasets
from mpn_d2.evaluation import PersonSegEvaluator

SAMPLE = "coco_sample_train"


@pytest.fixture(autouse=True)
def _sample() -> None:
    register_pose_datasets()


@pytest.fixture
def register(register_coco: Callable[..., str]) -> Callable[..., str]:
    """Registers 12 x 10 images (id to annotations); gone after the test."""

    def make(people: dict[int, list[dict]]) -> str:
        annotations = [
            {"image_id": i, "category_id": 7, **a}
            for i, of_image in people.items()
            for a in of_image
        ]
        for i, annotation in enumerate(annotations):
            annotation["id"] = i + 1
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 12, "width": 10} for i in people]
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "person"}],
        }
        return register_coco(content)

    return make


def _rectangle(x: int, y: int, w: int, h: int, **changes: object) -> dict:
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {"bbox": [x, y, w, h], "iscrowd": 0, "segmentation": [corners], **changes}


def _scores(person: np.ndarray) -> torch.Tensor:
    p = torch.from_numpy(person.astype(np.float32)) * 0.8 + 0.1
    return torch.stack([1 - p, p])


def _run(evaluator: PersonSegEvaluator, masks: dict[int, np.ndarray]) -> dict:
    evaluator.reset()
    for image_id, mask in masks.items():  # batches of one
        evaluator.process(
            [{"image_id": image_id, "file_name": f"{image_id}.jpg"}], [{"sem_seg": _scores(mask)}]
        )
    return evaluator.evaluate()["sem_seg"]


def _sample_truth() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Image id to (person pixels, crowd pixels without people), drawn one annotation at a time."""
    content = json.loads(Path(MetadataCatalog.get(SAMPLE).json_file).read_text())
    truth = {}
    for image in content["images"]:
        size = image["height"], image["width"]
        person, crowd = np.zeros(size, bool), np.zeros(size, bool)
        for a in content["annotations"]:
            if a["image_id"] == image["id"]:
                rle = mask_util.frPyObjects(a["segmentation"], *size)
                rle = mask_util.merge(rle) if isinstance(rle, list) else rle
                (crowd if a["iscrowd"] else person)[mask_util.decode(rle) > 0] = True
        truth[image["id"]] = person, crowd & ~person
    return truth


def test_perfect_half_and_no_masks_of_the_sample() -> None:
    truth = _sample_truth()
    assert sum(ignored.sum() for _, ignored in truth.values()) > 10_000
    before = dict(MetadataCatalog.get(SAMPLE).as_dict())
    evaluator = PersonSegEvaluator(SAMPLE)

    perfect = _run(evaluator, {i: person for i, (person, _) in truth.items()})
    assert set(perfect) == {"IoU-background", "IoU-person", "mIoU", "pACC"}
    assert set(perfect.values()) == {100.0}
    # Inside crowds anything goes.
    assert _run(evaluator, {i: p | ignored for i, (p, ignored) in truth.items()}) == perfect

    rng = np.random.default_rng(0)
    wrong = {i: p ^ (rng.random(p.shape) < 0.3) for i, (p, _) in truth.items()}
    wrong = {i: w[:, ::-1] if i % 2 else w for i, w in wrong.items()}
    both = either = both_not = either_not = right = count = 0
    for i, (person, ignored) in truth.items():
        p, w = person[~ignored], wrong[i][~ignored]
        both, either = both + (p & w).sum(), either + (p | w).sum()
        both_not, either_not = both_not + (~p & ~w).sum(), either_not + (~p | ~w).sum()
        right, count = right + (p == w).sum(), count + p.size
    results = _run(evaluator, wrong)
    ious = 100 * both_not / either_not, 100 * both / either
    assert 10 < ious[1] < 70
    assert results["IoU-background"] == pytest.approx(ious[0])
    assert results["IoU-person"] == pytest.approx(ious[1])
    assert results["mIoU"] == pytest.approx(sum(ious) / 2)
    assert results["pACC"] == pytest.approx(100 * right / count)

    nobody = _run(evaluator, {i: np.zeros_like(p) for i, (p, _) in truth.items()})
    assert nobody["IoU-person"] == 0 and nobody["IoU-background"] > 50
    assert _run(evaluator, {})["IoU-person"] == 0
    assert dict(MetadataCatalog.get(SAMPLE).as_dict()) == before


def test_who_is_person_and_what_is_ignored(register: Callable) -> None:
    people = [
        _rectangle(0, 0, 4, 4, num_keypoints=0),
        _rectangle(2, 2, 4, 4, iscrowd=1),  # [2, 6) ignored but for the person's own pixels
        _rectangle(7, 7, 2, 3, segmentation=[[7, 7, 9, 10]]),  # no mask: its box is ignored
        # Other categories are background, with a mask, as a crowd and without a mask.
        _rectangle(0, 8, 4, 2, category_id=3),
        _rectangle(0, 10, 4, 2, category_id=3, iscrowd=1),
        _rectangle(6, 0, 3, 3, category_id=3, segmentation=[]),
    ]
    evaluator = PersonSegEvaluator(register({1: people}))
    drawn = evaluator.sem_seg_loading_fn(1, dtype=int)
    expected = np.zeros((12, 10), int)
    expected[2:6, 2:6] = 255
    expected[7:10, 7:9] = 255
    expected[0:4, 0:4] = 1
    np.testing.assert_array_equal(drawn, expected)
    # 16 person pixels, 8 of them found, 4 false: 8 / 20; the other 86 pixels 82 / 94.
    mask = np.zeros((12, 10), bool)
    mask[0:2, 0:4] = True
    mask[11, 0:4] = True
    mask[4:6, 4:6] = True  # ignored
    results = _run(evaluator, {1: mask})
    assert results["IoU-person"] == pytest.approx(40)
    assert results["IoU-background"] == pytest.approx(100 * 82 / 94)


def test_images_without_people_are_none_for_that_class(register: Callable) -> None:
    evaluator = PersonSegEvaluator(register({1: [], 2: []}))
    empty = np.zeros((12, 10), bool)
    results = _run(evaluator, {1: empty, 2: empty})
    assert results == {"IoU-background": 100, "IoU-person": None, "mIoU": 100, "pACC": 100}
    assert set(_run(evaluator, {}).values()) == {None}
    everywhere = PersonSegEvaluator(register({1: [_rectangle(0, 0, 10, 12, iscrowd=1)]}))
    assert set(_run(everywhere, {1: empty}).values()) == {None}


def test_predictions_are_written_as_rle(register: Callable, tmp_path: Path) -> None:
    evaluator = PersonSegEvaluator(
        register({4: [_rectangle(1, 1, 2, 2)]}), output_dir=str(tmp_path)
    )
    mask = np.zeros((12, 10), bool)
    mask[1:3, 1:5] = True
    _run(evaluator, {4: mask})
    (row,) = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    np.testing.assert_array_equal(mask_util.decode(row["segmentation"]), mask)
    assert row["file_name"] == "4.jpg" and row["category_id"] == 1


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.99])
def test_pixels_over_the_threshold_are_person(register: Callable, threshold: float) -> None:
    """One by one, against a drawn rectangle; at 0.5 as the class with the larger score."""
    evaluator = PersonSegEvaluator(register({1: [_rectangle(2, 3, 5, 6)]}), threshold=threshold)
    p = torch.from_numpy(np.random.default_rng(1).random((12, 10), dtype=np.float32))
    p[0, 0] = threshold  # not over it
    scores = torch.stack([1 - p, p])
    evaluator.process([{"image_id": 1, "file_name": "1.jpg"}], [{"sem_seg": scores}])
    hit = false = missed = 0
    for y in range(12):
        for x in range(10):
            person, found = 2 <= x < 7 and 3 <= y < 9, bool(p[y, x] > threshold)
            if threshold == 0.5:
                assert found == (scores[:, y, x].argmax() == 1)
            hit, false = hit + (person and found), false + (found and not person)
            missed += person and not found
    results = evaluator.evaluate()["sem_seg"]
    assert results["IoU-person"] == pytest.approx(100 * hit / (hit + false + missed))


def test_without_annotations_there_are_masks_alone(register_coco: Callable, tmp_path: Path) -> None:
    images = [{"id": 4, "file_name": "4.jpg", "height": 12, "width": 10}]
    content = {"images": images, "categories": [{"id": 1, "name": "person"}]}
    evaluator = PersonSegEvaluator(register_coco(content), output_dir=str(tmp_path / "out"))
    results = _run(evaluator, {4: np.ones((12, 10), bool)})
    assert set(results) == {"IoU-background", "IoU-person", "mIoU", "pACC"}
    assert set(results.values()) == {None}
    (row,) = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert mask_util.decode(row["segmentation"]).all()
    with pytest.raises(ValueError, match=r"EVAL\.MASK_THRESH is 2"):
        PersonSegEvaluator(SAMPLE, threshold=2)


def test_wrong_size_is_named(register: Callable) -> None:
    evaluator = PersonSegEvaluator(register({4: []}))
    with pytest.raises(ValueError, match=r"4\.jpg has shape \(2, 10, 12\), wanted \(2, 12, 10\)"):
        _run(evaluator, {4: np.zeros((10, 12), bool)})
