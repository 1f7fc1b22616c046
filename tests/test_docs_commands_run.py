"""Commands of README and docs, run as they stand but for `SHORTER`, beside a reader's files.

What is not run here is in `ELSEWHERE`, with who runs it, or `NOT_RUN`, with the reason; a command
that is in none of the three fails. All are parsed, and their configs loaded, in
test_docs_commands.py. A page's commands run in the order of the page, each in a process' __main__.
"""

from __future__ import annotations

import gzip
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import pytest
import torch
from test_docs_commands import FOREIGN, PAGES, REPO, is_listing, listed, words_of

from mpn_d2.config import load_config
from mpn_d2.engine.build import build_pose_model

pytestmark = pytest.mark.slow

# Options at the end of each command that builds a network: ResNet-18, little pictures and trunks,
# the bundled photographs in the place of COCO, two iterations.
SHORTER = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS"]
SHORTER += ["64", "MODEL.PRN.NODES", "8", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"]
SHORTER += ["DATALOADER.NUM_WORKERS", "0"]
PHOTOGRAPHS = ["DATASETS.TEST", "('coco_sample_two',)"]
TRAINING = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "0"]
# Commands that others run for real, shortened: pattern of the command, their file.
ELSEWHERE = {
    r"make (demo|setup)$": "tools/test_make_demo.py",
    r"tools/benchmark\.py": "tools/test_benchmark.py",
    r"tools/train_regression\.py": "tools/test_train_regression.py",
    r"tools/train_rcnn\.py": "tools/test_train_rcnn.py",
    r"tools/performance\.py": "tools/test_performance.py",
    r"tools/prn_clusters\.py": "tools/test_prn_clusters.py",
    r"tools/plot_metrics\.py out/keypoint": "tools/test_plot_metrics.py",
    r"tools/model_zoo\.py": "tools/test_model_zoo.py",
    r"tools/convert_checkpoint\.py": "tools/test_convert_checkpoint.py",
    r"docs/examples/own_data\.yaml": "test_own_data.py",
    r"make (synthetic|ablation)": "tools/test_train_synthetic.py",
    r"--video-input": "tools/test_demo_video.py",
}
# Why it is dry-run alone.
NOT_RUN = {
    r"make test$": "it runs this",
    r"make versions": "downloads gigabytes",
    r"--num-gpus|torchrun": "several GPUs or machines; two processes: engine/test_distributed.py",
    r"--webcam": "no camera here",
    r"import timm": "downloads weights",
    r"hrnet_w32\.pth": "weights that were not fetched",
    r"voc_2012|crowdpose": "data that is not here",
    r"train_net\.py (?!.*--eval-only)(?!.*PRN_poses)": "training on COCO; test_train_net.py trains",
    r"compat/": "a checkpoint that was not fetched; convert/test_multiposenet_pytorch.py makes one",
    r"visualize_data\.py .*(C|R_50\.yaml)": "draws COCO; tools/test_visualize_data.py",
}
# Checkpoints that pages name, and the config whose network it holds ("C" is quick/demo.yaml).
CHECKPOINTS = {
    "W": "configs/quick/demo.yaml",
    "output/demo/model_final.pth": "configs/quick/demo.yaml",
    "output/R_50/model_final.pth": "configs/MultiPoseNet/R_50.yaml",
    "output/rcnn/model_final.pth": "configs/MultitaskRCNN/R_50_multi_RB_H.yaml",
    "output/regression/model_final.pth": "configs/PoseRegression/R_50.yaml",
    "single/model_final.pth": "configs/MultiPoseNet/SinglePerson_R_50.yaml",
}


def place_of(command: str) -> str | None:
    """Who else runs a command, or why nobody does; None: it is run here."""
    for patterns in (ELSEWHERE, NOT_RUN):
        for pattern, place in patterns.items():
            if re.search(pattern, command):
                return place
    return None


def commands_of_pages() -> dict[str, list[str]]:
    pages: dict[str, list[str]] = {}
    for page, command in listed():
        words = words_of(command)
        if words and words[0] not in FOREIGN and place_of(command) is None:
            pages.setdefault(page, []).append(command)
    return pages


def test_who_runs_the_others_is_there():
    for file in ELSEWHERE.values():
        assert (REPO / "tests" / file).is_file()
    commands = [x for page in PAGES for x in page.read_text().split("\n") if not is_listing(x)]
    text = "\n".join([*commands, *(command for _, command in listed())])
    for pattern in (*ELSEWHERE, *NOT_RUN):
        assert re.search(pattern, text, re.MULTILINE), f"no page has {pattern}"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The reader's files, as the pages call them."""
    folder = tmp_path_factory.mktemp("reader")
    sample = REPO / "datasets" / "coco_sample"
    shutil.copytree(sample / "val", folder / "val2017")
    photographs = sorted((folder / "val2017").iterdir())
    shutil.copy(photographs[0], folder / "photo.jpg")
    for name, suffix in (("folder", ".jpg"), ("more", ".png")):
        (folder / name).mkdir()
        image = cv2.imread(str(photographs[1]))
        assert cv2.imwrite(str(folder / name / f"a{suffix}"), image)
    (folder / "datasets").symlink_to(REPO / "datasets")
    (folder / "configs").symlink_to(REPO / "configs")
    annotations = json.loads((sample / "annotations" / "person_keypoints_val.json").read_text())
    rename_image(annotations, 785)
    write_files(folder, annotations)
    for name, config in CHECKPOINTS.items():
        write_checkpoint(folder / name, config)
    return folder


def rename_image(annotations: dict, image_id: int) -> None:
    """Calls the image with most people as a page does."""
    owners = [row["image_id"] for row in annotations["annotations"] if row["num_keypoints"]]
    most = max(set(owners), key=owners.count)
    for row in annotations["images"]:
        row["id"] = image_id if row["id"] == most else row["id"]
    for row in annotations["annotations"]:
        row["image_id"] = image_id if row["image_id"] == most else row["image_id"]


def write_files(folder: Path, annotations: dict) -> None:
    """Annotations, and results that are right, by all names that pages have for them."""
    people = [row for row in annotations["annotations"] if not row["iscrowd"]]
    poses = [
        {"image_id": p["image_id"], "category_id": 1, "keypoints": p["keypoints"], "score": 0.9}
        for p in people
        if p["num_keypoints"]
    ]
    boxes = [
        {"image_id": p["image_id"], "category_id": 1, "bbox": p["bbox"], "score": 0.9}
        for p in people
    ]
    content = {
        "person_keypoints_val2017.json": annotations,
        "F": annotations,
        "my_data/val.json": annotations,
        "other.json": poses,
        "other_method.json": poses,
        "K.json": poses,
        "R.json": poses,
        "boxes.json": boxes,
        "B.json": boxes,
    }
    for name, value in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    with gzip.open(folder / "my_data" / "train.json.gz", "wt") as file:
        json.dump(annotations, file)
    (folder / "DIR").symlink_to(folder / "val2017")


def write_checkpoint(file: Path, config: str) -> None:
    cfg = load_config(str(REPO / config), ["MODEL.WEIGHTS", "", *SHORTER])
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": build_pose_model(cfg).state_dict()}, file)


def shortened(command: str) -> list[str]:
    """The words of a command, with what stands for the reader's files and the options above."""
    words = shlex.split(command.replace("$A", "person_keypoints_val2017.json"))
    words = [word for word in words if not re.match(r"[A-Z]+=", word)]
    script, rest = words[1], words[2:]
    if script == "-c":
        return words[1:]
    rest = ["configs/quick/demo.yaml" if x == "C" else x for x in rest]
    if "..." in rest:
        rest[rest.index("...") :] = ["MODEL.WEIGHTS", "W"]
    if script == "train_net.py":
        rest += SHORTER
        rest += PHOTOGRAPHS if "PRN_poses" not in command and "--resume" not in rest else []
        rest += [] if "--eval-only" in rest else TRAINING
    elif "--opts" in rest:
        rest += SHORTER
    return [script, *rest]


@pytest.mark.parametrize("page", commands_of_pages())
def test_commands_run(page, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(files)
    for command in commands_of_pages()[page]:
        script, *arguments = shortened(command)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        code = run(script, arguments)
        printed = capsys.readouterr()
        assert code in (None, 0), f"{command}\n{printed.out[-500:]}\n{printed.err[-500:]}"
        for made in outputs(arguments):
            assert (files / made).exists(), f"{command}: no {made}"


def run(script: str, arguments: list[str]) -> int | str | None:
    """Exit code."""
    try:
        if script == "-c":
            exec(compile(arguments[0], "docs", "exec"), {})
        elif script == "-m":
            runpy.run_module(arguments[0], run_name="__main__")
        else:
            runpy.run_path(str(REPO / script), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def outputs(arguments: list[str]) -> list[str]:
    """What options of output name."""
    pairs = zip(arguments, arguments[1:])
    return [x for option, x in pairs if option in ("--output", "--json", "--curves", "OUTPUT_DIR")]
