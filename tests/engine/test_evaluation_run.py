"""One evaluation of a small random network by the trainer: what is scored, what is written."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from PIL import Image
from torch import nn

from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.inference_model import build_inference_model
from mpn_d2.engine.trainer import PoseTrainer

SMALL = [
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96", "MODEL.PRN.NODES", "4"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "30"),
    *("MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.0", "MODEL.PEAKS.THRESH", "0.0"),
    *("DATALOADER.NUM_WORKERS", "0", "EVAL.ALGORITHM_NAME", "small"),
]
SIZES = {"2007_000033": (40, 61), "2007_000042": (52, 33)}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    from mpn_d2.config import load_config

    repo = Path(__file__).resolve().parents[2]
    config = str(repo / "configs" / "MultiPoseNet" / "R_18_small.yaml")
    torch.manual_seed(2)
    cfg = load_config(config, [*SMALL, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    return build_pose_model(cfg).eval()


@pytest.fixture()
def configure(paper_config: Callable, tmp_path: Path) -> Callable[..., CfgNode]:
    def make(dataset: str, *options: str) -> CfgNode:
        given = [*SMALL, "DATASETS.TEST", f"('{dataset}',)", "OUTPUT_DIR", str(tmp_path / "out")]
        return paper_config("MultiPoseNet/R_18_small.yaml", [*given, *options])

    return make


@pytest.fixture()
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """VOC2012 with the same images in val and test; people in the upper half."""
    folder = tmp_path / "VOC2012"
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    for split in ("val", "test"):
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(SIZES))
    for image_id, (height, width) in SIZES.items():
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image_id}.jpg")
        truth = np.zeros((height, width), np.uint8)
        truth[: height // 2] = 15
        truth[height // 2] = 255
        Image.fromarray(truth).save(folder / "SegmentationClass" / f"{image_id}.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_pose_datasets()
    yield folder
    monkeypatch.undo()
    register_pose_datasets()


def test_all_images_and_all_tasks_in_one_run(
    configure: Callable, model: nn.Module, register_coco: Callable, sample_dir: Path, tmp_path: Path
) -> None:
    """Images without people pass through the network too."""
    content = json.loads((sample_dir / "annotations" / "person_keypoints_val.json").read_text())
    content["images"] = content["images"][:2]
    content["annotations"] = [
        a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]
    ]
    name = register_coco(content)
    for image in content["images"]:
        os.symlink(sample_dir / "val" / image["file_name"], tmp_path / image["file_name"])
    results = PoseTrainer.test(configure(name), model)[name]
    assert list(results) == ["bbox", "keypoints", "sem_seg"]
    folder = tmp_path / "out" / "inference" / name
    rows = json.loads((folder / "coco_instances_results.json").read_text())
    assert {row["image_id"] for row in rows} == {image["id"] for image in content["images"]}
    assert {"bbox_curves.png", "keypoints_curves.png"} <= set(os.listdir(folder))
    assert results["bbox"]["AR100"] is not None and results["sem_seg"]["IoU-person"] is not None


def test_test_dev_gets_the_files_for_its_server(
    configure: Callable, model: nn.Module, register_coco: Callable, sample_dir: Path, tmp_path: Path
) -> None:
    content = json.loads((sample_dir / "annotations" / "person_keypoints_val.json").read_text())
    image = content["images"][0]
    names = ["person", "bicycle", *(f"thing {i}" for i in range(3, 81))]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    name = register_coco({"images": [image], "categories": categories})
    os.symlink(sample_dir / "val" / image["file_name"], tmp_path / image["file_name"])
    # Detectron2 calls it coco_2017_test-dev.
    file = tmp_path / "image_info_test-dev2017.json"
    os.symlink(MetadataCatalog.get(name).json_file, file)
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(json_file=str(file), image_root=str(tmp_path))
    results = PoseTrainer.test(configure(name), model)[name]
    assert {v for of_task in results.values() for v in of_task.values()} == {None}
    folder = tmp_path / "out" / "inference" / name
    stem = "person_keypoints_test-dev2017_small_results"
    with zipfile.ZipFile(folder / f"{stem}.zip") as packed:
        rows = json.loads(packed.read(f"{stem}.json"))
    assert 0 < len(rows) <= 20 and {row["image_id"] for row in rows} == {image["id"]}
    boxes = json.loads((folder / "detections_test-dev2017_small_results.json").read_text())
    assert len(rows) <= len(boxes) <= 30 and set(boxes[0]) == {*rows[0], "bbox"} - {"keypoints"}
    assert not list(folder.glob("*curves*"))


def test_voc_splits_run_through_the_same_loader(
    configure: Callable, model: nn.Module, voc: Path, tmp_path: Path
) -> None:
    only = ["EVAL.TASKS", "['sem_seg']", "EVAL.MASK_THRESH", "0.0"]
    name = "voc_2012_person_val"
    (results,) = PoseTrainer.test(configure(name, *only), model)[name].values()
    hit = either = 0
    for image_id, (height, _) in SIZES.items():
        file = f"inference/{name}/results/VOC2012/Segmentation/comp6_val_cls/{image_id}.png"
        found = np.array(Image.open(tmp_path / "out" / file)) == 15
        hit += found[: height // 2].sum()
        either += (height // 2) * found.shape[1] + found[height // 2 + 1 :].sum()
    assert hit > 0
    assert results["IoU-person"] == pytest.approx(100 * hit / either)
    name = "voc_2012_person_test"
    assert set(PoseTrainer.test(configure(name, *only), model)[name]["sem_seg"].values()) == {None}
    folder = tmp_path / "out" / "inference" / name
    assert (folder / "comp6_test_cls.tar.gz").is_file()
    for image_id, size in SIZES.items():
        file = folder / "results/VOC2012/Segmentation/comp6_test_cls" / f"{image_id}.png"
        assert np.array(Image.open(file)).shape == size
    with pytest.raises(ValueError, match=r"has masks of people alone.*EVAL\.TASKS is \['bbox'"):
        PoseTrainer.test(configure(name), model)


def test_voc_at_several_scales(
    configure: Callable, model: nn.Module, voc: Path, tmp_path: Path
) -> None:
    """The masks that are written are those that all views together say, in the image's size."""
    views = ["TTA.ENABLED", "True", "TTA.SCALES", "[1.0, 0.5]", "TTA.FLIP", "True"]
    name = "voc_2012_person_val"
    only = ["EVAL.TASKS", "['sem_seg']", "EVAL.MASK_THRESH", "0.5"]
    cfg = configure(name, *only, *views)
    several = build_inference_model(cfg, "", load=lambda *_: model)
    seen = {}

    class Noted(nn.Module):
        full_size_input = several.full_size_input

        def forward(self, inputs: list[dict]) -> list[dict]:
            results = several(inputs)
            for x, result in zip(inputs, results, strict=True):
                assert tuple(x["image"].shape[1:]) == (x["height"], x["width"])
                # A random network is unsure; half of the image is to be people.
                p = result["sem_seg"][1]
                p = (p > p.median()).float()
                result["sem_seg"] = torch.stack([1 - p, p])
                seen[Path(x["file_name"]).stem] = p.numpy()
            return results

    (results,) = PoseTrainer.test(cfg, Noted().eval())[name].values()
    assert 0 < results["IoU-person"] < 100
    assert {i: p.shape for i, p in seen.items()} == SIZES
    for image_id, p in seen.items():
        file = f"inference/{name}/results/VOC2012/Segmentation/comp6_val_cls/{image_id}.png"
        found = np.array(Image.open(tmp_path / "out" / file)) == 15
        np.testing.assert_array_equal(found, p > 0.5)
