"""Masks one by one: COCO's figures, people without an annotated mask, files."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances

from mpn_d2.evaluation.mask_results import encode_masks, truth_of_masks
from mpn_d2.evaluation.pose_evaluator import PoseEvaluator

SIZE = (60, 80)


def square(x: int, y: int, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def person(number: int, x: int, y: int, side: int, segmentation) -> dict:
    return {
        "id": number,
        "image_id": 1,
        "category_id": 1,
        "bbox": [x, y, side, side],
        "area": side * side,
        "iscrowd": 0,
        "segmentation": segmentation,
    }


def polygon(x: int, y: int, side: int) -> list:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def evaluated(register_coco, people, masks, scores, tmp_path=None):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": people,
    }
    evaluator = PoseEvaluator(
        register_coco(content),
        tasks=["bbox", "segm"],
        sigmas=[0.1],
        output_dir=str(tmp_path) if tmp_path else None,
        distributed=False,
    )
    stacked = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *SIZE).bool()
    found = Instances(SIZE, pred_masks=stacked)
    found.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    found.scores = torch.tensor(scores)
    found.pred_classes = torch.zeros(len(masks), dtype=torch.long)
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert torch.equal(found.pred_masks, stacked)
    return evaluator.evaluate()


def test_masks_are_rated_by_their_overlap(register_coco, tmp_path):
    rle = mask_util.encode(np.asfortranarray(square(40, 30, 20), dtype=np.uint8))
    rle = {"size": rle["size"], "counts": rle["counts"].decode()}
    people = [person(1, 5, 5, 20, polygon(5, 5, 20)), person(2, 40, 30, 20, rle)]
    exact = [square(5, 5, 20), square(40, 30, 20)]
    figures = evaluated(register_coco, people, exact, [0.9, 0.8], tmp_path)
    assert figures["segm"]["AP"] == pytest.approx(100) and figures["bbox"]["AP"] == 0
    assert figures["segm"]["APs"] == pytest.approx(100) and figures["segm"]["APl"] is None
    rows = json.loads((tmp_path / "segm_results.json").read_text())
    assert [row["score"] for row in rows] == pytest.approx([0.9, 0.8])
    assert np.array_equal(mask_util.decode(rows[1]["segmentation"]).astype(bool), exact[1])
    assert (tmp_path / "segm_curves.png").is_file()
    # Shifted by 4 of 20: IoU 16 / 24, between COCO's thresholds of 0.65 and 0.7.
    shifted = [square(9, 5, 20), square(44, 30, 20)]
    figures = evaluated(register_coco, people, shifted, [0.9, 0.8])
    assert figures["segm"]["AP"] == pytest.approx(40) and figures["segm"]["AP75"] == 0
    assert evaluated(register_coco, people, [], [])["segm"]["AP"] == 0


@pytest.mark.parametrize("missing", [None, [], [[1, 2, 3, 4]]])
def test_people_without_a_mask_are_neither_right_nor_wrong(missing, register_coco):
    people = [person(1, 5, 5, 20, polygon(5, 5, 20)), person(2, 40, 30, 20, missing)]
    if missing is None:
        del people[1]["segmentation"]
    alone = evaluated(register_coco, people, [square(5, 5, 20)], [0.5])
    assert alone["segm"]["AP"] == pytest.approx(100)
    # Rated higher than the only one that counts, inside the box of whom nothing is known.
    both = evaluated(register_coco, people, [square(44, 34, 9), square(5, 5, 20)], [0.9, 0.5])
    assert both["segm"]["AP"] == pytest.approx(100)
    elsewhere = evaluated(register_coco, people, [square(60, 2, 9), square(5, 5, 20)], [0.9, 0.5])
    assert elsewhere["segm"]["AP"] == pytest.approx(50)


def test_polygons_of_two_points_are_left_out(register_coco):
    """pycocotools takes the first for a box, and ends in a TypeError."""
    people = [person(1, 10, 10, 20, [[3.0, 4.0, 5.0, 6.0], *polygon(10, 10, 20)])]
    found = evaluated(register_coco, people, [square(10, 10, 20)], [0.9])
    assert found["segm"]["AP"] == pytest.approx(100)


def test_the_truth_stays_as_it_was(register_coco):
    people = [person(1, 5, 5, 20, polygon(5, 5, 20)), person(2, 40, 30, 20, [])]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": people,
    }
    evaluator = PoseEvaluator(register_coco(content), tasks=["segm"], sigmas=[0.1])
    changed = truth_of_masks(evaluator.truth)
    assert changed.anns[2]["iscrowd"] == 1 and evaluator.truth.anns[2]["iscrowd"] == 0
    assert changed.anns[1] == evaluator.truth.anns[1]
    evaluator.truth.anns.pop(2)
    evaluator.truth.dataset["annotations"].pop()
    assert truth_of_masks(evaluator.truth) is evaluator.truth


def test_a_model_without_masks_is_told(register_coco):
    people = [person(1, 5, 5, 20, polygon(5, 5, 20))]
    with pytest.raises(ValueError, match="EVAL.TASKS has segm, but the model gives no masks"):
        evaluator_without_masks(register_coco, people)


def evaluator_without_masks(register_coco, people):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": people,
    }
    evaluator = PoseEvaluator(register_coco(content), tasks=["segm"], sigmas=[0.1])
    found = Instances(SIZE, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    found.pred_classes = torch.zeros(0, dtype=torch.long)
    evaluator.process([{"image_id": 1}], [{"instances": found}])


def test_encoded_masks_are_json():
    masks = torch.from_numpy(np.stack([square(0, 0, 60), square(3, 4, 5)]))
    encoded = json.loads(json.dumps(encode_masks(masks)))
    for rle, mask in zip(encoded, masks.numpy(), strict=True):
        assert np.array_equal(mask_util.decode(rle).astype(bool), mask)
    assert encode_masks(torch.zeros(0, *SIZE).bool()) == []
