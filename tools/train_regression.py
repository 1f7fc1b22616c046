#!/usr/bin/env python
"""Pose regression on drawn people: what it reaches on unseen ones, and what each part adds.

    python tools/train_regression.py --runs RUNS
    python tools/train_regression.py --runs RUNS --rows
    python tools/train_regression.py --runs RUNS --overfit

Draws drawn-v1, trains configs/PoseRegression/quick_drawn_v1.yaml from the trunk of the network that
tools/train_synthetic.py left in RUNS/drawn-v1 (--weights FILE for another, '' for none), evaluates
on the 200 test images (once more with poses ranked without their PSM scores), and writes figures
(results/pose_regression.json), pictures (images/) and the tables of pose_regression.md into
--output. `--rows` trains the rows of the paper's tables instead, each with one part more, on one
short schedule (quick_drawn_v1_ablation.yaml); `--rows NAME ...` some of them. `--overfit` learns
two photographs by heart (quick_overfit_two.yaml), from nothing and without drawn data. An
interrupted run goes on where it stopped when the command is repeated. With --images or --opts all
is a try: trainings and, unless --output names another folder, figures go to RUNS/try, and the docs
stay as they are.
"""

from __future__ import annotations

import argparse
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode

from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.showcase import write_predictions
from mpn_d2.engine.stages import FINAL, evaluate
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.results import flat_metrics, read_results, update_results
from tools.train_synthetic import draw_data, schedule, train_run, trained_network

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "configs" / "PoseRegression"
DATASET = "drawn-v1"
COLUMNS = {"keypoint AP": "AP", "AP50": "AP50", "AP75": "AP75", "APm": "APm", "APl": "APl"}
KEYS = "MODEL.POSE_REGRESSION."
# Groups of the figures: the network itself, two photographs by heart.
MAIN, OVERFIT = "keypoints", "overfit_two/keypoints"
# The same trained network, ranked by TEST_SCORE cls.
BY_CLASS = "by_classification/keypoints"
# Rows of the paper's tables 1 and 3: each with one part more than the one before it. The first is
# ranked by the classification times centre-ness, as all before psm. The last is ours: second poses
# read their features at the joints (R_50_keypoint_align.yaml), as in quick_drawn_v1.yaml.
ROWS = {
    "baseline": {
        **{"NUM_STAGES": "1", "ALIGN.MODE": "none", "SAMPLING.MODE": "bbox"},
        **{"HEATMAP.ENABLED": "False", "FILTER.ENABLED": "False", "TRAIN_PSM": "False"},
        **{"TRAIN_CENTERNESS": "True", "TEST_SCORE": "centerness"},
        **{"PSM.WEIGHT_REGRESSION": "False"},
    },
    "align": {"NUM_STAGES": "2", "ALIGN.MODE": "map"},
    "sampling": {"SAMPLING.MODE": "center"},
    "heatmap": {"HEATMAP.ENABLED": "True"},
    "filter": {"FILTER.ENABLED": "True"},
    "psm": {
        **{"TRAIN_PSM": "True", "TRAIN_CENTERNESS": "False", "TEST_SCORE": "psm"},
        **{"PSM.WEIGHT_REGRESSION": "True"},
    },
    "joints": {"ALIGN.MODE": "keypoint"},
}


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, metavar="DIR", help="data and trainings go there")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint whose trunk is the start (default: RUNS/drawn-v1/model_final.pth); '' for "
        "none",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--rows", nargs="*", choices=ROWS, metavar="ROW", help=f"train rows: {', '.join(ROWS)}"
    )
    what.add_argument("--overfit", action="store_true", help="two photographs by heart instead")
    parser.add_argument("--images", type=int, help="training images (default: the dataset's own)")
    parser.add_argument("--output", help="results/, images/ in it (default: docs)")
    # Not the rest of the line as elsewhere: --rows would take it.
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args(arguments)
    args.dataset, args.layouts = DATASET, None
    return args


def main(args: Namespace) -> None:
    runs = Path(args.runs)
    if args.overfit and args.weights:
        raise ValueError("--overfit starts from nothing: leave --weights out")
    weights = "" if args.overfit else trained_network(args.weights, runs, or_nothing=True)
    is_try = bool(args.images or args.opts)
    runs = runs / "try" if is_try else runs
    output = Path(args.output or (runs if is_try else REPO / "docs"))
    page = output / "pose_regression.md"
    results = output / "results" / "pose_regression.json"
    read_results(results)
    if args.overfit:
        register_pose_datasets()
    else:
        draw_data(args, runs / "datasets")
    for group, (config, folder, options) in planned(args).items():
        options = [*options, "OUTPUT_DIR", str(runs / folder), *args.opts]
        cfg = train_and_record(config, group, options, weights, results)
        if group == MAIN:
            trained = str(Path(cfg.OUTPUT_DIR) / FINAL)
            write_predictions(cfg, trained, output / "images" / "regression_drawn_v1.png")
            record_without_scores(cfg, results)
    found = tables(read_results(results))
    print("\n\n".join(found.values()))
    if page.is_file():
        fill_tables(page, found)


def row_options(row: str) -> list[str]:
    """KEY VALUE pairs of a row and of all that it builds upon."""
    names = list(ROWS)
    pairs: dict[str, str] = {}
    for name in names[: names.index(row) + 1]:
        pairs.update(ROWS[name])
    return [text for key, value in pairs.items() for text in (KEYS + key, value)]


def planned(args: Namespace) -> dict[str, tuple[str, str, list[str]]]:
    """Config, folder in RUNS and options of each training, by the group of its figures."""
    if args.overfit:
        return {OVERFIT: ("quick_overfit_two", "regression_overfit_two", [])}
    if args.rows is None:
        return {MAIN: ("quick_drawn_v1", "regression", [])}
    return {
        f"rows/{row}/keypoints": (
            "quick_drawn_v1_ablation",
            f"regression_rows/{row}",
            row_options(row),
        )
        for row in args.rows or ROWS
    }


def train_and_record(
    config: str, group: str, options: list[str], weights: str, results: Path
) -> CfgNode:
    """Trains a config, tests it, puts its figures into the results file under a group."""
    options = [*options, "MODEL.WEIGHTS", weights]
    cfg, clock = train_run(str(CONFIGS / f"{config}.yaml"), options)
    trained = str(Path(cfg.OUTPUT_DIR) / FINAL)
    metrics = evaluate(cfg, weights=trained)[cfg.DATASETS.TEST[0]]["keypoints"]
    update_results(
        results,
        group,
        flat_metrics(metrics),
        seconds=clock.stop(),
        seed=cfg.SEED,
        **{"iterations x batch": schedule(cfg, options), "trunk": weights or "none"},
    )
    return cfg


def record_without_scores(cfg: CfgNode, results: Path) -> None:
    """Tests the trained network once more, its poses ranked by the classification alone."""
    start = time.perf_counter()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.POSE_REGRESSION.TEST_SCORE = "cls"
    cfg.freeze()
    trained = str(Path(cfg.OUTPUT_DIR) / FINAL)
    metrics = evaluate(cfg, weights=trained)[cfg.DATASETS.TEST[0]]["keypoints"]
    seconds = time.perf_counter() - start
    update_results(results, BY_CLASS, flat_metrics(metrics), seconds=seconds, seed=cfg.SEED)


def tables(content: dict) -> dict[str, str]:
    """The tables of docs/pose_regression.md by their markers; '-' where nothing was run."""
    metrics = content.get("metrics", {})

    def figures(group: str) -> list[float | None]:
        return [metrics.get(f"{group}/{name}") for name in COLUMNS.values()]

    rows = [(row if i == 0 else f"+ {row}", f"rows/{row}/keypoints") for i, row in enumerate(ROWS)]
    return {
        "drawn": markdown_table(
            ["", *COLUMNS],
            [
                (f"`{DATASET}`", figures(MAIN)),
                ("the same network, `TEST_SCORE cls`", figures(BY_CLASS)),
            ],
        ),
        "overfit": markdown_table(
            ["", *COLUMNS], [("two photographs, the same ones", figures(OVERFIT))]
        ),
        "rows": markdown_table(["", *COLUMNS], [(f"`{n}`", figures(g)) for n, g in rows]),
    }


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
