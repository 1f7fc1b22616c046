"""docs/own_data.md, executed: a made-up skeleton of five keypoints through train_net.py."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpn_d2.config import load_config
from mpn_d2.data.coco_file import check_coco_file
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.own_datasets import register_own_datasets
from mpn_d2.evaluation import build_evaluator
from mpn_d2.structures.skeleton import get_skeleton

REPO = Path(__file__).resolve().parents[1]
PAGE = (REPO / "docs" / "own_data.md").read_text()
SKELETON = "docs/examples/skeleton_five.yaml"
# COCO's keypoints that the five are taken from.
SOURCES = ("nose", "left_shoulder", "right_shoulder", "left_hip", "right_hip")
TINY = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
TINY += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "MODEL.PRN.NODES", "4"]


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


def _of_five(content: dict) -> dict:
    """COCO `content` with five keypoints, and without what may be left out."""
    kept = [get_skeleton("coco").keypoint_names.index(name) for name in SOURCES]
    for person in content["annotations"]:
        old = person["keypoints"]
        person["keypoints"] = [v for i in kept for v in old[3 * i : 3 * i + 3]]
        del person["num_keypoints"], person["area"]
        if not person["iscrowd"]:
            del person["iscrowd"]
    content["categories"] = [{"id": 1, "name": "person"}]
    return content


@pytest.fixture
def folder(tmp_path: Path, sample_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with my_data/ as on the page; configs and docs as in the repository."""
    data = tmp_path / "my_data"
    (data / "images").mkdir(parents=True)
    for split, images in (("train", "train"), ("val", "val")):
        file = sample_dir / "annotations" / f"person_keypoints_{split}.json"
        text = json.dumps(_of_five(json.loads(file.read_text())))
        if split == "train":
            (data / "train.json").write_text(text)
        else:
            (data / "val.json.gz").write_bytes(gzip.compress(text.encode()))
        for image in (sample_dir / images).iterdir():
            (data / "images" / image.name).symlink_to(image)
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_page_shows_the_files() -> None:
    skeleton, config = _blocks("yaml")
    for block, name in ((skeleton, SKELETON), (config, "docs/examples/own_data.yaml")):
        assert _without_comments(block) == _without_comments((REPO / name).read_text()), name


def test_annotations_of_the_page_are_right(tmp_path: Path) -> None:
    (block,) = _blocks("json")
    file = tmp_path / "page.json"
    file.write_text(block)
    summary = check_coco_file(file, get_skeleton(str(REPO / SKELETON)).keypoint_names)
    assert (summary.images, summary.people, summary.labelled, summary.notes) == (1, 2, 1, {})


def test_page_is_executed(folder: Path) -> None:
    commands = [line for line in PAGE.splitlines() if line.startswith("python train_net.py --c")]
    outputs = []
    for command in commands[:2]:
        python, script, *arguments = shlex.split(command)
        assert (python, script) == ("python", "train_net.py")
        done = subprocess.run(
            [sys.executable, str(REPO / script), *arguments, *TINY],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append((done.stdout, (folder / "output/own_data/results.json").read_text()))
    # Training evaluates at its end; the second command only evaluates.
    assert outputs[0][1] == outputs[1][1]
    figures = json.loads(outputs[0][1])["my_val"]
    assert set(figures) == {"bbox", "keypoints", "sem_seg"}
    assert figures["keypoints"]["AP"] is not None
    for text in (outputs[0][0], (folder / "output/own_data/log.txt").read_text()):
        assert re.search(r"dataset my_train: 7 images, \d+ people \(\d+ with keypoints", text)

    state = torch.load(folder / "output/own_data/model_final.pth", weights_only=True)["model"]
    heatmaps = [v for k, v in state.items() if k.startswith("keypoint_head") and v.ndim == 4]
    five = len(SOURCES)
    assert five + 1 in {w.shape[0] for w in heatmaps}
    assert not {get_skeleton("coco").num_keypoints + n for n in (0, 1)} & {
        w.shape[0] for w in heatmaps
    }
    grid = 56 * 36 * five
    assert grid in {n for v in state.values() if v.ndim == 2 for n in v.shape}


def test_evaluator_takes_the_files_sigmas(folder: Path) -> None:
    register_pose_datasets()
    cfg = load_config("docs/examples/own_data.yaml", ["EVAL.TASKS", "['keypoints']"])
    register_own_datasets(cfg)
    evaluator = build_evaluator(cfg, "my_val")._evaluators[0]
    assert list(evaluator._sigmas) == [0.079, 0.079, 0.079, 0.107, 0.107]
    lengths = {len(a["keypoints"]) for a in evaluator._coco_api.anns.values()}
    assert lengths == {3 * len(SOURCES)}
    assert all(a["area"] > 0 for a in evaluator._coco_api.anns.values())
