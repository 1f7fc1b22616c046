#!/usr/bin/env python
"""Trains the multi-task R-CNN on drawn people and fills docs/multitask_rcnn.md with its figures.

    python tools/train_rcnn.py --runs RUNS
    python tools/train_rcnn.py --runs RUNS --rows
    python tools/train_rcnn.py --runs RUNS --overfit

The first trains quick_drawn_v1.yaml, tests it on the 200 unseen images of drawn-v1, and draws what
it finds on the first of them (docs/images/rcnn_drawn_v1.png); --rows trains the refinements, each
on one short schedule (quick_drawn_v1_rows.yaml): regular, RB, RB+H, heatmap, conv, and
regular_mse (with the report's loss); --overfit learns two photographs by heart
(quick_overfit_two.yaml). Bottom-up network and keypoint pyramid of what tools/train_synthetic.py
left in RUNS/drawn-v1 are the start of the others (--weights FILE for another, '' for none). A
training that was interrupted goes on when the command is repeated. With --images or --opts all is a
try: trainings, figures and picture go to RUNS/try, no page of the docs changes.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.convert.rcnn_weights import trunk_settings, trunk_weights
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.checkpoint import read_settings, read_weights
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.showcase import write_predictions
from mpn_d2.engine.stages import FINAL, evaluate
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.files import replaced_when_done
from mpn_d2.utils.results import flat_metrics, provenance, read_results, write_results
from tools.train_synthetic import draw_data, train_run, trained_network

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "configs" / "MultitaskRCNN"
OUTPUT = REPO / "docs" / "results" / "multitask_rcnn.json"
PAGE = REPO / "docs" / "multitask_rcnn.md"
PICTURES = REPO / "docs" / "images"
COLUMNS = {"box AP": "bbox/AP", "mask AP": "segm/AP", "keypoint AP": "keypoints/AP"}
COLUMNS |= {"keypoint AP50": "keypoints/AP50", "keypoint AP75": "keypoints/AP75"}
_RB = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, True, True, True]"]
_REFINE = "MODEL.ROI_KEYPOINT_HEAD.REFINE"
# Variants by row; each differs from the first in what its name says.
ROWS = {
    "regular": [],
    "RB": _RB,
    "RB+H": [*_RB, _REFINE, "both"],
    "heatmap": [_REFINE, "heatmap"],
    "conv": [_REFINE, "conv"],
    # The report's loss, weighted so that it does not drown the others.
    "regular_mse": [
        *("MODEL.ROI_KEYPOINT_HEAD.LOSS", "mse"),
        *("MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT", "0.02"),
    ],
}
MAIN, OVERFIT = "drawn-v1", "overfit_two"


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, metavar="DIR", help="data and trainings go there")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint whose bottom-up network and pyramid are the start (default: "
        "RUNS/drawn-v1/model_final.pth); '' for none",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--rows",
        nargs="*",
        metavar="ROW",
        help=f"train the rows of the table instead: of {', '.join(ROWS)} (default: all)",
    )
    what.add_argument("--overfit", action="store_true", help="two photographs by heart instead")
    parser.add_argument(
        "--output",
        metavar="F.json",
        help=f"file of the figures (default: {OUTPUT.relative_to(REPO)})",
    )
    parser.add_argument("--images", type=int, help="of a smaller drawn training set (a try)")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs of all trainings (a try)",
    )
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    is_try = bool(args.images or args.opts)
    if args.overfit and args.weights:
        raise ValueError("--overfit starts from nothing: leave --weights out")
    root = Path(args.runs).resolve()
    runs = root / "try" if is_try else root
    output = Path(args.output or (runs / OUTPUT.name if is_try else OUTPUT))
    trainings = planned(args)
    trunk = "" if args.overfit else trained_network(args.weights, root, or_nothing=True)
    read_results(output)
    if trunk:
        read_weights(trunk)
    if args.overfit:
        register_pose_datasets()
    else:
        draw_data(
            Namespace(dataset="drawn-v1", images=args.images, layouts=None), runs / "datasets"
        )
    for name, (config, options) in trainings.items():
        folder = runs / "multitask-rcnn" / name
        options = [*options, *args.opts, "OUTPUT_DIR", str(folder)]
        if trunk:
            options = [*options, "MODEL.WEIGHTS", write_trunk(trunk, config, options, folder)]
        cfg = train_and_record(name, config, options, trunk, output)
        if name == MAIN:
            images = PICTURES if output.resolve() == OUTPUT else output.parent / "images"
            write_predictions(cfg, str(folder / FINAL), images / "rcnn_drawn_v1.png")
    found = tables(read_results(output))
    for name, table in found.items():
        print(f"\n{name}\n\n{table}")
    if not is_try and output.resolve() == OUTPUT:
        fill_tables(PAGE, found)


def planned(args: Namespace) -> dict[str, tuple[str, list[str]]]:
    """Config file and options of each training, by its name in the results.

    Raises:
        ValueError: a row that there is not.
    """
    if args.overfit:
        return {OVERFIT: (str(CONFIGS / "quick_overfit_two.yaml"), [])}
    if args.rows is None:
        return {MAIN: (str(CONFIGS / "quick_drawn_v1.yaml"), [])}
    unknown = sorted(set(args.rows) - set(ROWS))
    if unknown:
        raise ValueError(f"--rows {unknown[0]}: choose of {', '.join(ROWS)}")
    config = str(CONFIGS / "quick_drawn_v1_rows.yaml")
    return {f"rows/{row}": (config, ROWS[row]) for row in args.rows or ROWS}


def write_trunk(path: str, config: str, options: list[str], folder: Path) -> str:
    """Writes what a training begins with beside its folder; returns the file."""
    wanted = build_pose_model(load_config(config, options)).state_dict()
    content = {"model": trunk_weights(read_weights(path), wanted)}
    if settings := trunk_settings(read_settings(path)):
        content["settings"] = settings
    target = folder.parent / f"{folder.name}_trunk.pth"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_when_done(target) as partial:
        torch.save(content, partial)
    return str(target)


def train_and_record(
    name: str, config: str, options: list[str], trunk: str, output: Path
) -> CfgNode:
    """Trains, evaluates, and puts the figures into the results; those of others stay."""
    cfg, clock = train_run(config, options)
    weights = str(Path(cfg.OUTPUT_DIR) / FINAL)
    found = evaluate(cfg, weights=weights)[cfg.DATASETS.TEST[0]]
    seconds = clock.stop()
    content = read_results(output)
    group = "" if name == MAIN else f"{name}/"
    kept = {k: v for k, v in content.get("metrics", {}).items() if not in_group(k, group)}
    about = {
        **provenance(),
        "seconds": seconds,
        "seed": cfg.SEED,
        "iterations x batch": f"{cfg.SOLVER.MAX_ITER} x {cfg.SOLVER.IMS_PER_BATCH}",
        "trunk": trunk or "none: from scratch",
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_results(
        output,
        {**kept, **flat_metrics(found, group)},
        seconds=seconds,
        seed=cfg.SEED,
        runs={**content.get("runs", {}), name: about},
    )
    return cfg


def in_group(metric: str, group: str) -> bool:
    """Whether a metric belongs to a group; to the one without a name if to no other."""
    if group:
        return metric.startswith(group)
    return not metric.startswith(("rows/", f"{OVERFIT}/"))


def tables(results: dict) -> dict[str, str]:
    """Tables in Markdown, 0 to 100, of what was measured: the networks, and the rows."""
    metrics, measured = results.get("metrics", {}), results.get("runs", {})
    networks = {MAIN: "", OVERFIT: f"{OVERFIT}/"}
    rows = {f"rows/{row}": f"rows/{row}/" for row in ROWS}
    found = {}
    for table, groups in (("networks", networks), ("rows", rows)):
        lines = [
            (f"`{name.removeprefix('rows/')}`", [metrics.get(group + c) for c in COLUMNS.values()])
            for name, group in groups.items()
            if name in measured
        ]
        if lines:
            found[table] = markdown_table(["", *COLUMNS], lines)
    return found


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
