"""Two processes on the CPU (gloo) train and evaluate as one with the same total batch.

All of it runs in one pair of processes, started once; torchrun's own start is tried apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.loop import TrainingLoop
from mpn_d2.engine.processes import check_processes, run_in_processes, share_among_processes
from mpn_d2.engine.stages import evaluate, stage_config, train
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.engine.validation import validation_loss

REPO = Path(__file__).resolve().parents[2]
DEMO = str(REPO / "configs" / "quick" / "demo.yaml")
REGRESSION = str(REPO / "configs" / "PoseRegression" / "R_18_small.yaml")
STAGES = ("keypoint", "person", "assembly")
ITERATIONS = 20
# Design 7.8: crops of one size, no batch statistics, no dropout, float32.
OPTIONS = ["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"]
OPTIONS += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"]
OPTIONS += ["MODEL.RESNETS.NORM", "LN", "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.FPN.NORM", ""]
OPTIONS += ["MODEL.RETINANET.NORM", "", "MODEL.KP_SUBNET.D_DIM", "8", "MODEL.KP_SUBNET.NORM", "LN"]
OPTIONS += ["MODEL.KP_SUBNET.SMOOTH_DIM", "8", "MODEL.PRN.NODES", "8", "MODEL.PRN.DROPOUT", "0.0"]
OPTIONS += ["INPUT.AUGMENTATION", "crop", "INPUT.CROP_SIZE", "64", "INPUT.MIN_SIZE_TEST", "64"]
OPTIONS += ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.001", "SOLVER.STEPS", "()"]
OPTIONS += ["SOLVER.MAX_ITER", str(ITERATIONS), "DATASETS.TEST", "('coco_sample_val',)"]
OPTIONS += ["DATALOADER.NUM_WORKERS", "0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.005"]


def config(folder: str, stage: str, options: list[str], file: str = DEMO):
    options = [*OPTIONS, "OUTPUT_DIR", folder, *options]
    return stage_config(load_config(file, options), stage, options)


def losses_of(cfg) -> list[dict[str, float]]:
    """Losses of every iteration as they are logged."""
    torch.manual_seed(0)
    trainer, logged = PoseTrainer(cfg), []
    with EventStorage() as storage:
        for trainer.iter in range(cfg.SOLVER.MAX_ITER):
            trainer.run_step()
            latest = storage.latest()
            logged.append({k: v[0] for k, v in latest.items() if "loss" in k})
            storage.step()
    return logged


def runs(folder: str) -> dict:
    """What is compared: training of each stage, evaluation, validation loss."""
    register_pose_datasets()
    found = {stage: losses_of(config(folder, stage, [])) for stage in STAGES}
    options = ["SOLVER.MAX_ITER", "4", "SOLVER.ACCUMULATION", "2"]
    # All parts at level 0; micro-batches of one or two images differ in positives and people.
    found["accumulated"] = losses_of(config(folder, "joint", options))
    found["whole"] = losses_of(config(folder, "joint", options[:2]))
    # Every anchor is a box: people are found from the start, not as many in each process.
    options = ["MODEL.JOINT_LEVEL", "3", "MODEL.PRN.INPUT_MODE", "heatmap", "SOLVER.MAX_ITER", "4"]
    options += [
        "MODEL.RETINANET.SCORE_THRESH_TEST",
        "0.0",
        "MODEL.RETINANET.NMS_THRESH_TEST",
        "1.0",
    ]
    options += ["TEST.DETECTIONS_PER_IMAGE", "3000"]
    found["joint"] = losses_of(config(folder, "joint", options))
    # Normalised by positive locations, weights of poses and joints, of all processes.
    options = ["DATASETS.TRAIN", "('coco_sample_train',)", "SOLVER.MAX_ITER", "4"]
    found["regression"] = losses_of(config(folder, "joint", options, REGRESSION))
    # A chain's last stage through a checkpoint: evaluated and resumed.
    options = [*OPTIONS, "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", "2"]
    cfg = load_config(DEMO, options)
    found["chain"] = train(cfg, "keypoint", options, resume=False)
    found["evaluated"] = evaluate(cfg, weights=os.path.join(folder, "model_final.pth"))
    staged = config(folder, "keypoint", [])
    model = PoseTrainer.build_model(staged).train()
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    found["validation"] = validation_loss(staged, model)
    return found


class OneNaN(nn.Module):
    """Its loss, or its gradient alone, is NaN in the second process's third step."""

    def __init__(self, gradient: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.gradient = gradient
        self.steps = 0

    def forward(self, samples):
        self.steps += 1
        loss = self.weight * 1.0
        if self.steps == 3 and comm.get_rank() == 1:
            # The root's slope at 0 is infinite, times that of the absolute value, 0.
            root = (self.weight - self.weight.detach()).abs().sqrt()
            loss = loss + (root if self.gradient else float("nan"))
        return {"loss_x": loss}


def broken_run(gradient: bool) -> dict:
    model = OneNaN(gradient)
    ranks = [[{"image_id": 10 * comm.get_rank() + i} for i in range(2)]] * 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainingLoop(share_among_processes(model), ranks, optimizer)
    try:
        with EventStorage():
            for loop.iter in range(4):
                loop.run_step()
    except FloatingPointError as error:
        return {"message": str(error), "weight": model.weight.item()}
    return {}


def other_models(folder: str) -> None:
    """Models that leave parts of a pyramid without gradient."""
    for name, stage, options in (
        ("K2 alone", "keypoint", ["MODEL.KP_SUBNET.NAME", "SingleLevelSubnet"]),
        ("shared", "person", ["MODEL.POSE_FPN.SHARED", "True"]),
        ("joint", "joint", ["MODEL.JOINT_LEVEL", "2", "MODEL.PRN.INPUT_MODE", "heatmap"]),
        ("ucr", "assembly", ["MODEL.ASSEMBLER.EVIDENCE", "ucr"]),
    ):
        try:
            losses_of(config(folder, stage, [*options, "SOLVER.MAX_ITER", "3"]))
        except Exception as error:
            raise RuntimeError(f"{name}: {error}") from error


def in_each_process(args: Namespace) -> None:
    torch.set_num_threads(1)
    found = runs(args.folder)
    found |= {"broken": broken_run(gradient=False), "broken gradient": broken_run(gradient=True)}
    other_models(args.folder)
    path = Path(args.folder) / f"process_{comm.get_rank()}.json"
    path.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    url = f"file://{folder}/store"
    args = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url=url, folder=str(folder))
    run_in_processes(in_each_process, args)
    return [json.loads((folder / f"process_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict:
    return json.loads(json.dumps(runs(str(tmp_path_factory.mktemp("one")))))


@pytest.mark.parametrize("run", [*STAGES, "accumulated", "joint", "regression"])
def test_losses_are_those_of_one_process(run, one, two):
    a, b = one[run], two[0][run]
    assert len(a) == len(b) == (ITERATIONS if run in STAGES else 4)
    for iteration, (x, y) in enumerate(zip(a, b, strict=True)):
        assert set(x) == set(y) and "total_loss" in x
        for name, value in x.items():
            assert y[name] == pytest.approx(value, abs=1e-4, rel=1e-4), (iteration, name)
    # They trained: what is compared is no constant.
    assert abs(a[0]["total_loss"] - a[-1]["total_loss"]) > 1e-4 * a[0]["total_loss"]


def test_micro_batches_are_the_whole_batch(one, two):
    for found in (one, *two):
        assert len(found["whole"]) == 4 and set(found["whole"][0]) == set(found["accumulated"][0])
        for whole, parts in zip(found["whole"], found["accumulated"], strict=True):
            assert parts == pytest.approx(whole, abs=1e-4, rel=1e-4)


def test_evaluation_is_that_of_one_process(one, two):
    """Of the same weights; the second process gets nothing."""
    assert two[0]["chain"] == two[0]["evaluated"]
    assert one["chain"] == one["evaluated"]
    assert set(two[0]["chain"]["coco_sample_val"]) == {"bbox", "keypoints", "sem_seg"}
    assert two[1]["chain"] in ({}, {"coco_sample_val": {}})
    for task, metrics in one["chain"]["coco_sample_val"].items():
        for name, value in metrics.items():
            other = two[0]["chain"]["coco_sample_val"][task][name]
            assert other == pytest.approx(value, abs=1e-2), (task, name)


def test_validation_loss_is_that_of_one_process_on_both(one, two):
    # Nine images: the second process's share is filled up.
    assert two[0]["validation"] == two[1]["validation"]
    assert two[0]["validation"] == pytest.approx(one["validation"], rel=1e-5)


def test_a_broken_loss_stops_both(two):
    for process in two:
        assert "loss_x became NaN or infinite at iteration 2" in process["broken"]["message"]
        assert "batch of image 10, image 11:" in process["broken"]["message"]
        # Two steps of 0.1, none of the broken third.
        assert process["broken"]["weight"] == pytest.approx(0.8)


def test_a_broken_gradient_stops_both(two):
    """It is the mean of both: all images of the batch are named."""
    for process in two:
        found = process["broken gradient"]
        assert "the gradient became NaN or infinite at iteration 2 on a batch" in found["message"]
        assert "batch of image 0, image 1, image 10, image 11:" in found["message"]
        assert found["weight"] == pytest.approx(0.8)


def test_torchrun_and_its_environment(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "train_net.py", "--config-file", DEMO]
    arguments = [*OPTIONS, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"]
    done = subprocess.run(
        [*command, "--stage", "assembly", *arguments, "OUTPUT_DIR", str(tmp_path)],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 1
    assert (tmp_path / "log.txt.rank1").exists()


def test_torchrun_and_num_gpus_exclude_each_other(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    for name in ("LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match="started by torchrun, .*leave out --num-gpus"):
        run_in_processes(print, Namespace(num_gpus=2, num_machines=1))


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
WRONG = {
    "LOCAL_RANK": (None, "WORLD_SIZE is 4, but LOCAL_RANK not set: start with torchrun"),
    "MASTER_PORT": (None, "WORLD_SIZE is 4, but MASTER_PORT not set"),
    "RANK": ("4", "RANK=4, WORLD_SIZE=4, .* do not fit together"),
    "WORLD_SIZE": ("two", "WORLD_SIZE=two, .* do not fit together"),
    "LOCAL_WORLD_SIZE": ("3", "LOCAL_WORLD_SIZE=3 do not fit together"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_environment_that_is_not_whole_is_named(name, monkeypatch):
    """No process goes on alone, writing over the files of the others."""
    value, message = WRONG[name]
    for key, given in {**TORCHRUN, name: value}.items():
        monkeypatch.delenv(key, raising=False)
        if given is not None:
            monkeypatch.setenv(key, given)
    args = Namespace(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(ValueError, match=message):
        run_in_processes(pytest.fail, args)


def test_a_cluster_that_tells_of_one_process_runs_one(monkeypatch):
    for key in TORCHRUN:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    seen = []
    args = Namespace(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")
    run_in_processes(seen.append, args)
    assert seen == [args]


def test_gpus_or_cores_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_processes(1)
    with pytest.raises(
        ValueError, match="--num-gpus 2, but PyTorch sees 1 GPUs here: give .* 1 or"
    ):
        check_processes(2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for count in (0, 1, 4):
        check_processes(count)
    with pytest.raises(ValueError, match="--num-gpus 5, but PyTorch sees 0 GPUs and 4 CPU cores"):
        check_processes(5)
