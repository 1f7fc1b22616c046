"""Speed of what a training does besides the network: reading images, building targets."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.loader import build_pose_train_loader
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.stages import stage_config
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.utils.timing import clocked, in_fresh_process, one_core, peak_mib, wait_for


def measure_data(
    cfg: CfgNode,
    options: list[str],
    *,
    size: int,
    images: int,
    passes: int,
    batch_size: int,
    iterations: int,
    memory_batch_size: int,
) -> dict[str, float]:
    """Figures of part `data` by name, see tools/benchmark.py.

    Args:
        cfg: with the keypoint stage.
        options: KEY VALUE pairs that win over the stage's keys.
        size: side of the crops, pixels.
        images: in a pass of the loader.
        passes: of the loader; the best counts.
        batch_size: of the timed iterations.
        iterations: that are timed; the best counts.
        memory_batch_size: of the step whose memory is measured.
    """
    options = [*options, "INPUT.CROP_SIZE", str(size), "DATALOADER.NUM_WORKERS", "0"]
    # The recipe of the paper even where the config leaves it out.
    options += ["INPUT.AUGMENTATION", "crop", "MODEL.WEIGHTS", ""]
    stage = stage_config(cfg, "keypoint", options)
    return {
        **_loader_speed(with_batch(stage, 1), images, passes),
        **_target_share(with_batch(stage, batch_size), iterations),
        "peak_mib/keypoint_stage": in_fresh_process(
            _step_mib, with_batch(stage, memory_batch_size).dump()
        ),
    }


def with_batch(cfg: CfgNode, size: int) -> CfgNode:
    """A copy of a config with so many images (or samples) a batch."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = size
    cfg.freeze()
    return cfg


def _loader_speed(cfg: CfgNode, images: int, passes: int) -> dict[str, float]:
    with one_core():
        times = [_read(cfg, images) for _ in range(passes + 1)]
    wall, processor = (min(values) for values in zip(*times[1:], strict=True))
    return {
        "data/images_per_second": images / wall,
        "data/images_per_cpu_second": images / processor,
    }


def _read(cfg: CfgNode, images: int) -> tuple[float, float]:
    """Wall and processor seconds for so many images of the loader."""
    stream = iter(build_pose_train_loader(cfg))

    def read() -> None:
        for _ in itertools.islice(stream, images):
            pass

    return clocked(read)


def _target_share(cfg: CfgNode, iterations: int) -> dict[str, float]:
    model, step = training_step(cfg)
    spent: list[float] = []
    make_targets = model.keypoint_head.make_targets

    def timed(*inputs: object, **named: object) -> object:
        wait_for(cfg.MODEL.DEVICE)
        start = time.perf_counter()
        targets = make_targets(*inputs, **named)
        wait_for(cfg.MODEL.DEVICE)
        spent.append(time.perf_counter() - start)
        return targets

    model.keypoint_head.make_targets = timed
    times = []
    # The first one is a warm-up.
    for _ in range(iterations + 1):
        wait_for(cfg.MODEL.DEVICE)
        start = time.perf_counter()
        step()
        wait_for(cfg.MODEL.DEVICE)
        times.append(time.perf_counter() - start)
    iteration, targets = min(times[1:]), min(spent[1:])
    return {
        "data/iteration_seconds": iteration,
        "data/target_seconds": targets,
        "data/target_percent": 100 * targets / iteration,
    }


def training_step(cfg: CfgNode) -> tuple[nn.Module, Callable[[], None]]:
    """A randomly initialised model and a function that trains it on a batch, always the same."""
    torch.manual_seed(0)
    model = build_pose_model(cfg).train()
    optimizer = PoseTrainer.build_optimizer(cfg, model)
    batch = next(iter(build_pose_train_loader(cfg)))

    def step() -> None:
        with EventStorage():
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return model, step


def _step_mib(config: str) -> float:
    """MiB at most in use while a model takes two steps (the second with the optimiser's state)."""
    register_pose_datasets()
    cfg = load_config("")
    cfg.merge_from_other_cfg(CfgNode.load_cfg(config))
    _, step = training_step(cfg)
    step()
    step()
    return peak_mib(cfg.MODEL.DEVICE)
