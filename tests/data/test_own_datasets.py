"""Datasets named in the config: from file and command line, without images, every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mpn_d2.config import load_config
from mpn_d2.data.association import AssociationStream
from mpn_d2.data.datasets import check_dataset, load_pose_dicts, register_pose_datasets
from mpn_d2.data.loader import build_pose_train_loader
from mpn_d2.data.own_datasets import register_own_datasets
from mpn_d2.engine.stages import stage_config
from mpn_d2.structures.skeleton import get_skeleton

REPO = Path(__file__).resolve().parents[2]
DEMO = str(REPO / "configs" / "quick" / "demo.yaml")
CROWDPOSE = get_skeleton("crowdpose")


@pytest.fixture(autouse=True)
def _catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    register_pose_datasets()
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def people(tmp_path: Path) -> str:
    """people.json in the working folder: one person of 14 keypoints."""
    count = CROWDPOSE.num_keypoints
    person = {"bbox": [1, 1, 20, 15], "keypoints": [4, 5, 2] * count, "iscrowd": 0}
    content = {
        "images": [{"id": 3, "file_name": "3.jpg", "height": 20, "width": 30}],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 1, **person}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "people.json").write_text(json.dumps(content))
    return "people.json"


def _config(*options: str, train: str = "mine") -> CfgNode:
    given = ["MODEL.SKELETON", "crowdpose", "DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST"]
    return load_config(DEMO, [*given, "()", *options])


def test_from_the_command_line(people: str, tmp_path: Path) -> None:
    cfg = _config("DATASETS.OWN.mine.JSON", people, "DATASETS.OWN.mine.IMAGES", ".")
    for _ in range(2):  # two stages, two runs of one process
        register_own_datasets(cfg)
    (record,) = load_pose_dicts(cfg.DATASETS.TRAIN, is_train=True)
    assert record["file_name"] == str(tmp_path / "3.jpg")
    metadata = MetadataCatalog.get("mine")
    assert metadata.keypoint_names == CROWDPOSE.keypoint_names
    assert metadata.keypoint_sigmas == CROWDPOSE.sigmas
    # What the run writes down can be read again.
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    assert load_config("saved.yaml").DATASETS.OWN == cfg.DATASETS.OWN


def test_from_a_file_with_options_over_it(people: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        f"_BASE_: {DEMO}\nMODEL: {{SKELETON: coco}}\nDATASETS:\n  OWN:\n"
        "    mine: {JSON: nowhere.json, IMAGES: .}\n    bundled: {JSON: x.json, IMAGES: .}\n"
    )
    options = ["DATASETS.OWN.mine.JSON", people, "DATASETS.OWN.mine.SKELETON", "crowdpose"]
    cfg = load_config("own.yaml", options)
    register_own_datasets(cfg)
    assert len(load_pose_dicts("mine", is_train=True)) == 1
    assert MetadataCatalog.get("bundled").keypoint_names == get_skeleton("coco").keypoint_names
    # Its skeleton is not the model's: said before anything is loaded.
    cfg = load_config("own.yaml", [*options, "DATASETS.TRAIN", "('mine',)"])
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN: 'mine' has 14 .*'coco' has 17") as info:
        register_own_datasets(cfg)
    assert "\n" not in str(info.value)
    cfg = load_config("own.yaml", [*options, "STAGES.PERSON.DATASETS.TEST", "('mine',)"])
    with pytest.raises(ValueError, match=r"STAGES\.PERSON\.DATASETS\.TEST: 'mine' has 14"):
        register_own_datasets(cfg)


def test_a_name_follows_the_last_config_but_is_nobody_elses(people: str, tmp_path: Path) -> None:
    register_own_datasets(_config("DATASETS.OWN.mine.JSON", "other.json"))
    register_own_datasets(_config("DATASETS.OWN.mine.JSON", people))
    assert MetadataCatalog.get("mine").json_file == str(tmp_path / people)
    for taken in ("coco_sample_train", "keypoints_coco_2017_val", "crowdpose_test"):
        with pytest.raises(ValueError, match=f"another dataset is called '{taken}' already"):
            register_own_datasets(_config(f"DATASETS.OWN.{taken}.JSON", people))


def test_without_images_the_assembly_trains(people: str) -> None:
    cfg = _config("DATASETS.OWN.mine.JSON", people, "STAGES.ASSEMBLY.SOLVER.IMS_PER_BATCH", "1")
    register_own_datasets(cfg)
    stream = build_pose_train_loader(stage_config(cfg, "assembly", []))
    assert isinstance(stream, AssociationStream)
    assert next(iter(stream))[0]["keypoints"].shape == (1, CROWDPOSE.num_keypoints, 3)
    message = r"'mine' has no image folder.*; set JSON and IMAGES of DATASETS\.OWN\.mine"
    for load in (
        lambda: build_pose_train_loader(stage_config(cfg, "keypoint", [])),
        lambda: load_pose_dicts("mine", is_train=False),
        lambda: check_dataset("mine"),
    ):
        with pytest.raises(ValueError, match=message) as info:
            load()
        assert "\n" not in str(info.value)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown key": (["mine.JSN", "a.json"], r"OWN\.mine has no key JSN; did you mean JSON\?"),
    "no JSON": (["mine.IMAGES", "."], r"OWN\.mine\.JSON is missing"),
    "a number": (["mine.JSON", "3"], r"OWN\.mine\.JSON is 3: a text"),
    "no section": (["mine", "a.json"], r"OWN\.mine is 'a\.json': a section with JSON, IMAGES"),
    "skeleton": (["mine.JSON", "a", "mine.SKELETON", "cat"], r"mine\.SKELETON: unknown .*'cat'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_name_the_key(mistake: str) -> None:
    options, message = MISTAKES[mistake]
    pairs = zip(options[::2], options[1::2], strict=True)
    cfg = _config(*[text for key, value in pairs for text in (f"DATASETS.OWN.{key}", value)])
    with pytest.raises(ValueError, match=message) as info:
        register_own_datasets(cfg)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("others", [(), ("dog",), ("dog", "zebra")])
def test_categories_are_the_files_own(people: str, tmp_path: Path, others: tuple) -> None:
    """The only category may have any name; beside others, people are those called person."""
    content = json.loads((tmp_path / people).read_text())
    categories = ["person", *others] if others else ["pedestrian"]
    content["categories"] = [{"id": 9 - i, "name": name} for i, name in enumerate(categories)]
    content["annotations"][0]["category_id"] = 9
    if others:
        dog = {"id": 2, "image_id": 3, "category_id": 8, "bbox": [0, 0, 9, 9], "iscrowd": 0}
        content["annotations"].append(dog)
    (tmp_path / people).write_text(json.dumps(content))
    register_own_datasets(
        _config("DATASETS.OWN.mine.JSON", people, "DATASETS.OWN.mine.IMAGES", ".")
    )
    for _ in range(2):
        (record,) = load_pose_dicts("mine", is_train=True)
        assert [(a["category_id"], a["bbox"][2]) for a in record["annotations"]] == [(0, 20)]
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["person"]
    # By which Detectron2's own evaluator goes back to the file's ids.
    assert metadata.thing_dataset_id_to_contiguous_id == {9: 0}


def test_missing_files_name_key_and_folder(people: str, tmp_path: Path) -> None:
    def load(*options: str) -> Callable[[], object]:
        register_own_datasets(_config(*options))
        return lambda: load_pose_dicts("mine", is_train=True)

    remedy = rf"set JSON and IMAGES of DATASETS\.OWN\.mine \(relative .*{tmp_path}\)"
    with pytest.raises(FileNotFoundError, match=rf"annotation file .*none\.json not .*{remedy}"):
        load("DATASETS.OWN.mine.JSON", "none.json")()
    with pytest.raises(FileNotFoundError, match=rf"image folder .*nopics not found; {remedy}"):
        load("DATASETS.OWN.mine.JSON", people, "DATASETS.OWN.mine.IMAGES", "nopics")()
    with pytest.raises(FileNotFoundError, match=r"mine\.SKELETON: skeleton file .*s\.yaml not fou"):
        load("DATASETS.OWN.mine.JSON", people, "DATASETS.OWN.mine.SKELETON", "s.yaml")


def test_wrong_keypoint_count_and_order(people: str, tmp_path: Path) -> None:
    own = ["DATASETS.OWN.mine.JSON", people, "DATASETS.OWN.mine.IMAGES", "."]
    register_own_datasets(_config(*own, "MODEL.SKELETON", "mpii"))
    with pytest.raises(ValueError, match=r"people\.json: people have 14 keypoints, .* 16"):
        load_pose_dicts("mine", is_train=True)
    content = json.loads((tmp_path / people).read_text())
    content["categories"][0]["keypoints"] = list(CROWDPOSE.keypoint_names)
    names = content["categories"][0]["keypoints"]
    names[0], names[1] = names[1], names[0]
    (tmp_path / "swapped.json").write_text(json.dumps(content))
    register_own_datasets(_config(*own[:1], "swapped.json", *own[2:]))
    with pytest.raises(ValueError, match=r"keypoint 1 is 'right_shoulder', in the .*'left_should"):
        load_pose_dicts("mine", is_train=True)
