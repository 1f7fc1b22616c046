"""Person IoU on a drawn VOC tree against a slow count, and the files for VOC's server."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpn_d2.data import register_pose_datasets
from mpn_d2.evaluation import VocPersonEvaluator
from mpn_d2.evaluation.voc_segmentation import voc_colormap

# Odd sizes (H, W) by image id.
SIZES = {"2007_000033": (31, 47), "2007_000042": (20, 9), "2008_000006": (13, 17)}
VAL = ["2007_000033", "2007_000042"]


def classes(size: tuple[int, int], seed: int) -> np.ndarray:
    """Blocks of background, person, and other classes, with border pixels between."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 0, 15, 15, 12, 20, 255], (size[0] // 3 + 1, size[1] // 3 + 1))
    return blocks.repeat(3, 0).repeat(3, 1)[: size[0], : size[1]].astype(np.uint8)


@pytest.fixture()
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """VOC2012 with two images in val and one in test."""
    folder = tmp_path / "VOC2012"
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    for split, ids in (("val", VAL), ("test", ["2008_000006"])):
        text = "".join(f"{i}\n" for i in ids)
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)
    for seed, image_id in enumerate(VAL):
        mask = Image.fromarray(classes(SIZES[image_id], seed))
        mask.putpalette(voc_colormap().tobytes())
        mask.save(folder / "SegmentationClass" / f"{image_id}.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_pose_datasets()
    yield folder
    monkeypatch.undo()
    register_pose_datasets()


@pytest.fixture()
def probabilities() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {i: rng.random(size).astype(np.float32) for i, size in SIZES.items()}


def run(evaluator: VocPersonEvaluator, masks: dict[str, np.ndarray]) -> dict:
    evaluator.reset()
    for image_id, p in masks.items():
        given = {"image_id": image_id, "file_name": f"{image_id}.jpg"}
        given |= dict(zip(("height", "width"), SIZES[image_id], strict=True))
        score = torch.from_numpy(p)
        evaluator.process([given], [{"sem_seg": torch.stack([1 - score, score])}])
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_iou_is_that_of_a_slow_count(tree: Path, probabilities: dict, threshold: float) -> None:
    masks = {i: probabilities[i] for i in VAL}
    results = run(VocPersonEvaluator("voc_2012_person_val", threshold=threshold), masks)
    hit, false, missed, neither = 0, 0, 0, 0
    for seed, image_id in enumerate(VAL):
        truth = classes(SIZES[image_id], seed)
        for y in range(truth.shape[0]):
            for x in range(truth.shape[1]):
                if truth[y, x] == 255:
                    continue
                found = masks[image_id][y, x] > threshold
                hit += found and truth[y, x] == 15
                false += found and truth[y, x] != 15
                missed += not found and truth[y, x] == 15
                neither += not found and truth[y, x] != 15
    assert min(hit, false) > 0
    assert results["IoU-person"] == pytest.approx(100 * hit / (hit + false + missed))
    assert results["IoU-background"] == pytest.approx(100 * neither / (neither + false + missed))
    count = hit + false + missed + neither
    assert results["pACC"] == pytest.approx(100 * (hit + neither) / count)


def test_truth_scores_100_and_nothing_0(tree: Path) -> None:
    truth = {i: classes(SIZES[i], seed) for seed, i in enumerate(VAL)}
    evaluator = VocPersonEvaluator("voc_2012_person_val")
    perfect = {i: ((t == 15) | (t == 255)).astype(np.float32) for i, t in truth.items()}
    assert set(run(evaluator, perfect).values()) == {100.0}
    assert run(evaluator, {i: np.zeros_like(p) for i, p in perfect.items()})["IoU-person"] == 0
    assert set(run(evaluator, {}).values()) == {0.0}


def test_colors_are_those_of_the_devkit() -> None:
    colors = voc_colormap()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 3: (128, 128, 0), 15: (192, 128, 128)}
    known |= {20: (0, 64, 128), 255: (224, 224, 192)}
    assert {i: tuple(colors[i].tolist()) for i in known} == known
    assert len(np.unique(colors, axis=0)) == 256


def test_files_for_the_server(tree: Path, tmp_path: Path, probabilities: dict) -> None:
    out = tmp_path / "out"
    evaluator = VocPersonEvaluator("voc_2012_person_test", output_dir=str(out), threshold=0.25)
    masks = {"2008_000006": probabilities["2008_000006"]}
    assert set(run(evaluator, masks).values()) == {None}
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    assert sorted(os.listdir(out)) == ["comp6_test_cls.tar.gz", "results"]
    with tarfile.open(out / "comp6_test_cls.tar.gz", "r:gz") as archive:
        assert archive.getnames() == [f"{folder}/2008_000006.png"]
        picture = Image.open(archive.extractfile(archive.getmembers()[0]))
        picture.load()
    assert picture.mode == "P" and picture.format == "PNG" and picture.size == (17, 13)
    np.testing.assert_array_equal(np.array(picture), np.where(masks["2008_000006"] > 0.25, 15, 0))
    assert picture.getpalette()[45:48] == [192, 128, 128]
    assert (out / folder / "2008_000006.png").is_file()


def test_masks_of_splits_with_truth_need_no_archive(
    tree: Path, tmp_path: Path, probabilities: dict
) -> None:
    options = {"output_dir": str(tmp_path / "out"), "competition": "comp5"}
    run(VocPersonEvaluator("voc_2012_person_val", **options), {i: probabilities[i] for i in VAL})
    names = [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")]
    folder = "results/VOC2012/Segmentation/comp5_val_cls"
    assert sorted(names) == [f"{folder}/{i}.png" for i in VAL]


def test_an_image_that_was_not_processed_is_missed(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(VocPersonEvaluator("voc_2012_person_test", output_dir=str(tmp_path / "out")), {})
    assert "comp6_test_cls.tar.gz lacks 1 of its images" in caplog.text


def _no_mask(folder: Path) -> None:
    (folder / "SegmentationClass" / f"{VAL[0]}.png").unlink()


def _empty_mask(folder: Path) -> None:
    (folder / "SegmentationClass" / f"{VAL[0]}.png").write_bytes(b"")


def _cut_mask(folder: Path) -> None:
    path = folder / "SegmentationClass" / f"{VAL[0]}.png"
    path.write_bytes(path.read_bytes()[:900])


def _colors(folder: Path) -> None:
    path = folder / "SegmentationClass" / f"{VAL[0]}.png"
    Image.open(path).convert("RGB").save(path)


def _other_size(folder: Path) -> None:
    Image.new("L", (9, 9)).save(folder / "SegmentationClass" / f"{VAL[0]}.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_mask, r"VOC mask .*2007_000033\.png not found"),
        (_empty_mask, r"VOC mask .*2007_000033\.png cannot be read"),
        (_cut_mask, r"VOC mask .*2007_000033\.png cannot be read"),
        (_colors, r"2007_000033\.png has mode RGB: indices of classes are needed"),
        (_other_size, r"2007_000033\.jpg has shape \(2, 31, 47\), wanted \(2, 9, 9\)"),
    ],
)
def test_faulty_masks_are_named(
    tree: Path, probabilities: dict, spoil: Callable, message: str
) -> None:
    spoil(tree)
    evaluator = VocPersonEvaluator("voc_2012_person_val")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        run(evaluator, {VAL[0]: probabilities[VAL[0]]})


def test_faulty_keys_are_named(tree: Path) -> None:
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"EVAL\.MASK_THRESH is "):
            VocPersonEvaluator("voc_2012_person_val", threshold=threshold)
    with pytest.raises(ValueError, match=r"EVAL\.VOC_COMPETITION is 'comp7'"):
        VocPersonEvaluator("voc_2012_person_val", competition="comp7")
