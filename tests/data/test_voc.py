"""Names of VOC 2012: layouts, lists, and what is said where files are missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mpn_d2.data.datasets import check_dataset, load_pose_dicts, register_pose_datasets


@pytest.fixture()
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """DETECTRON2_DATASETS of a test; the names mean the real one afterwards."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    yield tmp_path
    monkeypatch.undo()
    register_pose_datasets()


def make(folder: Path, lists: dict[str, str], masks: bool = True) -> None:
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    if masks:
        (folder / "SegmentationClass").mkdir()
    for split, text in lists.items():
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)


@pytest.mark.parametrize("layout", ["VOC2012", "VOCdevkit/VOC2012"])
def test_images_and_masks_of_a_split(root: Path, layout: str) -> None:
    make(root / layout, {"val": "2007_000033\n2007_000042\n", "test": "2008_000006\n"})
    register_pose_datasets()
    folder = root / layout
    records = load_pose_dicts("voc_2012_person_val", is_train=False)
    assert [r["image_id"] for r in records] == ["2007_000033", "2007_000042"]
    assert records[0]["file_name"] == str(folder / "JPEGImages" / "2007_000033.jpg")
    assert records[0]["sem_seg_file_name"] == str(folder / "SegmentationClass" / "2007_000033.png")
    (record,) = load_pose_dicts("voc_2012_person_test", is_train=False)
    assert "sem_seg_file_name" not in record
    assert MetadataCatalog.get("voc_2012_person_test").split == "test"
    with pytest.raises(ValueError, match="nobody is annotated, nothing to train on"):
        load_pose_dicts("voc_2012_person_val", is_train=True)


def test_the_place_of_detectron2_comes_first(root: Path) -> None:
    make(root / "VOC2012", {"val": "a\n"})
    make(root / "VOCdevkit" / "VOC2012", {"val": "b\n"})
    register_pose_datasets()
    (record,) = DatasetCatalog.get("voc_2012_person_val")
    assert record["image_id"] == "a"


def test_what_is_missing_is_named(root: Path) -> None:
    register_pose_datasets()
    remedy = r"DETECTRON2_DATASETS must name the folder that holds VOC2012 or VOCdevkit/VOC2012"
    with pytest.raises(FileNotFoundError, match=rf"JPEGImages not found; {remedy}"):
        check_dataset("voc_2012_person_val")
    make(root / "VOC2012", {"test": "c\n"}, masks=False)
    with pytest.raises(FileNotFoundError, match=rf"Segmentation/val\.txt not found; {remedy}"):
        load_pose_dicts("voc_2012_person_val", is_train=False)
    assert len(load_pose_dicts("voc_2012_person_test", is_train=False)) == 1
    (root / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_text("c\n")
    with pytest.raises(FileNotFoundError, match=rf"SegmentationClass not found; {remedy}"):
        load_pose_dicts("voc_2012_person_val", is_train=False)
    (root / "VOC2012" / "ImageSets" / "Segmentation" / "test.txt").write_text("\n")
    with pytest.raises(ValueError, match="voc_2012_person_test.*is empty"):
        load_pose_dicts("voc_2012_person_test", is_train=False)
