"""Registration and loading, with the errors that a user meets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from mpn_d2.data import load_pose_dicts, register_pose_datasets
from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.structures.skeleton import get_skeleton


@pytest.fixture
def make_dataset(register_coco: Callable[..., str]) -> Callable[..., str]:
    """Registers a dataset of the given images (id to annotations); gone after the test."""

    def make(people: dict[int, list[dict]], category: int = 1) -> str:
        annotations = [
            {"image_id": i, "category_id": category, "iscrowd": 0, **a}
            for i, of_image in people.items()
            for a in of_image
        ]
        for i, annotation in enumerate(annotations):
            annotation["id"] = i + 1
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in people
            ],
            "annotations": annotations,
            "categories": [{"id": category, "name": "person"}],
        }
        return register_coco(content)

    return make


def _person(joints: int = 3, **changes: object) -> dict:
    keypoints = [4, 5, 2] * joints + [0] * 3 * (get_skeleton("coco").num_keypoints - joints)
    polygon = [[1, 1, 9, 1, 9, 9]]
    person = {"bbox": [1, 1, 8, 8], "area": 32, "segmentation": polygon, "keypoints": keypoints}
    return {**person, "num_keypoints": joints, **changes}


def test_sample_is_registered_with_metadata_and_again() -> None:
    register_pose_datasets()
    register_pose_datasets()
    skeleton = get_skeleton("coco")
    for split, images in (("train", 7), ("val", 9)):
        name = f"coco_sample_{split}"
        assert len(load_pose_dicts(name, is_train=False)) == images
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == ["person"]
        assert metadata.keypoint_names == skeleton.keypoint_names
        assert metadata.keypoint_flip_map == skeleton.flip_pairs
        assert metadata.keypoint_connection_rules == skeleton.keypoint_connection_rules
        assert metadata.evaluator_type == "coco"


def test_other_root_replaces_the_sample(tmp_path: Path, sample_dir: Path) -> None:
    register_pose_datasets()
    load_pose_dicts("coco_sample_val", is_train=False)
    try:
        register_pose_datasets(tmp_path)
        with pytest.raises(FileNotFoundError, match=f"annotation file {tmp_path}") as info:
            load_pose_dicts("coco_sample_val", is_train=False)
        # What helps where the package was installed without the photographs.
        assert "from the repository, or call register_pose_datasets(root)" in str(info.value)
        assert "DETECTRON2_DATASETS" not in str(info.value)
    finally:
        register_pose_datasets()
    assert MetadataCatalog.get("coco_sample_val").image_root == str(sample_dir / "val")
    assert len(load_pose_dicts(["coco_sample_val", "coco_sample_train"], is_train=False)) == 16


def test_unknown_name_lists_near_ones() -> None:
    register_pose_datasets()
    with pytest.raises(ValueError, match=r"'coco_sample_trian' is not.*coco_sample_train"):
        load_pose_dicts("coco_sample_trian", is_train=True)
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        load_pose_dicts((), is_train=True)


def test_missing_files_are_named(make_dataset: Callable[..., str], tmp_path: Path) -> None:
    name = make_dataset({1: [_person()]})
    (tmp_path / "mpn_test_0.json").rename(tmp_path / "moved.json")
    with pytest.raises(FileNotFoundError, match=r"0\.json not found.*DETECTRON2_DATASETS") as info:
        load_pose_dicts(name, is_train=True)
    assert "\n" not in str(info.value)
    register_coco_instances(
        "mpn_test_folder", {}, str(tmp_path / "moved.json"), str(tmp_path / "images")
    )
    try:
        with pytest.raises(FileNotFoundError, match=r"image folder .*images not found"):
            load_pose_dicts("mpn_test_folder", is_train=True)
    finally:
        DatasetCatalog.remove("mpn_test_folder")
        MetadataCatalog.remove("mpn_test_folder")


@pytest.mark.parametrize("content", ["{", '{"images": []}', "[]"])
def test_unreadable_annotations(
    make_dataset: Callable[..., str], tmp_path: Path, content: str
) -> None:
    name = make_dataset({1: [_person()]})
    (tmp_path / "mpn_test_0.json").write_text(content)
    with pytest.raises(ValueError, match=r"0\.json (is not JSON|lists no images)"):
        load_pose_dicts(name, is_train=False)


def test_no_keypoints_is_an_error_for_training_only(make_dataset: Callable[..., str]) -> None:
    name = make_dataset({1: [_person(0)], 2: []})
    with pytest.raises(ValueError, match="no keypoints annotated"):
        load_pose_dicts(name, is_train=True)
    assert len(load_pose_dicts(name, is_train=False)) == 2
    without = _person()
    del without["keypoints"]
    with pytest.raises(ValueError, match=r"no keypoints annotated.*person_keypoints_"):
        load_pose_dicts(make_dataset({1: [without]}), is_train=True)


def test_crowds_alone_are_an_error_for_training_only(make_dataset: Callable[..., str]) -> None:
    name = make_dataset({1: [{**_person(), "iscrowd": 1}]})
    with pytest.raises(ValueError, match=rf"{name}: all who are annotated are crowds"):
        load_pose_dicts(name, is_train=True)
    assert len(load_pose_dicts(name, is_train=False)) == 1


def test_nobody_annotated_is_an_error_for_training_only(make_dataset: Callable[..., str]) -> None:
    name = make_dataset({1: [], 2: []})
    with pytest.raises(ValueError, match=rf"{name}: nobody is annotated, nothing to train on"):
        load_pose_dicts(name, is_train=True, keep_empty=True)
    assert [d["annotations"] for d in load_pose_dicts(name, is_train=False)] == [[], []]


@pytest.mark.parametrize(
    ("name", "layout", "images"),
    [
        ("crowdpose_test", "crowdpose/json/crowdpose_test.json", "crowdpose/images"),
        ("crowdpose_val", "crowdpose/annotations/mmpose_crowdpose_val.json", "crowdpose/images"),
        ("ochuman_val", "OCHuman/ochuman_coco_format_val_range_0.00_1.00.json", "OCHuman/images"),
        (
            "ochuman_test",
            "ochuman/annotations/ochuman_coco_format_test_range_0.00_1.00.json",
            "ochuman/images",
        ),
    ],
)
def test_crowdpose_and_ochuman_by_name(
    mpn_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    layout: str,
    images: str,
) -> None:
    """The real samples in the layouts in use, from JSON to what the model gets."""
    kind = name.partition("_")[0]
    sample = mpn_data / "formats" / kind
    (tmp_path / images).mkdir(parents=True)
    for image in sample.glob("*.jpg"):
        (tmp_path / images / image.name).symlink_to(image)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    try:
        register_pose_datasets()
        with pytest.raises(FileNotFoundError, match=rf"'{name}': annotation file {tmp_path}"):
            load_pose_dicts(name, is_train=True)
        (tmp_path / layout).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / layout).symlink_to(sample / f"test_{kind}.json")
        register_pose_datasets()
        dicts = load_pose_dicts(name, is_train=True)
    finally:
        monkeypatch.undo()
        register_pose_datasets()

    content = json.loads((sample / f"test_{kind}.json").read_text())
    people = {a["id"]: a for a in content["annotations"]}
    assert sum(len(d["annotations"]) for d in dicts) == len(people) == 5
    skeleton = get_skeleton("crowdpose" if kind == "crowdpose" else "coco")
    assert list(skeleton.keypoint_names) == content["categories"][0]["keypoints"]
    mapper = PoseDatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="BGR",
        skeleton=skeleton,
        with_annotations=True,
    )
    found = [mapper(record) for record in dicts]
    joints = torch.cat([r["instances"].gt_keypoints.tensor for r in found])
    truth = torch.tensor([a["keypoints"] for a in content["annotations"]]).float().view(5, -1, 3)
    # Not `num_keypoints`, which in CrowdPose's files leaves out head and neck.
    assert sorted((joints[..., 2] > 0).sum(1).tolist()) == sorted(
        (truth[..., 2] > 0).sum(1).tolist()
    )
    truth[..., :2] += 0.5
    truth[truth[..., 2] == 0] = 0
    for person in truth:  # images come in the order of their ids
        assert (joints - person).abs().amax(dim=(1, 2)).min() < 1e-3
    # OCHuman has masks; of CrowdPose's people without them, the pixels are not known.
    has_mask = any(r["person_mask"].any() for r in found)
    assert has_mask == (kind == "ochuman")
    assert (2 in found[0]["ignore_mask"]) == (kind == "crowdpose")


@pytest.mark.parametrize(
    ("name", "images", "people"),
    [
        ("coco_poses_train", 266, 1056),
        ("coco_poses_val", 106, 435),
        ("coco_poses_full_val2017_half", 1173, 3144),
    ],
)
def test_annotations_without_images_by_name(mpn_data, monkeypatch, name, images, people) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(mpn_data))
    try:
        register_pose_datasets()
        dicts = load_pose_dicts(name, is_train=False, need_images=False)
        with pytest.raises(ValueError, match=f"'{name}' has no image folder"):
            load_pose_dicts(name, is_train=False)
    finally:
        monkeypatch.undo()
        register_pose_datasets()
    assert len(dicts) == images
    assert sum(len(record["annotations"]) for record in dicts) == people
    assert "coco_poses_full_train2017" in DatasetCatalog.list()


def test_images_left_out_while_training(make_dataset: Callable[..., str]) -> None:
    name = make_dataset(
        {1: [_person(3)], 2: [], 3: [_person(0, iscrowd=1)], 4: [_person(0)], 5: [_person(5)]}
    )

    def ids(**options: object) -> list[int]:
        return [d["image_id"] for d in load_pose_dicts(name, **options)]

    assert ids(is_train=False, min_keypoints_per_image=4) == [1, 2, 3, 4, 5]
    assert ids(is_train=True) == [1, 4, 5]
    assert ids(is_train=True, keep_empty=True) == [1, 2, 3, 4, 5]
    assert ids(is_train=True, min_keypoints_per_image=4) == [5]
    with pytest.raises(ValueError, match="MIN_KEYPOINTS_PER_IMAGE"):
        ids(is_train=True, min_keypoints_per_image=6)


def test_people_with_tiny_polygons_come_back(make_dataset: Callable[..., str]) -> None:
    tiny = [[3, 3, 4, 4]]
    name = make_dataset(
        {
            7: [_person(2, bbox=[2, 3, 4, 5], segmentation=tiny)],
            8: [_person(), _person(0, segmentation=tiny), _person(0, segmentation=[])],
        },
        category=5,
    )
    only, three = load_pose_dicts(name, is_train=True)
    (person,) = only["annotations"]
    assert (person["bbox"], person["bbox_mode"]) == ([2, 3, 4, 5], BoxMode.XYWH_ABS)
    assert person["category_id"] == 0 and person["iscrowd"] == 0
    assert "segmentation" not in person
    assert person["keypoints"][:9] == [4.5, 5.5, 2, 4.5, 5.5, 2, 0.5, 0.5, 0]
    assert len(three["annotations"]) == 3
    assert sum("segmentation" in a for a in three["annotations"]) == 1


def test_real_coco_by_detectron2s_own_name(mpn_data: Path) -> None:
    name = "mpn_test_coco_2017_train"
    coco = mpn_data / "coco"
    file = coco / "annotations" / "person_keypoints_train2017.json"
    register_coco_instances(name, {}, str(file), str(coco / "train2017"))
    try:
        dicts = load_pose_dicts(name, is_train=False)
        annotated = json.loads(file.read_text())
        assert len(dicts) == len(annotated["images"])
        assert sum(len(d["annotations"]) for d in dicts) == len(annotated["annotations"])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
