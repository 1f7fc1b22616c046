"""train_net.py as a user calls it: mistakes end in one line and a non-zero exit code."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def train_net(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "train_net.py", *arguments],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


DEMO = ("--config-file", "configs/quick/demo.yaml")
TINY = ("INPUT.MIN_SIZE_TRAIN", "(96,)", "MODEL.PRN.NODES", "4", "SOLVER.MAX_ITER", "1")
MISTAKES = {
    "config missing": (
        ("--config-file", "configs/none.yaml"),
        "config configs/none.yaml: no such file",
    ),
    # A config by the name that it has in the package.
    "unknown key": (
        ("--config-file", "quick/demo.yaml", "MODEL.NOTHING", "1"),
        "no config key MODEL.NOTHING",
    ),
    "unknown stage": ((*DEMO, "--stage", "boxes"), "unknown --stage boxes: keypoint, person"),
    "unknown dataset": (
        (*DEMO, "DATASETS.TRAIN", "('coco_sample_trian',)"),
        "'coco_sample_trian' is not registered; did you mean coco_sample_train",
    ),
    "dataset not there": (
        (*DEMO, "DATASETS.TRAIN", "('keypoints_coco_2017_train',)"),
        "person_keypoints_train2017.json not found; DETECTRON2_DATASETS=",
    ),
    "weights not there": (
        (*DEMO, "MODEL.WEIGHTS", "/nowhere/model.pth"),
        "weights /nowhere/model.pth not found: check MODEL.WEIGHTS",
    ),
    "GPUs not there": ((*DEMO, "--num-gpus", "99"), "--num-gpus 99, but PyTorch sees "),
    "no stage before": (
        (*DEMO, "--stage", "person", *TINY),
        "keypoint parts would stay untrained, MODEL.WEIGHTS '' has no backbone.bottom_up.",
    ),
    "nothing to evaluate": ((*DEMO, "--eval-only"), "nothing to evaluate: give MODEL.WEIGHTS"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line(mistake, tmp_path):
    arguments, message = MISTAKES[mistake]
    done = train_net(
        *arguments, "OUTPUT_DIR", str(tmp_path / "out"), DETECTRON2_DATASETS=str(tmp_path)
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path).glob("out/*.pth"))


def test_a_missing_image_is_named_by_the_loader_worker(tmp_path, sample_dir):
    coco = tmp_path / "data" / "coco"
    (coco / "train2017").mkdir(parents=True)
    (coco / "annotations").mkdir()
    shutil.copyfile(
        sample_dir / "annotations" / "person_keypoints_train.json",
        coco / "annotations" / "person_keypoints_train2017.json",
    )
    options = ["--stage", "keypoint", *TINY, "DATALOADER.NUM_WORKERS", "1"]
    options += ["DATASETS.TRAIN", "('keypoints_coco_2017_train',)"]
    options += ["OUTPUT_DIR", str(tmp_path / "out")]
    done = train_net(*DEMO, *options, DETECTRON2_DATASETS=str(tmp_path / "data"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert str(coco / "train2017") in line and ".jpg" in line
    assert "DataLoader worker" not in line


def test_messages_of_the_chain_reach_stdout_and_the_log(tmp_path):
    out = tmp_path / "out"
    options = [*TINY, "DATALOADER.NUM_WORKERS", "0", "DATASETS.TEST", "()"]
    done = train_net(*DEMO, *options, "OUTPUT_DIR", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    for text in (done.stdout, (out / "log.txt").read_text()):
        assert "Stage 1 of 3, keypoint" in text and "Stage 3 of 3, assembly" in text
        assert "parameters" in text and "of them trained (person)" in text


def test_package_without_detectron2_says_how_to_get_it(tmp_path):
    # A finder that hides detectron2, as on a machine that lacks it.
    code = (
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'detectron2' else real(n, *a)\n"
        "import mpn_d2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode != 0
    assert "python tools/install_detectron2.py" in done.stderr.splitlines()[-1]


def test_commands_start_without_warnings_of_what_they_import():
    command = [sys.executable, "-W", "error::FutureWarning", "train_net.py", "--help"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FutureWarning" not in done.stderr


@pytest.mark.parametrize("tool", sorted(p.name for p in (REPO / "tools").glob("*.py")))
def test_tools_import_the_package_before_what_warns(tool):
    """Detectron2 warns while it scripts functions of its own; mpn_d2/__init__.py silences that."""
    for node in ast.parse((REPO / "tools" / tool).read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] == "mpn_d2" for name in names):
            return
        warning = [name for name in names if name.split(".")[0] == "detectron2"]
        # These script nothing.
        silent = {"detectron2", "detectron2.config", "detectron2.utils.logger"}
        assert set(warning) <= silent, f"import mpn_d2 before {warning[0]}"


def test_builtin_coco_names_train_and_evaluate(mpn_data, tmp_path):
    options = ["SOLVER.MAX_ITER", "1", "MODEL.WEIGHTS", "", "MODEL.PRN.NODES", "4"]
    options += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"]
    options += ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    options += ["OUTPUT_DIR", str(tmp_path / "out")]
    done = train_net(
        "--config-file",
        "configs/MultiPoseNet/R_18_small.yaml",
        *options,
        DETECTRON2_DATASETS=str(mpn_data),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "keypoints on keypoints_coco_2017_val" in done.stdout
    first = (tmp_path / "out/results.json").read_text()
    again = train_net(
        "--config-file",
        "configs/MultiPoseNet/R_18_small.yaml",
        "--eval-only",
        *options[:2],
        *options[4:],
        DETECTRON2_DATASETS=str(mpn_data),
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert (tmp_path / "out/results.json").read_text() == first
