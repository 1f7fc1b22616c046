"""Annotation files that are wrong somewhere, or hold more than people."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from coco_faults import FAULTS, second
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from mpn_d2.data import annotation_cache, load_pose_dicts
from mpn_d2.data.coco_file import (
    CLIPPED,
    MISCOUNTED,
    NO_MASK_LEFT,
    OUTSIDE,
    POINTS_OUTSIDE,
    SHORT,
    UNLISTED,
    CocoSummary,
    check_coco_file,
    people_only,
)
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.evaluation import PersonSegEvaluator, PoseEvaluator
from mpn_d2.structures.skeleton import get_skeleton

COCO = get_skeleton("coco")
K = COCO.num_keypoints


def _annotation(number: int, image: int = 1, category: int = 1, **changes: object) -> dict:
    annotation = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "bbox": [number, 1, 8, 9],
        "area": 40.0,
        "segmentation": [[1, 1, 9, 1, 9, 9]],
        "keypoints": [4, 5, 2] * 3 + [0] * 3 * (K - 3),
        "num_keypoints": 3,
    }
    return {**annotation, **changes}


def _content(*annotations: dict) -> dict:
    people = list(annotations) or [_annotation(11), _annotation(12)]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (1, 2)],
        "annotations": people,
        "categories": [{"id": 1, "name": "person"}],
    }


def _evaluate(name: str, tasks: tuple[str, ...] = ("bbox", "keypoints")) -> PoseEvaluator:
    return PoseEvaluator(name, tasks=tasks, sigmas=COCO.sigmas)


READERS = {
    "training": lambda name: load_pose_dicts(name, is_train=True),
    "testing": lambda name: load_pose_dicts(name, is_train=False),
    "poses": _evaluate,
    "masks": PersonSegEvaluator,
}


def _broken(change: Callable[[dict], object]) -> dict:
    content = copy.deepcopy(_content())
    change(content)
    return content


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_in_one_line_by_every_reader(register_coco: Callable, fault: str) -> None:
    change, message = FAULTS[fault]
    name = register_coco(_broken(change))
    file = Path(MetadataCatalog.get(name).json_file).name
    for reader, read in READERS.items():
        with pytest.raises(ValueError, match=message) as info:
            read(name)
        assert file in str(info.value) and "\n" not in str(info.value), reader


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (333, 500), (2000, 7)])
def test_right_rle_passes(tmp_path: Path, size: tuple[int, int]) -> None:
    """Compressed ones are read as pycocotools writes them."""
    rng = np.random.default_rng(0)
    noise = rng.random(size) < 0.5
    blot = np.zeros(size, bool)
    blot[size[0] // 3 :, size[1] // 4 : size[1] // 2 + 1] = True
    for mask in (noise, blot, ~blot, np.zeros(size, bool), np.ones(size, bool)):
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        content = _content(
            _annotation(1, segmentation={"size": list(size), "counts": rle["counts"].decode()})
        )
        content["images"][0].update(height=size[0], width=size[1])
        (tmp_path / "rle.json").write_text(json.dumps(content))
        assert check_coco_file(tmp_path / "rle.json").people == 1
        (tmp_path / "rle.json").unlink()


def test_contradicting_counts_and_sizes_are_corrected_in_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others than that are CrowdPose's: files of theirs are read as they are."""
    monkeypatch.setenv("MPN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "people.json"
    summary = _noted(_annotation(1, num_keypoints=5), _annotation(2), file=file)
    assert summary.file == str(file) and summary.notes == {}
    none = [0] * 3 * K
    summary = _noted(
        _annotation(1, num_keypoints=0),
        _annotation(2, num_keypoints=7, keypoints=none),
        _annotation(3, num_keypoints=0, keypoints=none),
        file=file,
    )
    assert summary.notes == {MISCOUNTED: (2, "annotation 1 of image 1")}
    people = json.loads(Path(summary.file).read_text())["annotations"]
    assert [a["num_keypoints"] for a in people] == [3, 0, 0]
    content = _content()
    content["images"][1].update(width=30.0)
    file.write_text(json.dumps(content))
    assert '"width": 30}' in Path(check_coco_file(file).file).read_text()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused(register_coco: Callable, encoding: str) -> None:
    """json takes them, but pycocotools, which reads the file again, does not."""
    name = register_coco(_content())
    file = Path(MetadataCatalog.get(name).json_file)
    file.write_text(json.dumps(_content()), encoding=encoding)
    for read in READERS.values():
        with pytest.raises(ValueError, match=rf"{file.name} is JSON in utf-\S+: save it as UTF-8"):
            read(name)


def test_names_of_what_detectron2_converts_lose_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes whole paths, of datasets of dicts; their images are not read by them."""
    monkeypatch.setenv("MPN_CACHE", str(tmp_path / "cache"))
    image = {"file_name": "/photos/1.jpg", "height": 20, "width": 30, "image_id": 1}
    person = {"bbox": [1, 1, 8, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {**image, "annotations": [{**person, "keypoints": [4, 5, 2] * K}]}
    DatasetCatalog.register("mpn_file_test_paths", lambda: [record])
    try:
        MetadataCatalog.get("mpn_file_test_paths").thing_classes = ["person"]
        evaluator = PoseEvaluator(
            "mpn_file_test_paths", tasks=("bbox",), sigmas=COCO.sigmas, output_dir=str(tmp_path)
        )
    finally:
        DatasetCatalog.remove("mpn_file_test_paths")
        MetadataCatalog.remove("mpn_file_test_paths")
    assert evaluator.truth.imgs[1]["file_name"] == "1.jpg"


def test_keypoints_must_be_the_skeletons(register_coco: Callable) -> None:
    content = _content(*[_annotation(i, keypoints=[4, 5, 2] * 14) for i in (1, 2)])
    names = {"keypoint_names": COCO.keypoint_names, "keypoint_flip_map": COCO.keypoint_flip_map}
    with pytest.raises(ValueError, match=r"people have 14 keypoints, the dataset's skeleton 17"):
        load_pose_dicts(register_coco(content, **names), is_train=False)
    assert len(load_pose_dicts(register_coco(content), is_train=False)) == 2


@pytest.mark.parametrize("keypoints", [None, []])
def test_null_keypoints_are_none(register_coco: Callable, keypoints: object) -> None:
    name = register_coco(_content(_annotation(1, keypoints=keypoints), _annotation(2)))
    first, second = load_pose_dicts(name, is_train=True, min_keypoints_per_image=2)[0][
        "annotations"
    ]
    assert "keypoints" not in first and len(second["keypoints"]) == 3 * K
    evaluator = _evaluate(name)
    evaluator.reset()
    assert evaluator.evaluate()["keypoints"]["AP"] == 0


def _noted(*annotations: dict, file: Path) -> CocoSummary:
    file.write_text(json.dumps(_content(*annotations)))
    return check_coco_file(file)


def test_what_is_clipped_or_left_out_is_counted(tmp_path: Path) -> None:
    """Images are 30 wide and 20 high; the first of each kind is named."""
    joints = [4, 5, 2, 29.6, 5, 2, 4, -0.6, 1, 40, 40, 0] + [0] * 3 * (K - 4)
    summary = _noted(
        _annotation(1, bbox=[0.5, 0, 30.4, 20]),  # rounding
        _annotation(2, bbox=[-3, 1, 8, 9]),
        _annotation(3, bbox=[20, 1, 8, 29]),
        _annotation(4, bbox=[30, 1, 8, 9]),
        _annotation(5, bbox=[3, 1, 0, 9]),
        _annotation(6, keypoints=joints),
        _annotation(7, segmentation=[[1, 1, 9, 1, 9, 9], [1, 1, 2, 2], [1, 2, 3]]),
        _annotation(8, image=2, segmentation=[[1, 1, 2, 2]]),
        _annotation(9, image=77, bbox=[900, 900, 5, 5]),
        _annotation(10, keypoints=[0] * 3 * K, num_keypoints=0),
        _annotation(11, iscrowd=1),
        file=tmp_path / "people.json",
    )
    assert (summary.images, summary.people, summary.labelled, summary.crowds) == (2, 10, 9, 1)
    assert summary.notes == {
        CLIPPED: (2, "annotation 2 of image 1"),
        OUTSIDE: (2, "annotation 4 of image 1"),
        POINTS_OUTSIDE: (2, "annotation 6 of image 1"),
        SHORT: (3, "annotation 7 of image 1"),
        NO_MASK_LEFT: (1, "annotation 8 of image 2"),
        UNLISTED: (1, "annotation 9 of image 77"),
    }
    text = summary.describe()
    assert text.startswith("2 images, 10 people (9 with keypoints, 1 without") and "\n" not in text
    assert "2 boxes reach outside their image (clipped), first: annotation 2 of image 1" in text


def test_what_is_counted_is_what_training_gets(
    register_coco: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Through the mapper: outside people and joints are gone, boxes clipped; the log says so."""
    name = register_coco(
        _content(
            _annotation(2, bbox=[-3, 1, 8, 9], segmentation=[[1, 1, 2, 2]]),
            _annotation(4, bbox=[30, 1, 8, 9]),
            _annotation(6, keypoints=[4, 5, 2, 30, 5, 2] + [0] * 3 * (K - 2)),
        )
    )
    Image.new("RGB", (30, 20)).save(tmp_path / "1.jpg")
    with caplog.at_level(logging.INFO, logger="mpn_d2"):
        record = load_pose_dicts(name, is_train=True)[0]
    (line,) = [r.getMessage() for r in caplog.records if name in r.getMessage()]
    assert line.startswith(f"dataset {name}: 2 images, 3 people (3 with keypoints, 0 without")
    for what in (CLIPPED, OUTSIDE, POINTS_OUTSIDE, SHORT, NO_MASK_LEFT):
        assert f"; 1 {what}, first: annotation " in line
    mapper = PoseDatasetMapper(
        is_train=True, augmentations=[], image_format="BGR", skeleton=COCO, with_annotations=True
    )
    people = mapper(record)["instances"]
    # Detectron2's loader leaves out the one without a polygon; it comes back, at the end.
    assert people.gt_boxes.tensor.tolist() == [[6, 1, 14, 10], [0, 1, 5, 10]]
    assert people.gt_keypoints.tensor[0, :2].tolist() == [[4.5, 5.5, 2], [0, 0, 0]]


def _zoo(person: int = 3) -> dict:
    """Dogs (1), a cat (2) with faults that concern nobody, and people."""
    content = _content(
        _annotation(1, category=1),
        _annotation(2, category=2, bbox=[1, 1, -1, 1], keypoints=[1, 1, 2]),
        _annotation(3, category=person),
        _annotation(4, category=person, segmentation=[[3, 3, 4, 4]]),
        _annotation(5, image=2, category=1, segmentation=[[3, 3, 4, 4]]),
    )
    del content["annotations"][0]["area"]
    content["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    content["categories"].append({"id": person, "name": "person"})
    return content


def test_people_alone_are_loaded(register_coco: Callable) -> None:
    name = register_coco(_zoo())
    for _ in range(2):
        first, second = load_pose_dicts(name, is_train=False)
        assert [a["bbox"][0] for a in first["annotations"]] == [3, 4]
        assert [a["category_id"] for a in first["annotations"]] == [0, 0]
        assert second["annotations"] == []
    assert [d["image_id"] for d in load_pose_dicts(name, is_train=True)] == [1]
    # Beside a dataset of people alone: other categories are no reason to refuse.
    assert len(load_pose_dicts([name, register_coco(_content())], is_train=True)) == 2


def test_dicts_without_a_file(register_coco: Callable) -> None:
    people = [
        {"bbox": [0, 0, 9, 9], "bbox_mode": 1, "category_id": i, "keypoints": [1.5, 1.5, 2] * K}
        for i in (0, 1, 1)
    ]
    record = {"file_name": "1.jpg", "height": 9, "width": 9, "image_id": 1, "annotations": people}
    DatasetCatalog.register("mpn_file_test_dicts", lambda: [record])
    try:
        MetadataCatalog.get("mpn_file_test_dicts").thing_classes = ["dog", "person"]
        for _ in range(2):  # the same dicts are handed out again
            (loaded,) = load_pose_dicts("mpn_file_test_dicts", is_train=True)
            assert [a["category_id"] for a in loaded["annotations"]] == [0, 0]
    finally:
        DatasetCatalog.remove("mpn_file_test_dicts")
        MetadataCatalog.remove("mpn_file_test_dicts")


def test_which_category_is_the_person(register_coco: Callable) -> None:
    content = _content()
    content["categories"][0]["name"] = "pedestrian"
    assert len(load_pose_dicts(register_coco(content), is_train=True)[0]["annotations"]) == 2
    content["categories"].append({"id": 2, "name": "dog"})
    name = register_coco(content)
    for read in READERS.values():
        with pytest.raises(ValueError, match=r"\.json: .*pedestrian, dog.* 'person'"):
            read(name)


def test_detectron2s_assertions_become_one_line(register_coco: Callable) -> None:
    name = register_coco(_zoo(), thing_classes=["person"])
    with pytest.raises(ValueError, match=rf"dataset '{name}': .*thing_classes") as info:
        load_pose_dicts(name, is_train=False)
    assert "\n" not in str(info.value)


def test_people_only_leaves_the_content_as_it_was() -> None:
    content = _zoo()
    before = copy.deepcopy(content)
    people = people_only(content, 3)
    people["annotations"][0]["iscrowd"] = 1
    assert content == before
    assert [a["id"] for a in people["annotations"]] == [1, 2]
    assert [a["bbox"][0] for a in people["annotations"]] == [3, 4]
    assert people["categories"] == [{"id": 3, "name": "person"}]


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "people.json"
    file.write_text(json.dumps(_content()))
    reads = []
    whole = annotation_cache.read_json_bytes
    monkeypatch.setattr(
        annotation_cache, "read_json_bytes", lambda *given: reads.append(given) or whole(*given)
    )
    assert check_coco_file(file).person_id == check_coco_file(str(file)).person_id == 1
    assert len(reads) == 1
    status = os.stat(file)
    file.write_text(json.dumps(_broken(second(id=11))))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    with pytest.raises(ValueError, match="twice"):
        check_coco_file(file)
    with pytest.raises(FileNotFoundError, match=r"none\.json not found"):
        check_coco_file(tmp_path / "none.json")
