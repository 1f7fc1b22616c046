"""Rows of results files: what counts for what, and what is wrong in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mpn_d2.evaluation.results_file import read_coco_results
from mpn_d2.structures.skeleton import get_skeleton

K = get_skeleton("coco").num_keypoints
IMAGES = {1, 2}


def row(**changes: object) -> dict:
    given = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 2, 30, 40],
        "keypoints": [float(v) for v in range(3 * K)],
        "score": 0.5,
        **changes,
    }
    return {key: value for key, value in given.items() if value is not None}


def read(tmp_path: Path, content: object):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco_results(path, IMAGES, 1, K)


def test_one_score_rates_both(tmp_path: Path) -> None:
    found = read(tmp_path, [row(score=0.25), row(image_id=2)])
    assert [r["score"] for r in found.rows["bbox"]] == [0.25, 0.5]
    assert [r["score"] for r in found.rows["keypoints"]] == [0.25, 0.5]
    # The box is the size of the pose for pycocotools.
    assert found.rows["keypoints"][0]["bbox"] == [1, 2, 30, 40]
    assert "keypoints" not in found.rows["bbox"][0]
    (note,) = found.notes
    assert "one score for box and pose" in note and found.notes[note] == 2


def test_pose_scores_rate_poses(tmp_path: Path) -> None:
    """As tools/demo.py writes them: a box without any joint is no pose."""
    rows = [row(pose_score=0.125), row(pose_score=0.0, keypoints=[0.0] * (3 * K))]
    found = read(tmp_path, rows)
    assert [r["score"] for r in found.rows["bbox"]] == [0.5, 0.5]
    (pose,) = found.rows["keypoints"]
    assert pose["score"] == 0.125 and "pose_score" not in pose
    assert list(found.notes.values()) == [1]


def test_what_rows_hold_is_what_is_scored(tmp_path: Path) -> None:
    assert list(read(tmp_path, [row(bbox=None)]).rows) == ["keypoints"]
    assert list(read(tmp_path, [row(keypoints=None)]).rows) == ["bbox"]
    assert read(tmp_path, []).rows == {"bbox": [], "keypoints": []}
    mixed = read(tmp_path, [row(), row(bbox=None), row(keypoints=None)])
    assert len(mixed.rows["bbox"]) == len(mixed.rows["keypoints"]) == 2
    # Sizes of all poses come from the same place.
    assert not any("bbox" in r for r in mixed.rows["keypoints"])


def test_rows_that_do_not_count_are_counted(tmp_path: Path) -> None:
    rows = [row(image_id=3), row(image_id="a.jpg"), row(category_id=18), row(bbox=None)]
    found = read(tmp_path, rows)
    assert len(found.rows["keypoints"]) == 1
    counts = {note.split(" (")[0]: count for note, count in found.notes.items()}
    assert counts["rows are of images that the annotations do not list"] == 2
    assert counts["rows are of other categories than people"] == 1


def test_packed(tmp_path: Path) -> None:
    path = tmp_path / "results.json.gz"
    path.write_bytes(gzip.compress(json.dumps([row()]).encode()))
    assert len(read_coco_results(path, IMAGES, 1, K).rows["keypoints"]) == 1


FAULTS = {
    "no json": ("{", "is not JSON"),
    "annotations": ({"images": []}, r"a list of results is needed.*an object \(annotations\?\)"),
    "a number": (3, "a list of results is needed"),
    "no object": ([row(), 3], r"row 1 is no \{"),
    "no image": ([row(image_id=None)], "row 0 has no 'image_id'"),
    "no category": ([row(category_id=None)], "row 0 has no 'category_id'"),
    "no score": ([row(score=None)], "row 0 has no 'score'"),
    "image is a list": ([row(image_id=[1])], r"row 0 has image_id \[1\]"),
    "score is NaN": ([row(score=float("nan"))], "row 0 has score nan: a finite number"),
    "score is text": ([row(score="0.5")], "row 0 has score '0.5': a finite number"),
    "score is true": ([row(score=True)], "row 0 has score True: a finite number"),
    "pose score is true": ([row(pose_score=True)], "row 0 has pose_score True: a finite number"),
    "id is true": ([row(image_id=True)], "row 0 has image_id True: a number or a text"),
    "id is NaN": ([row(category_id=float("nan"))], "row 0 has category_id nan: a number or a text"),
    "long text": ([row(score="a" * 5000)], "row 0 has score '.{50,80}': a finite number"),
    "box far away": ([row(bbox=[1, 2, 1e308, 4])], r"row 0 has bbox .*it must lie within 100,000"),
    "joint far away": ([row(keypoints=[10**300] * 51)], r"row 0 has a keypoint with 1.*: it must"),
    "pose score": ([row(pose_score=float("inf"))], "row 0 has pose_score inf"),
    "neither": ([row(bbox=None, keypoints=None)], "row 0 has neither 'keypoints' nor 'bbox'"),
    "keypoint is NaN": ([row(keypoints=[float("nan")] * 51)], "row 0 has keypoints that are no"),
    "keypoint is text": ([row(keypoints=["1"] * 51)], "row 0 has keypoints that are no"),
    "keypoints are pairs": ([row(keypoints=[[1, 2, 1]] * 17)], "row 0 has keypoints that are no"),
    "endless number": ([row(keypoints=[10**400] * 51)], "row 0 has keypoints that are no"),
    "fewer keypoints": (
        [row(), row(keypoints=[1] * 42)],
        "row 1 has 14 keypoints, expected 17: give --skeleton",
    ),
    "three sides": ([row(bbox=[1, 2, 3])], r"row 0 has bbox \[1, 2, 3\]: four finite numbers"),
    "negative": ([row(bbox=[1, 2, -3, 4])], r"row 0 has bbox .*no size negative"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line(tmp_path: Path, fault: str) -> None:
    content, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, content)
    assert "results.json" in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="results file .*none.json not found"):
        read_coco_results(tmp_path / "none.json", IMAGES, 1, K)
