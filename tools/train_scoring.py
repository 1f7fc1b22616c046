#!/usr/bin/env python
"""Does the pose score (PSM) help MultiPoseNet? Trains it on drawn people, tests with and without.

    python tools/train_scoring.py --runs RUNS

Takes the network that tools/train_synthetic.py left in RUNS/drawn-v1 (--weights FILE for another),
trains what ranks its poses on the poses that it assembles of training images (configs/quick/
drawn_v1_scored.yaml), evaluates both on the 200 test images, and writes figures
(results/pose_scoring.json) and the table of pose_regression.md into --output. An interrupted run
goes on where it stopped when the command is repeated. With --images or --opts all is a try: the
training and, unless --output names another folder, figures go to RUNS/try; the docs stay as they
are.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpn_d2.config import load_config
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.showcase import RunClock
from mpn_d2.engine.stages import FINAL, evaluate
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.results import flat_metrics, read_results, update_results
from tools.train_synthetic import draw_data, schedule, train_run, trained_network

REPO = Path(__file__).resolve().parents[1]
DATASET = "drawn-v1"
# Row -> config below configs/quick; the weights of the second come from the first.
ROWS = {"without": "drawn_v1.yaml", "with": "drawn_v1_scored.yaml"}
COLUMNS = {"keypoint AP": "AP", "AP50": "AP50", "AP75": "AP75", "APm": "APm", "APl": "APl"}


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, metavar="DIR", help="data and training go there")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="trained network (default: RUNS/drawn-v1/model_final.pth)",
    )
    parser.add_argument("--images", type=int, help="of a smaller drawn training set (a try)")
    parser.add_argument("--output", help="results/ in it (default: docs)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs of both (a try)"
    )
    args = parser.parse_args(arguments)
    args.dataset, args.layouts = DATASET, None
    return args


def main(args: Namespace) -> None:
    runs = Path(args.runs)
    network = trained_network(args.weights, runs)
    is_try = bool(args.images or args.opts)
    runs = runs / "try" if is_try else runs
    output = Path(args.output or (runs if is_try else REPO / "docs"))
    results = output / "results" / "pose_scoring.json"
    read_results(results)
    draw_data(args, runs / "datasets")
    for row in ROWS:
        measure(row, network, runs, args.opts, results)
    found = tables(read_results(results))
    print(found["scoring"])
    if (output / "pose_regression.md").is_file():
        fill_tables(output / "pose_regression.md", found)


def measure(row: str, network: str, runs: Path, opts: list[str], results: Path) -> None:
    """Evaluates a row, after its training if it has one, and keeps its figures."""
    config = str(REPO / "configs" / "quick" / ROWS[row])
    folder = runs / "scoring" / row
    options = ["OUTPUT_DIR", str(folder), *opts, "MODEL.WEIGHTS", network]
    about: dict[str, object] = {"network": network}
    if row == "with":
        cfg, clock = train_run(config, options)
        weights = str(folder / FINAL)
        about["iterations x batch"] = schedule(cfg, options)
    else:
        cfg = load_config(config, options)
        folder.mkdir(parents=True, exist_ok=True)
        clock = RunClock(folder / "seconds.json", resume=False)
        weights = network
    metrics = evaluate(cfg, weights=weights)[cfg.DATASETS.TEST[0]]["keypoints"]
    update_results(
        results, row, flat_metrics(metrics), seconds=clock.stop(), seed=cfg.SEED, **about
    )


def tables(content: dict) -> dict[str, str]:
    """The table of docs/pose_regression.md by its marker; '-' where nothing was run."""
    metrics = content.get("metrics", {})
    rows = [(f"{row} PSM", [metrics.get(f"{row}/{x}") for x in COLUMNS.values()]) for row in ROWS]
    return {"scoring": markdown_table(["", *COLUMNS], rows)}


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
