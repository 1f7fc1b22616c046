"""Files for COCO's server: names, fields, numbers, the zip."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from mpn_d2.evaluation.submission import test_set_name as set_name
from mpn_d2.evaluation.submission import write_submission
from mpn_d2.structures.skeleton import get_skeleton

K = get_skeleton("coco").num_keypoints


def row(image_id: int, score: float) -> dict:
    keypoints = [value for k in range(K) for value in (10.26 + k, 20.04, 0.3)]
    keypoints[3:6] = [0.0, 0.0, 0.0]
    return {
        "image_id": image_id,
        "category_id": 1,
        "bbox": [1.04, 2.06, 30.55, 40],
        "keypoints": keypoints,
        "score": score,
    }


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/data/image_info_test-dev2017.json", "test-dev2017"),
        ("image_info_test2017.json.gz", "test2017"),
        ("person_keypoints_val2017.json", "val2017"),
        ("own.json", "own"),
    ],
)
def test_name_of_the_test_set(file: str, name: str) -> None:
    assert set_name(file) == name


@pytest.mark.parametrize(
    ("task", "kind", "most"), [("keypoints", "person_keypoints", 20), ("bbox", "detections", 100)]
)
def test_files_hold_the_best_of_each_image(tmp_path: Path, task: str, kind: str, most: int) -> None:
    rows = [row(7, (i * 37 % 150) / 150) for i in range(150)] + [row(9, 0.123456789)]
    given = json.dumps(rows)
    path = write_submission(tmp_path / "new", task, rows, "test-dev2017", "my-net_2.1")
    stem = f"{kind}_test-dev2017_my-net_2.1_results"
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == [f"{stem}.json", f"{stem}.zip"]
    assert path == str(tmp_path / "new" / f"{stem}.zip")
    with zipfile.ZipFile(path) as packed:
        assert packed.namelist() == [f"{stem}.json"]  # no folder: the server finds nothing else
        content = json.loads(packed.read(f"{stem}.json"))
    assert content == json.loads((tmp_path / "new" / f"{stem}.json").read_text())
    assert json.dumps(rows) == given
    scores = [r["score"] for r in content if r["image_id"] == 7]
    assert scores == pytest.approx([i / 150 for i in range(149, 149 - most, -1)], abs=1e-6)
    last = content[-1]
    assert last["score"] == pytest.approx(0.123456789, abs=1e-7)
    what = {"bbox": [1.0, 2.1, 30.6, 40]}
    if task == "keypoints":
        # Continuous where found, flag 1; 0, 0, 0 where not.
        what = {"keypoints": [v for k in range(K) for v in (round(10.3 + k, 1), 20.0, 1)]}
        what["keypoints"][3:6] = [0, 0, 0]
    assert last == {"image_id": 9, "category_id": 1, **what, "score": last["score"]}


def test_nothing_found_is_an_empty_list(tmp_path: Path) -> None:
    path = write_submission(tmp_path, "keypoints", [], "test-dev2017", "x")
    with zipfile.ZipFile(path) as packed:
        assert json.loads(packed.read(packed.namelist()[0])) == []


@pytest.mark.parametrize("name", ["", "a/b", "two words", "ü"])
def test_names_that_are_no_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"EVAL\.ALGORITHM_NAME is "):
        write_submission(tmp_path, "bbox", [], "test-dev2017", name)
    assert not list(tmp_path.iterdir())


def test_masks_have_a_file_of_their_own(tmp_path: Path) -> None:
    mask = {"size": [4, 5], "counts": "04l0"}
    rows = [{"image_id": 7, "category_id": 1, "segmentation": mask, "score": 0.5}]
    path = write_submission(tmp_path, "segm", rows, "test-dev2017", "net")
    assert Path(path).name == "detections_test-dev2017_net-segm_results.zip"
    assert json.loads(Path(path).with_suffix(".json").read_text()) == rows
