"""AP by overlap of poses and right counts, against loops and cases made by hand."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.evaluation.crowded_people import (
    check_edges,
    pose_overlaps,
    share_of_right_counts,
    truths_by_overlap,
)
from mpn_d2.evaluation.pose_evaluator import PoseEvaluator, truth_of_people
from mpn_d2.evaluation.results_file import load_results
from mpn_d2.structures.skeleton import get_skeleton

SKELETON = get_skeleton("coco")
K = SKELETON.num_keypoints


def person(number, image, x, y, labelled=K, crowd=0):
    keypoints = []
    for k in range(K):
        v = 2 if k < labelled else 0
        keypoints += [x + 4 * k, y + 3 * (k % 5), v] if v else [0, 0, 0]
    box = [x - 5, y - 5, 80, 40]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": crowd,
        "bbox": box,
        "area": 3200.0,
        "keypoints": keypoints,
        "num_keypoints": labelled,
    }


def content(people, images=2):
    return {
        "info": {},
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 400, "height": 300}
            for i in range(1, images + 1)
        ],
        "annotations": people,
        "categories": [{"id": 1, "name": "person", "keypoints": list(SKELETON.keypoint_names)}],
    }


def slow_overlap(a, b):
    """OKS over the joints that both have, mean area, by the fewer joints."""
    area, total, count = (a["area"] + b["area"]) / 2, 0.0, [0, 0]
    for k, sigma in enumerate(SKELETON.sigmas):
        (ax, ay, av), (bx, by, bv) = (p["keypoints"][3 * k : 3 * k + 3] for p in (a, b))
        count[0] += av > 0
        count[1] += bv > 0
        if av > 0 and bv > 0:
            square = (ax - bx) ** 2 + (ay - by) ** 2
            total += math.exp(-square / (2 * area * (2 * sigma) ** 2))
    return total / min(count)


PEOPLE = [
    person(1, 1, 50, 50),
    person(2, 1, 54, 51),
    person(3, 1, 60, 60, labelled=9),
    person(4, 1, 300, 200),
    person(5, 2, 50, 50),
    person(6, 2, 51, 50, labelled=0),
    person(7, 2, 50, 50, crowd=1),
]


def test_overlaps_equal_loops():
    truth, _ = truth_of_people(content(PEOPLE), "made")
    found = pose_overlaps(truth, SKELETON.sigmas)
    assert set(found) == {1, 2, 3, 4, 5}
    for a in PEOPLE[:4]:
        wanted = max(slow_overlap(a, b) for b in PEOPLE[:4] if b is not a)
        assert found[a["id"]] == pytest.approx(wanted, rel=1e-5)
    assert found[5] == 0  # neither who has no joints nor a crowd overlaps


def test_groups_hold_everybody_once_and_leave_the_truth_alone():
    truth, _ = truth_of_people(content(PEOPLE), "made")
    before = json.dumps(truth.dataset)
    overlaps = pose_overlaps(truth, SKELETON.sigmas)
    edge = overlaps[3]
    groups = truths_by_overlap(truth, SKELETON.sigmas, [edge])
    inside = [
        {a["id"] for a in group.anns.values() if a["num_keypoints"] and not a["iscrowd"]}
        for group in groups.values()
    ]
    # The bound belongs to the upper group.
    assert inside[0] == {i for i, v in overlaps.items() if v < edge}
    assert inside[1] == {i for i, v in overlaps.items() if v >= edge} and 3 in inside[1]
    assert json.dumps(truth.dataset) == before


@pytest.mark.parametrize("edges", [[0.3, 0.1], [0.0], [1.0], [-0.5], [0.2, 0.2]])
def test_impossible_bounds_are_named(edges):
    with pytest.raises(ValueError, match="EVAL.OKS_OVERLAP"):
        check_edges(edges)


def test_counts():
    truth, _ = truth_of_people(content(PEOPLE, images=3), "made")

    def rows(*counts):
        return [
            {"image_id": i, "score": 0.5} for i, n in enumerate(counts, start=1) for _ in range(n)
        ]

    def share(*counts, least=0.0):
        return share_of_right_counts(truth, rows(*counts), [1, 2, 3], least)

    # 4 people; 1, one without joints and a crowd: 1 or more; none.
    assert share(4, 1, 0) == share(4, 9, 0) == 100
    assert share(3, 1, 0) == share(5, 1, 0) == pytest.approx(200 / 3)
    assert share(4, 0, 1) == pytest.approx(100 / 3)
    assert share(4, 1, 1, least=0.6) == pytest.approx(100 / 3)
    assert math.isnan(share_of_right_counts(truth, [], [], 0.0))


def found_people(people):
    instances = Instances((300, 400))
    poses = torch.tensor([p["keypoints"] for p in people], dtype=torch.float32).view(-1, K, 3)
    has = poses[..., 2:] > 0
    poses = torch.where(has, poses + 0.5, 0.0)
    poses[..., 2] = has[..., 0].float() * 0.9
    instances.pred_keypoints = poses
    boxes = torch.tensor([p["bbox"] for p in people]).view(-1, 4)
    instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    instances.scores = instances.pose_scores = torch.linspace(0.9, 0.8, len(people))
    instances.pred_classes = torch.zeros(len(people), dtype=torch.long)
    return instances


def test_evaluator_tells_ap_by_overlap(register_coco):
    alone = person(9, 2, 300, 200)
    people = [PEOPLE[0], PEOPLE[1], PEOPLE[3], alone]
    name = register_coco(content(people), **SKELETON.to_metadata())

    def evaluate(found):
        evaluator = PoseEvaluator(
            name,
            tasks=["keypoints"],
            sigmas=SKELETON.sigmas,
            overlap_edges=[0.2],
            count_score=0.0,
            distributed=False,
        )
        for image in (1, 2):
            of_image = [p for p in found if p["image_id"] == image]
            evaluator.process([{"image_id": image}], [{"instances": found_people(of_image)}])
        return evaluator.evaluate()["keypoints"]

    figures = evaluate(people)
    assert figures["AP_overlap_0_0.2"] == figures["AP_overlap_0.2_1"] == pytest.approx(100)
    assert figures["count_right"] == 100
    # Nobody of those who stand close: only that group falls to 0.
    figures = evaluate([PEOPLE[3], alone])
    assert figures["AP_overlap_0.2_1"] == 0 and figures["AP_overlap_0_0.2"] == pytest.approx(100)
    assert figures["count_right"] == 50
    assert 0 < figures["AP"] < 100
    # Those alone are missing.
    figures = evaluate(people[:2])
    assert figures["AP_overlap_0_0.2"] == 0 and figures["AP_overlap_0.2_1"] == pytest.approx(100)


@pytest.mark.parametrize("shift", [0, 2, 4, 8])
def test_how_well_others_are_found_does_not_count(register_coco, shift):
    """Two people close to each other, exact, and ten alone whose joints are `shift` pixels off."""
    close = [person(1, 1, 50, 50), person(2, 1, 54, 51)]
    lone = [person(10 + i, 2 + i, 50, 50) for i in range(10)]
    name = register_coco(content([*close, *lone], images=11), **SKELETON.to_metadata())

    def evaluate(of_group, of_others, more=()):
        evaluator = PoseEvaluator(
            name, tasks=["keypoints"], sigmas=SKELETON.sigmas, overlap_edges=[0.3]
        )
        for image in range(1, 12):
            found = found_people([p for p in (*more, *close, *lone) if p["image_id"] == image])
            found.pred_keypoints[..., 0] += of_group if image == 1 else of_others
            # The others are surer.
            found.scores = found.pose_scores = found.scores + (0.05 if image > 1 else 0)
            evaluator.process([{"image_id": image}], [{"instances": found}])
        figures = evaluator.evaluate()["keypoints"]
        return figures["AP_overlap_0_0.3"], figures["AP_overlap_0.3_1"]

    lonely, together = evaluate(0, shift)
    assert together == pytest.approx(100)
    assert (lonely < 95) if shift > 1 else (lonely == pytest.approx(100))
    lonely, together = evaluate(shift, 0)
    assert lonely == pytest.approx(100)
    assert (together < 95) if shift > 1 else (together == pytest.approx(100))
    # Somebody twice counts against her group alone, a pose of nobody against both.
    twice = [person(30 + i, 2 + i, 54, 50) for i in range(10)]
    lonely, together = evaluate(0, 0, twice)
    assert lonely < 95 and together == pytest.approx(100)
    lonely, together = evaluate(0, 0, [person(30 + i, 2 + i, 300, 200) for i in range(10)])
    assert lonely < 95 and together < 95


@pytest.mark.parametrize("layout", ["authors", "mmpose"])
def test_ochuman_is_evaluated_from_its_files(mpn_data, tmp_path, monkeypatch, layout):
    source = mpn_data / "formats" / "ochuman"
    if not source.is_dir():
        pytest.skip("no sample of OCHuman in MPN_DATA")
    file = "ochuman_coco_format_val_range_0.00_1.00.json"
    if layout == "authors":
        json_file, images = tmp_path / "OCHuman" / file, tmp_path / "OCHuman" / "images"
    else:
        json_file = tmp_path / "ochuman" / "annotations" / file
        images = tmp_path / "ochuman" / "images"
    images.mkdir(parents=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "test_ochuman.json", json_file)
    for picture in source.glob("*.jpg"):
        shutil.copyfile(picture, images / picture.name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_pose_datasets()
    try:
        records = DatasetCatalog.get("ochuman_val")
        assert len(records) == 3 and sum(len(r["annotations"]) for r in records) == 5
        evaluator = PoseEvaluator(
            "ochuman_val",
            tasks=["bbox", "keypoints"],
            sigmas=SKELETON.sigmas,
            overlap_edges=[0.1],
            distributed=False,
        )
        truth = json.loads(json_file.read_text())["annotations"]
        for record in records:
            people = [a for a in truth if a["image_id"] == record["image_id"]]
            found = found_people(people)
            found._image_size = (record["height"], record["width"])
            evaluator.process([record], [{"instances": found}])
        results = evaluator.evaluate()
        assert results["keypoints"]["AP"] == pytest.approx(100)
        assert results["bbox"]["AP"] == pytest.approx(100)
        groups = [results["keypoints"][f"AP_overlap_{g}"] for g in ("0_0.1", "0.1_1")]
        assert all(g in (None, pytest.approx(100)) for g in groups) and any(groups)
    finally:
        monkeypatch.undo()
        register_pose_datasets()
        assert MetadataCatalog.get("ochuman_val").json_file != str(json_file)


def test_results_files_are_scored_by_overlap(tmp_path):
    people = [PEOPLE[0], PEOPLE[1], PEOPLE[3], person(9, 2, 300, 200)]
    annotations, results = tmp_path / "truth.json", tmp_path / "found.json"
    annotations.write_text(json.dumps(content(people)))
    rows = [
        {key: p[key] for key in ("image_id", "category_id", "keypoints", "bbox")} | {"score": 0.9}
        for p in people[2:]
    ]
    results.write_text(json.dumps(rows))
    evaluator, found = load_results(results, annotations, SKELETON, overlap_edges=[0.2])
    figures = evaluator.score_rows(found.rows)["keypoints"]
    assert figures["AP_overlap_0_0.2"] == pytest.approx(100) and figures["AP_overlap_0.2_1"] == 0
