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
import shutil
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image

from mpn_d2.config import load_config
from mpn_d2.data.datasets import load_pose_dicts, register_pose_datasets
from mpn_d2.engine.checkpoint import TAG
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.engine.setup import start_run
from mpn_d2.engine.stages import FINAL, evaluate, train
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.results import flat_metrics, format_figure, write_results
from mpn_d2.utils.visualize import draw_people, write_png

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
    resume = _goes_on(cfg)
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


def _goes_on(cfg: CfgNode) -> bool:
    """Whether OUTPUT_DIR holds a run of this very config; one of another config is removed."""
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not saved.is_file():
        return False
    if saved.read_text() == cfg.dump():
        return True
    print(f"{cfg.OUTPUT_DIR} holds a run of another config: starting anew.")
    for stage in cfg.STAGES.ORDER:
        shutil.rmtree(Path(cfg.OUTPUT_DIR) / stage, ignore_errors=True)
    for name in (FINAL, TAG, RESULTS):
        (Path(cfg.OUTPUT_DIR) / name).unlink(missing_ok=True)
    return False


def _measured_before(output: str) -> float | None:
    """The training time in the results file of an earlier call; None where there is none."""
    try:
        content = json.loads((Path(output) / RESULTS).read_text())
        return content.get("training_seconds")
    except (OSError, ValueError, AttributeError):
        return None


def draw(cfg: CfgNode, weights: str, output: Path) -> None:
    """Writes <split>/<image>.png for every photograph, and <split>.png with all of a split."""
    predictor = ImagePredictor(cfg, weights)
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    for split, (dataset, _) in SPLITS.items():
        folder = output / split
        folder.mkdir(parents=True, exist_ok=True)
        pictures = []
        for record in load_pose_dicts([dataset], is_train=False):
            image = read_image(record["file_name"], format="RGB")
            result = predictor([image])[0]
            picture = draw_people(
                image,
                result["instances"],
                skeleton,
                result["sem_seg"],
                score_threshold=cfg.MODEL.ASSEMBLER.BOX_SCORE_THRESH,
            )
            write_png(folder / f"{Path(record['file_name']).stem}.png", picture)
            pictures.append(picture)
        write_png(output / f"{split}.png", contact_sheet(pictures))


def contact_sheet(pictures: list[np.ndarray], columns: int = 4, height: int = 260) -> np.ndarray:
    """All pictures at one height, in rows on white."""
    small = [
        cv2.resize(
            p, (round(p.shape[1] * height / p.shape[0]), height), interpolation=cv2.INTER_AREA
        )
        for p in pictures
    ]
    rows = [np.concatenate(small[i : i + columns], axis=1) for i in range(0, len(small), columns)]
    width = max(row.shape[1] for row in rows)
    rows = [
        np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(rows)


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
