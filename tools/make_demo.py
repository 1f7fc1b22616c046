#!/usr/bin/env python
"""The main job, end to end, on the bundled photographs: train, draw, evaluate.

    python tools/make_demo.py --output output/demo

Trains every stage of a small MultiPoseNet from scratch on the seven training photographs, draws
what it finds on them and on nine photographs that it never saw, and prints the COCO tables of
both. An interrupted run goes on where it stopped; a finished one is only drawn and evaluated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.setup import start_run
from mpn_d2.engine.showcase import contact_sheet, drawn_predictions, goes_on
from mpn_d2.engine.stages import FINAL, evaluate, train
from mpn_d2.utils.results import flat_metrics, format_figure, write_results
from mpn_d2.utils.visualize import write_png

REPO = Path(__file__).resolve().parents[1]
RESULTS = "results.json"
SPLITS = {
    "fitted": ("coco_sample_train", "the {} photographs that it was fitted on (learned by heart)"),
    "unseen": ("coco_sample_val", "{} photographs that it never saw (near zero is expected)"),
}


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="folder for everything made")
    parser.add_argument(
        "--config-file", default=str(REPO / "configs" / "quick" / "demo.yaml"), metavar="FILE"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    start = time.perf_counter()
    register_pose_datasets()
    options = [*args.opts, "OUTPUT_DIR", args.output]
    cfg = load_config(args.config_file, options)
    cfg.DATASETS.TEST = ()
    cfg.freeze()
    resume = goes_on(cfg)
    start_run(cfg, Namespace(config_file="", opts=options))
    weights = os.path.join(args.output, FINAL)
    finished = resume and os.path.isfile(weights)
    if finished:
        print(f"Training in {args.output} is finished: drawing and evaluating it.")
    else:
        train(cfg, "all", options, resume=resume)
    training_seconds = round(time.perf_counter() - start, 1)
    if resume:
        # What this call trained, if anything, is not the whole; a finished run's time is kept.
        training_seconds = _measured_before(args.output) if finished else None

    draw(cfg, weights, Path(args.output))
    metrics = {}
    for split, (dataset, title) in SPLITS.items():
        count = len(load_pose_dicts([dataset], is_train=False))
        print(f"\n{'=' * 90}\n{split.upper()}: {title.format(count)}\n{'=' * 90}")
        split_cfg = cfg.clone()
        split_cfg.defrost()
        split_cfg.DATASETS.TEST = (dataset,)
        results = evaluate(split_cfg, weights=weights)[dataset]
        metrics.update(flat_metrics(results, f"{split}/"))
    path = os.path.join(args.output, RESULTS)
    write_results(
        path,
        metrics,
        seconds=time.perf_counter() - start,
        seed=cfg.SEED,
        training_seconds=training_seconds,
    )
    print(f"\n{'':8} {'keypoint AP':>12} {'box AP':>8} {'person IoU':>11}   (0 to 100)")
    for split in SPLITS:
        columns = (("keypoints/AP", 12), ("bbox/AP", 8), ("sem_seg/IoU-person", 11))
        row = [format_figure(metrics.get(f"{split}/{name}"), width) for name, width in columns]
        print(f"{split:8} {' '.join(row)}")
    print(f"\nPictures: {args.output}/fitted, {args.output}/unseen; figures: {path}")


def _measured_before(output: str) -> float | None:
    """The training time in the results file of an earlier call; None where there is none."""
    try:
        content = json.loads((Path(output) / RESULTS).read_text())
        return content.get("training_seconds")
    except (OSError, ValueError, AttributeError):
        return None


def draw(cfg: CfgNode, weights: str, output: Path) -> None:
    """Writes <split>/<image>.png for every photograph, and <split>.png with all of a split."""
    for split, (dataset, _) in SPLITS.items():
        folder = output / split
        folder.mkdir(parents=True, exist_ok=True)
        pictures = []
        for name, picture in drawn_predictions(cfg, weights, dataset):
            write_png(folder / f"{name}.png", picture)
            pictures.append(picture)
        write_png(output / f"{split}.png", contact_sheet(pictures))


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
