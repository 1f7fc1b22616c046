"""The commands that the faults end, on the smallest networks and data there are."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fault_runs import Running

from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.utils.video import VideoWriter
from mpn_d2.utils.visualize import write_png

TESTS = Path(__file__).resolve().parents[1]
SAMPLE = TESTS.parent / "datasets" / "coco_sample"
for _folder in (TESTS, TESTS / "tools"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from export_cases import CONFIG, SMALL, picture, small_config, small_network  # noqa: E402
from results_cases import noisy_rows  # noqa: E402

# A network of a few thousand weights: what is tested is the bookkeeping.
TINY = ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"]
TINY += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
TINY += ["MODEL.FPN.OUT_CHANNELS", "8", "MODEL.FPN.NORM", "", "MODEL.RETINANET.NORM", ""]
TINY += ["MODEL.KP_SUBNET.D_DIM", "8", "MODEL.KP_SUBNET.SMOOTH_DIM", "8"]
TINY += ["MODEL.KP_SUBNET.NORM", "BN", "MODEL.PRN.NODES", "4", "MODEL.PRN.DROPOUT", "0.5"]
TINY += ["INPUT.AUGMENTATION", "crop", "INPUT.CROP_SIZE", "64", "INPUT.FLIP_PROB", "0.5"]
TINY += ["INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "1", "SOLVER.BASE_LR", "0.001"]
TINY += ["DATASETS.TRAIN", "('keypoints_coco_2017_train',)", "SOLVER.IMS_PER_BATCH", "2"]
TINY += ["DATASETS.TEST", "('keypoints_coco_2017_val',)", "SOLVER.STEPS", "(3,7)"]
TINY += ["EVAL.TASKS", "['sem_seg']", "SOLVER.CHECKPOINT_PERIOD", "2"]
IMAGE_SIZES = ((70, 110), (96, 64), (64, 96), (80, 80))
FRAMES = 6
# Faults that can happen to a command that works alone, and to one with processes that help it.
KILLS_AND_DISK = ("moment", "file", "write", "disk")
ALONE = (*KILLS_AND_DISK, "data")
WITH_WORKERS = (*ALONE, "worker")
# The server's hooks are in its forks alone: not in processes that a command starts anew, which
# write most of its files.
SPAWNING = ("moment", "disk", "data", "worker")


@dataclass(frozen=True)
class Case:
    """A command and what may happen to it.

    Attributes:
        arguments: with {run}, the folder that it fills, and {data}, what it reads.
        again: what comes after the file where the command is repeated after a fault.
        kinds: of the faults that can happen to it, see fault_kinds.py.
        inexact: beginnings of files that no two runs fill with the same last bits.
        at_work: whether it has begun to read data, given the run and its folder.
    """

    name: str
    arguments: tuple[str, ...]
    again: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ALONE
    inexact: tuple[str, ...] = ()
    at_work: Callable[[Running, Path], bool] = lambda running, folder: any(folder.rglob("*"))


def from_the_start(running: Running, folder: Path) -> bool:
    """Of commands that read all at once, before they write anything."""
    return True


def has_workers(running: Running, folder: Path) -> bool:
    return bool(running.workers())


def has_pictures(running: Running, folder: Path) -> bool:
    return any(folder.rglob("*.png*"))


def training(
    name: str,
    stage: str,
    options: list[str],
    *flags: str,
    inexact: tuple[str, ...] = (),
    kinds: tuple[str, ...] = WITH_WORKERS,
) -> Case:
    config = ["--config-file", "configs/quick/demo.yaml", "--stage", stage, *flags]
    return Case(
        name,
        ("train_net.py", *config, *TINY, *options, "OUTPUT_DIR", "{run}/out"),
        again=("--resume",),
        inexact=inexact,
        kinds=kinds,
        at_work=has_workers,
    )


def cases() -> list[Case]:
    best = ["TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC", "['sem_seg/IoU-person']"]
    network = ["--opts", *SMALL, "MODEL.WEIGHTS", "{data}/model.pth"]
    small = ["--config-file", f"configs/{CONFIG}"]
    demo = ["tools/demo.py", *small, "--confidence-threshold", "0.3"]
    scores = ["tools/evaluate.py", "--results", "{data}/people.json"]
    drawn = ["tools/make_synthetic.py", "--dataset", "drawn-v1", "--split", "test", "--images", "4"]
    export = ["tools/export_model.py", *small, "--images", "{data}/images", "--output", "{run}/out"]
    return [
        training("training", "keypoint", ["SOLVER.MAX_ITER", "6", *best]),
        training(
            "chain",
            "all",
            ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_KEEP", "1"],
            # The person stage (tests/engine/test_resume.py), and what stands on it.
            inexact=("out/person/", "out/assembly/", "out/model_final.pth"),
        ),
        training(
            "two processes",
            "keypoint",
            ["SOLVER.MAX_ITER", "4"],
            *("--num-gpus", "2"),
            kinds=SPAWNING,
        ),
        Case(
            "evaluation",
            ("train_net.py", "--eval-only", *small, *network[1:])
            + ("DATASETS.TEST", "('keypoints_coco_2017_val',)", "DATALOADER.NUM_WORKERS", "1")
            + ("OUTPUT_DIR", "{run}/out"),
            kinds=WITH_WORKERS,
            at_work=has_workers,
        ),
        Case(
            "scores",
            (*scores, "--annotations", "{data}/people_truth.json.gz")
            + ("--curves", "{run}/out/curves", "--output", "{run}/out/scores.json"),
            at_work=from_the_start,
        ),
        Case("onnx", (*export, "--format", "onnx", *network), at_work=from_the_start),
        Case("torchscript", (*export, "--format", "torchscript", *network), at_work=from_the_start),
        Case(
            "images",
            (*demo, "--input", "{data}/images", "--output", "{run}/out", "--heatmaps")
            + ("--json", "{run}/out/people.json", *network),
            at_work=has_pictures,
        ),
        Case(
            "video",
            (*demo, "--video-input", "{data}/walk.mp4", "--output", "{run}/out/drawn.mp4")
            + ("--track", "--json", "{run}/out/people.json", *network),
        ),
        # Reads nothing that could be taken away.
        Case("drawn", (*drawn, "--output", "{run}/out"), kinds=KILLS_AND_DISK),
        Case(
            "drawn by two",
            (*drawn, "--workers", "2", "--output", "{run}/out"),
            kinds=tuple(kind for kind in SPAWNING if kind != "data"),
            at_work=has_workers,
        ),
    ]


def make_data(folder: Path) -> None:
    """All that the commands read: a small COCO, images, a video, results, a network."""
    for split, target in (("train", "train2017"), ("val", "val2017")):
        images = folder / "coco" / target
        images.mkdir(parents=True)
        truth = json.loads((SAMPLE / f"annotations/person_keypoints_{split}.json").read_text())
        for image in truth["images"]:
            shutil.copyfile(SAMPLE / split / image["file_name"], images / image["file_name"])
        file = folder / "coco/annotations" / f"person_keypoints_{target}.json"
        file.parent.mkdir(exist_ok=True)
        if split == "val":
            packed = gzip.compress(json.dumps(truth).encode())
            (folder / "people_truth.json.gz").write_bytes(packed)
            for person in truth["annotations"]:
                del person["area"]  # read through a completed copy in the cache
        file.write_text(json.dumps(truth))
    (folder / "people.json").write_text(json.dumps(noisy_rows()))
    (folder / "images").mkdir()
    for i, size in enumerate(IMAGE_SIZES):
        write_png(folder / "images" / f"{i}.png", picture(*size, 0.6, seed=i)[:, :, ::-1].copy())
    with VideoWriter(folder / "walk.mp4", 12.5) as video:
        for i in range(FRAMES):
            scene = np.roll(picture(80, 112, 0.6), 8 * i, axis=1)
            video.write(np.ascontiguousarray(scene[:, :, ::-1]))
    PoseCheckpointer(small_network(small_config()), str(folder)).save("model")
