#!/usr/bin/env python
"""Shows that every part learns: trains on drawn people from scratch, tests on unseen ones.

    python tools/train_synthetic.py --dataset drawn-v1 --runs RUNS
    python tools/train_synthetic.py --dataset drawn-coco-v1 --runs RUNS --layouts DIR
    python tools/train_synthetic.py --ablation --runs RUNS

Draws the dataset, trains all stages, evaluates on the test images, and writes figures
(results/synthetic.json), learning curves and pictures of predictions (images/) into --output.
`--ablation` trains variants of the network on one short schedule instead and prints their table.
An interrupted run goes on where it stopped when the command is repeated; its seconds are those of
all calls, iterations that were trained again included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.synthetic import write_dataset
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.setup import start_run
from mpn_d2.engine.showcase import RunClock, goes_on, write_predictions
from mpn_d2.engine.stages import FINAL, evaluate, stage_config, train
from mpn_d2.utils.results import flat_metrics, format_figure, provenance, write_results
from tools import plot_metrics

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "configs" / "quick"
COLUMNS = {"keypoint AP": "keypoints/AP", "box AP": "bbox/AP", "person IoU": "sem_seg/IoU-person"}
# Variants by row; each differs from the first in one thing.
ABLATION = {
    "staged": [],
    "no_intermediate_supervision": ["MODEL.KP_SUBNET.INTERMEDIATE_WEIGHT", "0.0"],
    "k2_alone": ["MODEL.KP_SUBNET.NAME", "SingleLevelSubnet"],
    "shared_pyramid": ["MODEL.POSE_FPN.SHARED", "True"],
    "joint": ["STAGES.ORDER", "['joint', 'assembly']"],
}


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=("drawn-v1", "drawn-coco-v1"), default="drawn-v1")
    parser.add_argument("--ablation", action="store_true", help="the table of variants instead")
    parser.add_argument("--images", type=int, help="training images (default: the dataset's own)")
    parser.add_argument("--runs", required=True, metavar="DIR", help="data and trainings go there")
    parser.add_argument("--layouts", metavar="DIR", help="COCO annotations for drawn-coco-v1")
    parser.add_argument("--output", default=str(REPO / "docs"), help="results/, images/ in it")
    parser.add_argument("--config-file", metavar="FILE", help="default: quick/<dataset>.yaml")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    runs, name = Path(args.runs), args.dataset.replace("-", "_")
    draw_data(args, runs / "datasets")
    config = args.config_file or str(CONFIGS / f"{name}{'_ablation' if args.ablation else ''}.yaml")
    if args.ablation:
        groups = {f"ablation/{row}/": options for row, options in ABLATION.items()}
    else:
        groups = {"" if args.dataset == "drawn-v1" else f"{args.dataset}/": []}
    for group, options in groups.items():
        folder = runs / (group.rstrip("/") or args.dataset)
        options = [*args.opts, *options, "OUTPUT_DIR", str(folder)]
        weights = str(folder / FINAL)
        cfg, clock = train_run(config, options)
        results = evaluate(cfg, weights=weights)[cfg.DATASETS.TEST[0]]
        metrics = flat_metrics(results, group)
        record(Path(args.output), group, metrics, cfg, schedule(cfg, options), clock.stop())
        if not args.ablation:
            show(cfg, weights, Path(args.output) / "images", name)
    print_table(Path(args.output), list(groups))


def trained_network(given: str | None, runs: Path, *, or_nothing: bool = False) -> str:
    """The checkpoint that trainings of the other systems start from.

    Args:
        given: their --weights: a file; None for what this tool left in RUNS/drawn-v1.
        runs: RUNS.
        or_nothing: they can do without: '' stays ''.

    Raises:
        FileNotFoundError: it is not there; says how to get it.
    """
    weights = str(runs / "drawn-v1" / FINAL) if given is None else given
    if (or_nothing and not weights) or Path(weights).is_file():
        return weights
    remedy = ", or start from nothing with --weights ''" if or_nothing else ""
    raise FileNotFoundError(
        f"{weights!r} not found, the network of drawn people that is the start: train it (python "
        f"tools/train_synthetic.py --dataset drawn-v1 --runs {runs}), name another with --weights"
        + remedy
    )


def draw_data(args: Namespace, root: Path) -> None:
    """Draws both splits, unless they are there, and makes the package look for them."""
    for split, count in (("train", args.images), ("test", None)):
        layouts = {"layouts": args.layouts} if args.layouts else {}
        _, drawn = write_dataset(
            args.dataset, split, root, count=count, workers=os.cpu_count() or 1, **layouts
        )
        print(f"{args.dataset} {split}: {'drawn' if drawn else 'complete'} in {root}")
    os.environ["DETECTRON2_DATASETS"] = str(root)
    register_pose_datasets()


def train_run(config: str, options: list[str]) -> tuple[CfgNode, RunClock]:
    """Trains the chain of a config; returns it, and the clock of all that was spent on it."""
    cfg = load_config(config, options)
    cfg.freeze()
    resume = goes_on(cfg)
    clock = RunClock(Path(cfg.OUTPUT_DIR) / "seconds.json", resume=resume)
    start_run(cfg, Namespace(config_file="", opts=options))
    untested = cfg.clone()
    untested.defrost()
    untested.DATASETS.TEST = ()
    untested.freeze()
    train(untested, "all", options, resume=resume)
    return cfg, clock


def schedule(cfg: CfgNode, options: list[str]) -> dict[str, str]:
    """Iterations x batch by stage."""
    solvers = {name: stage_config(cfg, name, options).SOLVER for name in cfg.STAGES.ORDER}
    return {name: f"{s.MAX_ITER} x {s.IMS_PER_BATCH}" for name, s in solvers.items()}


def record(
    output: Path,
    group: str,
    metrics: dict[str, float | None],
    cfg: CfgNode,
    iterations: dict[str, str],
    seconds: float,
) -> None:
    """Puts the figures of a group into results/synthetic.json; those of the others stay."""
    path = output / "results" / "synthetic.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    kept = {k: v for k, v in content.get("metrics", {}).items() if not in_group(k, group)}
    about = {
        **provenance(),
        "seconds": seconds,
        "seed": cfg.SEED,
        "iterations x batch": iterations,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_results(
        path,
        {**kept, **metrics},
        seconds=seconds,
        seed=cfg.SEED,
        runs={**content.get("runs", {}), group.rstrip("/") or "drawn-v1": about},
    )


def in_group(name: str, group: str) -> bool:
    """Whether a metric belongs to a group; to the one without a name if to no other."""
    if group:
        return name.startswith(group)
    return not name.startswith(("drawn-", "ablation/"))


def show(cfg: CfgNode, weights: str, images: Path, name: str) -> None:
    """Writes <name>.png, predictions on the first test images, and <name>_curves.png."""
    write_predictions(cfg, weights, images / f"{name}.png")
    curves = str(images / f"{name}_curves.png")
    arguments = [cfg.OUTPUT_DIR, "--output", curves, "--smooth", "10"]
    plot_metrics.main(plot_metrics.parse_args(arguments))


def print_table(output: Path, groups: list[str]) -> None:
    """The figures of the groups, 0 to 100, as a table in Markdown."""
    metrics = json.loads((output / "results" / "synthetic.json").read_text())["metrics"]
    print(f"\n| | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for group in groups:
        row = [format_figure(metrics.get(group + name)) for name in COLUMNS.values()]
        print(f"| {group.rstrip('/') or 'drawn-v1'} | {' | '.join(row)} |")


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
