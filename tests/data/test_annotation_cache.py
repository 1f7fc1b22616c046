"""Completed copies of annotation files: when, what, where, and by several processes at once."""

from __future__ import annotations

import copy
import gzip
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from mpn_d2.data import load_pose_dicts
from mpn_d2.data.annotation_cache import cache_folder
from mpn_d2.data.coco_file import check_coco_file
from mpn_d2.data.datasets import register_people
from mpn_d2.evaluation import PersonSegEvaluator, PoseEvaluator
from mpn_d2.structures.skeleton import get_skeleton

COCO = get_skeleton("coco")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPN_CACHE", str(tmp_path / "cache"))


def _whole() -> dict:
    keypoints = [4, 5, 2, 6, 7, 1] + [0] * 3 * (COCO.num_keypoints - 2)
    person = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 5], "keypoints": keypoints}
    extra = {"area": 30.5, "iscrowd": 0, "num_keypoints": 2, "segmentation": [[1, 2, 9, 2, 9, 7]]}
    names = list(COCO.keypoint_names)
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 20, "width": 30, "crowdIndex": 0.5}],
        "annotations": [{"id": i, **person, **extra} for i in (1, 2)],
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2]]}],
    }


def _write(path: Path, content: dict) -> str:
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def _copies() -> list[Path]:
    return sorted(cache_folder().glob("*")) if cache_folder().is_dir() else []


def test_whole_files_are_read_as_they_are(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", _whole())
    assert check_coco_file(path).file == path
    assert _copies() == []


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_missing_is_added_to_the_copy_alone(tmp_path: Path, packed: bool) -> None:
    content = _whole()
    first = content["annotations"][0]
    del first["area"], first["iscrowd"], first["num_keypoints"]
    content["annotations"][1]["area"] = None
    content["categories"][0]["skeleton"] += [[0, 1], [3, COCO.num_keypoints + 1], ["a", 1], None]
    path = _write(tmp_path / ("a.json.gz" if packed else "a.json"), content)
    before = Path(path).read_bytes()
    copied = check_coco_file(path).file
    assert [Path(copied)] == _copies() and Path(copied).suffix == ".json"
    assert Path(path).read_bytes() == before
    wanted = copy.deepcopy(content)
    for person in wanted["annotations"]:
        person |= {"area": pytest.approx(0.53 * 8 * 5), "iscrowd": 0, "num_keypoints": 2}
    wanted["categories"][0]["skeleton"] = [[1, 2]]
    assert json.loads(Path(copied).read_text()) == wanted


def test_packed_files_train_and_are_scored(tmp_path: Path) -> None:
    content = _whole()
    for person in content["annotations"]:
        del person["area"]
    register_people(
        "mpn_test_packed",
        json_file=_write(tmp_path / "a.json.gz", content),
        image_root=str(tmp_path),
        skeleton=COCO,
    )
    (record,) = load_pose_dicts("mpn_test_packed", is_train=True)
    assert len(record["annotations"]) == 2 and record["file_name"] == str(tmp_path / "1.jpg")
    assert record["annotations"][0]["keypoints"][:3] == [4.5, 5.5, 2]
    evaluator = PoseEvaluator("mpn_test_packed", tasks=["bbox", "keypoints"], sigmas=COCO.sigmas)
    assert evaluator._coco_api.anns[1]["area"] == pytest.approx(0.53 * 8 * 5)
    evaluator.reset()
    assert evaluator.evaluate()["keypoints"]["AP"] == 0
    PersonSegEvaluator("mpn_test_packed")


def test_copies_follow_content_and_come_back(tmp_path: Path) -> None:
    content = _whole()
    del content["annotations"][0]["area"]
    path = _write(tmp_path / "a.json", content)
    other = _write(tmp_path / "elsewhere.json", content)
    first = check_coco_file(path).file
    made = os.stat(first).st_mtime_ns
    # The same content under the same name elsewhere: the same copy, which is not written again.
    (tmp_path / "b").mkdir()
    same = Path(other).rename(tmp_path / "b" / "a.json")
    assert check_coco_file(same).file == first and os.stat(first).st_mtime_ns == made
    Path(first).unlink()
    assert check_coco_file(path).file == first and Path(first).is_file()
    content["annotations"][1]["bbox"] = [0, 0, 3, 3]
    status = os.stat(path)
    _write(Path(path), content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    second = check_coco_file(path).file
    assert second != first and len(_copies()) == 2


def test_several_processes_at_once(tmp_path: Path) -> None:
    content = _whole()
    content["images"] = [{**content["images"][0], "id": i} for i in range(3)]
    content["annotations"] = [
        {**content["annotations"][0], "id": i, "image_id": i % 3, "area": None}
        for i in range(1, 3000)
    ]
    path = _write(tmp_path / "a.json.gz", content)

    def read() -> None:
        assert len(json.loads(Path(check_coco_file(path).file).read_text())["annotations"]) == 2999

    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=read) for _ in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=60)
    assert [process.exitcode for process in running] == [0] * 4
    assert [p.suffix for p in _copies()] == [".json"]


def test_broken_gzip_and_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _whole()
    path = Path(_write(tmp_path / "a.json.gz", content))
    broken = tmp_path / "b.json.gz"
    for cut in (path.read_bytes()[:-20], b"\x1f\x8bnothing"):
        broken.write_bytes(cut)
        with pytest.raises(ValueError, match=r"b\.json\.gz is a broken gzip file") as info:
            check_coco_file(broken)
        assert "\n" not in str(info.value)
    # A file where the folder should be: that fails for root too.
    (tmp_path / "full").write_text("")
    monkeypatch.setenv("MPN_CACHE", str(tmp_path / "full"))
    with pytest.raises(OSError, match=r"annotation cache .*full.* cannot be written .*MPN_CACHE"):
        check_coco_file(path)
