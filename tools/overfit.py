#!/usr/bin/env python
"""Does every stage learn? Overfits two photographs and measures each stage by its own figure.

    python tools/overfit.py --output output/overfit_two --results docs/results/overfit_two.json

- keypoint stage: keypoint AP of the predicted keypoints in the annotated boxes;
- person stage: box AP of the predicted boxes;
- assembly stage: keypoint AP of the annotated keypoints in the annotated boxes (assignment only);
- all of them together: keypoint AP of predicted keypoints in predicted boxes, person mask IoU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.setup import start_run
from mpn_d2.engine.stages import FINAL, evaluate, train
from mpn_d2.utils.results import format_figure, write_results

REPO = Path(__file__).resolve().parents[1]
# Figure -> sources of keypoints and boxes, task, metric.
FIGURES = {
    "keypoint_stage/keypoints/AP": ("pred", "gt", "keypoints", "AP"),
    "person_stage/bbox/AP": ("gt", "pred", "bbox", "AP"),
    "assembly_stage/keypoints/AP": ("gt", "gt", "keypoints", "AP"),
    "all_stages/keypoints/AP": ("pred", "pred", "keypoints", "AP"),
    "all_stages/sem_seg/IoU-person": ("pred", "pred", "sem_seg", "IoU-person"),
}


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/overfit_two", help="folder of the training")
    parser.add_argument("--results", metavar="F.json", help="also write the figures there")
    parser.add_argument(
        "--config-file", default=str(REPO / "configs/quick/overfit_two.yaml"), metavar="FILE"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    start = time.perf_counter()
    register_pose_datasets()
    options = [*args.opts, "OUTPUT_DIR", args.output]
    cfg = load_config(args.config_file, options)
    cfg.freeze()
    start_run(cfg, Namespace(config_file="", opts=options))
    figures = train_and_measure(cfg, options)
    for name, value in figures.items():
        print(f"{name:32} {format_figure(value)}")
    if args.results:
        seconds = time.perf_counter() - start
        write_results(args.results, figures, seconds=seconds, seed=cfg.SEED)


def train_and_measure(cfg: CfgNode, options: list[str]) -> dict[str, float | None]:
    """Trains all stages, without evaluation, and returns the FIGURES, 0 to 100 or None."""
    base = cfg.clone()
    base.defrost()
    base.DATASETS.TEST = ()
    base.freeze()
    train(base, "all", options, resume=False)
    figures = {}
    for name, (keypoints, boxes, task, metric) in FIGURES.items():
        measured = cfg.clone()
        measured.defrost()
        measured.EVAL.KEYPOINT_SOURCE = keypoints
        measured.EVAL.BOX_SOURCE = boxes
        measured.EVAL.TASKS = [task]
        measured.freeze()
        results = evaluate(measured, weights=os.path.join(cfg.OUTPUT_DIR, FINAL))
        figures[name] = results[cfg.DATASETS.TEST[0]][task][metric]
    return figures


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
