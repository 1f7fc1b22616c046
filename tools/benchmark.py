#!/usr/bin/env python
"""Measures speed and memory, and writes the figures to a results file.

    python tools/benchmark.py --config-file configs/MultiPoseNet/R_50.yaml --part data \
        --output docs/results/benchmark_data.json
    python tools/benchmark.py ... --output F.json DATASETS.TRAIN "('coco_sample_train',)"

Part `data`, at the settings of the keypoint stage (crops of --size, whole recipe):

- data/images_per_second: what the training loader reads on one core; the best of --passes, as other
  programs can only slow it down. data/images_per_cpu_second: the same by processor time, which they
  hardly touch;
- data/iteration_seconds, data/target_seconds, data/target_percent: a training iteration of
  --batch-size images and the part of it that building targets takes;
- peak_mib/keypoint_stage: memory of a process of its own that takes one step on --memory-batch-size
  images (GPU: what PyTorch reserved there; else all of the process).

    python tools/benchmark.py --config-file configs/MultiPoseNet/PRN_coco.yaml --part assembly \
        --output docs/results/benchmark_assembly.json

Part `assembly`, in float32, with the annotations of the assembly stage:

- assembly/people_per_second: training people that are read and rasterised on one core, by the wall
  clock; assembly/people_per_cpu_second: by processor time; the best of --passes;
- assembly/seconds/<evidence>/<people>: one image of 20 or 100 people to poses, median of --repeats.
  Boxes lie as in the fullest images, every box holds all joints. <evidence>: prn and ucr as
  published, and the config's own. Weights are random, unless they come with the package;
- assembly/seconds/prn_products/20: the two matrix products of the published PRN for 20 people by
  themselves, a measure of the machine.

    python tools/benchmark.py --config-file configs/MultiPoseNet/R_50.yaml --part inference \
        --output docs/results/benchmark_inference.json MODEL.WEIGHTS ''

Part `inference`; weights may be random:

- inference/seconds/peaks/200: 200 peaks in maps of 120 x 120 cells, one thread, median;
- inference/seconds/plain, /flip and inference/ratio/flip: an image of --photo without and with its
  mirrored view, in turns;
- peak_mib/tiling_4000x3000: memory of a process that sees a photograph of that size whole and in
  4 x 4 overlapping parts, mirrored too.

    python tools/benchmark.py --config-file configs/MultitaskRCNN/R_50_multi_RB_H.yaml \
        --part heads --output docs/results/benchmark_heads.json

Part `heads`, random weights: heads/seconds/<refinement>/20, the keypoint head of an R-CNN, from the
features of 20 boxes to poses, and heads/ratio/<refinement>/20, to the unrefined head.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.data.loader import build_pose_train_loader
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.inference_speed import measure_inference
from mpn_d2.engine.rcnn_speed import measure_heads
from mpn_d2.engine.stages import stage_config
from mpn_d2.engine.trainer import PoseTrainer
from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.structures.outputs import Candidates
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.results import write_results
from mpn_d2.utils.timing import clocked, in_fresh_process, peak_mib, seconds_of, wait_for

PHOTO = (
    Path(__file__)
    .resolve()
    .parents[1]
    .joinpath("datasets", "coco_sample", "val", "000000397133.jpg")
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--part", choices=sorted(PARTS), default="data", help="(default: data)")
    parser.add_argument("--output", required=True, metavar="F.json", help="file of the figures")
    parser.add_argument("--size", type=int, default=480, help="side of the crops (default: 480)")
    parser.add_argument("--images", type=int, default=200, help="in a pass of the loader")
    parser.add_argument("--passes", type=int, default=3, help="of the loader")
    parser.add_argument("--batch-size", type=int, default=8, help="of the timed iterations")
    parser.add_argument("--iterations", type=int, default=2, help="that are timed; the best counts")
    parser.add_argument("--memory-batch-size", type=int, default=2, help="of the measured step")
    parser.add_argument("--people", type=int, default=6400, help="that a pass rasterises")
    parser.add_argument("--repeats", type=int, default=15, help="of an assembly, of a view")
    parser.add_argument("--photo", default=str(PHOTO), help="that is looked at (a bundled one)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    for name, value in vars(args).items():
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    register_pose_datasets()
    cfg = load_config(args.config_file, args.opts)
    figures = PARTS[args.part](args, cfg)
    for name, value in figures.items():
        print(f"{name:32} {value:10.4g}")
    seconds = time.perf_counter() - start
    write_results(args.output, figures, seconds=seconds, seed=cfg.SEED, device=cfg.MODEL.DEVICE)


def measure_data(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `data`, see the head of this file."""
    options = [*args.opts, "INPUT.CROP_SIZE", str(args.size), "DATALOADER.NUM_WORKERS", "0"]
    # The recipe of the paper even where the config leaves it out.
    options += ["INPUT.AUGMENTATION", "crop", "MODEL.WEIGHTS", ""]
    stage = stage_config(cfg, "keypoint", options)
    return {
        **_loader_speed(_with_batch(stage, 1), args.images, args.passes),
        **_target_share(_with_batch(stage, args.batch_size), args.iterations),
        "peak_mib/keypoint_stage": in_fresh_process(
            _step_mib, _with_batch(stage, args.memory_batch_size).dump()
        ),
    }


def measure_assembly(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `assembly`, see the head of this file."""
    own = stage_config(cfg, "assembly", args.opts)
    loader = build_pose_train_loader(_published(own, "ucr"))
    figures = _rasterising_speed(_published(own, "ucr"), loader, args.people, args.passes)
    kinds = {"prn": _published(own, "prn"), "ucr": _published(own, "ucr")}
    kinds.setdefault(own.MODEL.ASSEMBLER.EVIDENCE, own)
    for kind, settings in kinds.items():
        torch.manual_seed(0)
        assembler = build_pose_assembler(settings).to(settings.MODEL.DEVICE).eval()
        for count in CROWDS:
            candidates, boxes = crowd(loader.order.samples, count)
            work = functools.partial(
                assembler.inference,
                [candidates.to(settings.MODEL.DEVICE)],
                [boxes.to(settings.MODEL.DEVICE)],
            )
            figures[f"assembly/seconds/{kind}/{count}"] = statistics.median(
                seconds_of(work, args.repeats, device=settings.MODEL.DEVICE)
            )
    figures[f"assembly/seconds/prn_products/{CROWDS[0]}"] = _prn_products(own, args.repeats)
    return figures


def measure_views(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `inference`, see the head of this file."""
    image = read_pose_image(args.photo, "RGB")
    photo = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return measure_inference(cfg, image=photo, repeats=args.repeats)


def measure_all(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """All parts; the config must have all stages."""
    return {
        **measure_data(args, cfg),
        **measure_assembly(args, cfg),
        **measure_views(args, cfg),
    }


def measure_keypoint_heads(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `heads`, see the head of this file."""
    return measure_heads(cfg, repeats=args.repeats)


PARTS = {
    "data": measure_data,
    "assembly": measure_assembly,
    "inference": measure_views,
    "heads": measure_keypoint_heads,
    "all": measure_all,
}
# People in the image that is assembled.
CROWDS = (20, 100)


def _published(cfg: CfgNode, evidence: str) -> CfgNode:
    """The evidence with the authors' matching and settings (design 7.5), trained on people."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ASSEMBLER.merge_from_other_cfg(
        CfgNode(
            {
                "EVIDENCE": evidence,
                "MATCHING": "reference",
                "SAMPLES": "people",
                "WEIGHTS": "",
                "POSE_SCORE": ["keypoints"],
            }
        )
    )
    cfg.MODEL.PRN.merge_from_other_cfg(
        CfgNode({"NODES": 1024, "NUM_HIDDEN": 1, "SOFTMAX": "global", "INPUT_MODE": "peaks"})
    )
    cfg.freeze()
    return cfg


@torch.no_grad()
def _prn_products(cfg: CfgNode, repeats: int) -> float:
    """Median seconds of a PRN's layers, grid to nodes to grid, for as many people as in CROWDS."""
    cells = get_skeleton(cfg.MODEL.SKELETON).num_keypoints * math.prod(cfg.MODEL.PRN.CROP)
    layers = nn.Sequential(nn.Linear(cells, 1024), nn.Linear(1024, cells)).to(cfg.MODEL.DEVICE)
    people = torch.rand(CROWDS[0], cells, device=cfg.MODEL.DEVICE)
    return statistics.median(seconds_of(lambda: layers(people), repeats, device=cfg.MODEL.DEVICE))


def _rasterising_speed(
    cfg: CfgNode, loader: Iterable[list[dict]], people: int, passes: int
) -> dict[str, float]:
    evidence = build_pose_assembler(cfg).evidence
    batches = max(people // cfg.SOLVER.IMS_PER_BATCH, 1)

    def read() -> None:
        for batch in itertools.islice(loader, batches):
            evidence.encode_samples(batch)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [clocked(read) for _ in range(passes + 1)]
    finally:
        torch.set_num_threads(threads)
    wall, processor = (min(values) for values in zip(*times[1:], strict=True))
    count = batches * cfg.SOLVER.IMS_PER_BATCH
    return {
        "assembly/people_per_second": count / wall,
        "assembly/people_per_cpu_second": count / processor,
    }


def crowd(samples: list[dict], count: int) -> tuple[Candidates, torch.Tensor]:
    """Keypoints and (count, 4) boxes of one image of so many people.

    The fullest images of the samples stand side by side, as often as it takes. Into their boxes
    come the most completely labelled people, scaled to fit.
    """
    images = [list(of_one) for _, of_one in itertools.groupby(samples, key=itemgetter("image_id"))]
    images.sort(key=len, reverse=True)
    boxes, right = [], 0.0
    for people in itertools.cycle(images):
        group = torch.stack([person["box"] for person in people])
        group[:, ::2] += right - group[:, 0].min()
        boxes.append(group)
        right = group[:, 2].max()
        if sum(map(len, boxes)) >= count:
            break
    placed = torch.cat(boxes)[:count]
    joints = torch.stack([sample["keypoints"][sample["owner"]] for sample in samples])
    fullest = (joints[..., 2] > 0).sum(dim=1).argsort(descending=True, stable=True)
    chosen = fullest[torch.arange(count) % len(fullest)]
    frames = torch.stack([samples[i]["box"] for i in chosen.tolist()])
    sides = (frames[:, 2:] - frames[:, :2]).clamp(min=1.0)[:, None]
    share = (joints[chosen][..., :2] - frames[:, None, :2]) / sides
    points = placed[:, None, :2] + share * (placed[:, 2:] - placed[:, :2])[:, None]
    row, kind = (joints[chosen][..., 2] > 0).nonzero().unbind(1)
    return Candidates(points[row, kind], kind, torch.ones(len(row))), placed


def _with_batch(cfg: CfgNode, size: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = size
    cfg.freeze()
    return cfg


def _loader_speed(cfg: CfgNode, images: int, passes: int) -> dict[str, float]:
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        times = [_read(cfg, images) for _ in range(passes + 1)]
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
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
    model, step = _training_step(cfg)
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


def _training_step(cfg: CfgNode) -> tuple[nn.Module, Callable[[], None]]:
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
    _, step = _training_step(cfg)
    step()
    step()
    return peak_mib(cfg.MODEL.DEVICE)


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
