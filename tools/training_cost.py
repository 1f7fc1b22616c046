#!/usr/bin/env python
"""Counts what the trainings of the paper's configs take on COCO; fills docs/coco.md.

    python tools/training_cost.py
    python tools/training_cost.py --configs MultiPoseNet/R_50.yaml --output results.json

Of every stage one training step on a bundled photograph, cut or resized as the stage does it, is
run on the CPU and its operations are counted (forward and backward; a multiplication and an
addition are two; convolutions and matrix products alone), times images and iterations. Nothing is
timed: hours are operations divided by a rate that you choose.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.data_speed import training_step, with_batch
from mpn_d2.engine.part_speed import total_gflops
from mpn_d2.engine.stages import stage_config
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.results import read_results, write_results

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "docs" / "results" / "training_cost.json"
CONFIGS = (
    "MultiPoseNet/R_50.yaml",
    "MultiPoseNet/R_101.yaml",
    "PoseRegression/R_50.yaml",
    "MultitaskRCNN/R_50_multi_RB_H.yaml",
)
SAMPLES = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", "0",
           "DATASETS.TRAIN", "('coco_sample_train',)"]  # fmt: skip
# Operations a second that the table divides by: a round figure of the order that a data-centre GPU
# keeps up in half precision; no measurement.
TERAFLOPS = 40.0
HEAD = ["", "samples a step", "steps", "GFLOP a sample", "10^18 FLOP", "GPU hours"]


def stage_cost(cfg: CfgNode) -> dict[str, float]:
    """Operations of a training as one stage's config names it.

    Returns:
        samples a step, steps, gflops of a sample's step.
    """
    _, step = training_step(with_batch(cfg, 1))
    return {
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "steps": cfg.SOLVER.MAX_ITER,
        "gflops": total_gflops(step),
    }


def stages_of(name: str) -> dict[str, CfgNode]:
    """Stage names of a config below configs/ to their configs, on bundled photographs."""
    file = REPO / "configs" / name
    if not file.is_file():
        raise FileNotFoundError(f"--configs {name}: {file} is missing")
    cfg = load_config(str(file), SAMPLES)
    return {stage: stage_config(cfg, stage, SAMPLES) for stage in cfg.STAGES.ORDER}


def tables(results: dict) -> dict[str, str]:
    """Tables of docs/coco.md from the figures."""
    metrics = results["metrics"]
    rate = 1e12 * results["assumed_teraflops"]
    names = [key.removesuffix("/gflops") for key in metrics if key.endswith("/gflops")]
    rows = []
    for name in names:
        batch, steps, gflops = (metrics[f"{name}/{key}"] for key in ("batch", "steps", "gflops"))
        total = batch * steps * gflops * 1e9
        *config, stage = name.split("/")
        label = f"`{'/'.join(config)}`, {stage}"
        cells = [f"{batch:,}", f"{steps:,}", f"{gflops:,.1f}", f"{total / 1e18:,.2f}"]
        rows.append([label, *cells, f"{total / rate / 3600:,.1f}"])
    lines = markdown_table(HEAD, []).splitlines()
    return {"cost": "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])}


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    register_pose_datasets()
    metrics: dict[str, float] = {}
    for name in args.configs:
        for stage, cfg in stages_of(name).items():
            label = f"{name.removesuffix('.yaml')}/{stage}"
            for key, value in stage_cost(cfg).items():
                metrics[f"{label}/{key}"] = value
            print(f"{label}: {metrics[f'{label}/gflops']:.1f} GFLOP a sample", flush=True)
    seconds = time.perf_counter() - start
    write_results(args.output, metrics, seconds=seconds, seed=0, assumed_teraflops=args.teraflops)
    print(f"{args.output}: written")
    if Path(args.output).resolve() == RESULTS:
        fill_tables(REPO / "docs" / "coco.md", tables(read_results(args.output)))


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), metavar="NAME")
    parser.add_argument("--output", default=str(RESULTS), metavar="F")
    parser.add_argument(
        "--teraflops", type=float, default=TERAFLOPS, metavar="T",
        help=f"10^12 operations a second of the hours in the table (default: {TERAFLOPS:g})",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if args.teraflops <= 0:
        parser.error("--teraflops must be positive")
    return args


if __name__ == "__main__":
    run_command(lambda: main(parse_args()))
