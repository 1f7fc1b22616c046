#!/usr/bin/env python
"""Pose regression on drawn people: what it reaches on unseen ones, and what each part adds.

    python tools/train_regression.py --runs RUNS
    python tools/train_regression.py --runs RUNS --rows

Draws drawn-v1, trains configs/PoseRegression/quick_drawn_v1.yaml from the trunk of the network that
tools/train_synthetic.py left in RUNS/drawn-v1 (--weights FILE for another, '' for none), evaluates
on the 200 test images, and writes figures (results/pose_regression.json), pictures (images/) and
the tables of pose_regression.md into --output. `--rows` trains the rows of the paper's tables
instead, each with one part more, on one short schedule (quick_drawn_v1_ablation.yaml); `--rows NAME
...` some of them. An interrupted run goes on where it stopped when the command is repeated.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpn_d2.engine.cli import run_command
from mpn_d2.engine.showcase import contact_sheet, drawn_predictions
from mpn_d2.engine.stages import FINAL, evaluate
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.results import flat_metrics, read_results, update_results
from mpn_d2.utils.visualize import write_png
from tools.train_synthetic import draw_data, schedule, train_run

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "configs" / "PoseRegression"
DATASET = "drawn-v1"
COLUMNS = {"keypoint AP": "AP", "AP50": "AP50", "AP75": "AP75", "APm": "APm", "APl": "APl"}
PICTURES = 12
KEYS = "MODEL.POSE_REGRESSION."
# Rows of the paper's tables 1 and 3: each with one part more than the one before it. The first is
# ranked by the classification times centre-ness, as all before the last.
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
    parser.add_argument(
        "--rows", nargs="*", choices=ROWS, metavar="ROW", help=f"train rows: {', '.join(ROWS)}"
    )
    parser.add_argument("--images", type=int, help="training images (default: the dataset's own)")
    parser.add_argument("--output", default=str(REPO / "docs"), help="results/, images/ in it")
    # Not the rest of the line as elsewhere: --rows would take it.
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args(arguments)
    args.dataset, args.layouts = DATASET, None
    return args


def main(args: Namespace) -> None:
    runs, output = Path(args.runs), Path(args.output)
    weights = trunk_weights(args.weights, runs)
    draw_data(args, runs / "datasets")
    page = output / "pose_regression.md"
    results = output / "results" / "pose_regression.json"
    if args.rows is None:
        options = ["OUTPUT_DIR", str(runs / "regression"), *args.opts]
        train_and_record(args, "quick_drawn_v1", "keypoints", options, weights, results)
    else:
        for row in args.rows or ROWS:
            folder = runs / "regression_rows" / row
            options = [*row_options(row), "OUTPUT_DIR", str(folder), *args.opts]
            group = f"rows/{row}/keypoints"
            train_and_record(args, "quick_drawn_v1_ablation", group, options, weights, results)
    found = tables(read_results(results))
    print("\n\n".join(found.values()))
    if page.is_file():
        fill_tables(page, found)


def trunk_weights(given: str | None, runs: Path) -> str:
    """The checkpoint whose trunk trainings start from.

    Raises:
        FileNotFoundError: it is not there; says how to get it.
    """
    weights = str(runs / DATASET / FINAL) if given is None else given
    if weights and not Path(weights).is_file():
        raise FileNotFoundError(
            f"{weights} not found, whose trunk is the start: train it (python "
            f"tools/train_synthetic.py --dataset {DATASET} --runs {runs}), name another with "
            "--weights, or start from nothing with --weights ''"
        )
    return weights


def row_options(row: str) -> list[str]:
    """KEY VALUE pairs of a row and of all that it builds upon."""
    names = list(ROWS)
    pairs: dict[str, str] = {}
    for name in names[: names.index(row) + 1]:
        pairs.update(ROWS[name])
    return [text for key, value in pairs.items() for text in (KEYS + key, value)]


def train_and_record(
    args: Namespace, config: str, group: str, options: list[str], weights: str, results: Path
) -> None:
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
    if args.rows is None:
        pictures = drawn_predictions(cfg, trained, cfg.DATASETS.TEST[0], first=PICTURES)
        folder = Path(args.output) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / "regression_drawn_v1.png", contact_sheet([p for _, p in pictures]))


def tables(content: dict) -> dict[str, str]:
    """The tables of docs/pose_regression.md by their markers; '-' where nothing was run."""
    metrics = content.get("metrics", {})

    def figures(group: str) -> list[float | None]:
        return [metrics.get(f"{group}/{name}") for name in COLUMNS.values()]

    rows = [(row if i == 0 else f"+ {row}", f"rows/{row}/keypoints") for i, row in enumerate(ROWS)]
    return {
        "drawn": markdown_table(["", *COLUMNS], [(f"`{DATASET}`", figures("keypoints"))]),
        "rows": markdown_table(["", *COLUMNS], [(f"`{n}`", figures(g)) for n, g in rows]),
    }


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
