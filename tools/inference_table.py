#!/usr/bin/env python
"""What each step of inference is worth: flip, scales, crops, ensemble, refinement, OKS-NMS.

    python tools/inference_table.py --images drawn --runs RUNS
    python tools/inference_table.py --images drawn --runs RUNS --rows single flip +scales
    python tools/inference_table.py --images sample --runs RUNS

Trains the quick models that are not there yet (drawn: the network of tools/train_synthetic.py, a
second backbone and a single-person network, hours on 2 cores; sample: two networks fitted to the
bundled training photographs, minutes), prints the train_net.py command that gives each row,
evaluates all rows in one pass over the images (a view that several rows need is looked at once; the
figures are those of the commands), and keeps them in --output. A row is one step by itself, or with
a plus that step on top of all before it; beside them soft_nms (of boxes), and poses and poses_soft,
what flip and scales give where the people of all views are pooled and OKS-NMS, hard or soft, takes
out repeats.
Training goes on where it stopped when the command is repeated. With --data-images or --opts all is
a try: trainings, data and figures go to RUNS/try, no page of the docs changes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.utils.logger import setup_logger

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.synthetic import write_dataset
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.row_evaluation import evaluate_rows
from mpn_d2.engine.setup import start_run
from mpn_d2.engine.showcase import goes_on
from mpn_d2.engine.stages import FINAL, train
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.files import check_file
from mpn_d2.utils.results import flat_metrics, read_results, update_results

REPO = Path(__file__).resolve().parents[1]
QUICK = REPO / "configs" / "quick"
TTA = ["TTA.ENABLED", "True"]
STEPS = ("flip", "scales", "crops", "ensemble", "refinement", "oks_nms")
# Other ways than those steps.
BESIDE = ("soft_nms", "poses", "poses_soft")
OUTPUT = REPO / "docs" / "results" / "inference.json"
COLUMNS = {"keypoint AP": "keypoints/AP", "AP50": "keypoints/AP50", "AP75": "keypoints/AP75"}
COLUMNS |= {"box AP": "bbox/AP", "person IoU": "sem_seg/IoU-person"}


@dataclass(frozen=True)
class Images:
    """What the rows are measured with: configs below configs/quick, and folders of their trainings.

    Attributes:
        model: config and folder of the network.
        member: of the second backbone.
        refiner: of the single-person network; None where there is none.
        datasets: that are evaluated, by their name in the figures.
        scales: TTA.SCALES of the row.
    """

    model: tuple[str, str]
    member: tuple[str, str]
    refiner: tuple[str, str] | None
    datasets: dict[str, str] = field(default_factory=dict)
    scales: str = "[1.0, 0.75, 1.25]"


IMAGES = {
    # Scales: chosen on 120 further images of seed 777.
    "drawn": Images(
        ("drawn_v1.yaml", "drawn-v1"),
        ("drawn_v1_r34.yaml", "drawn-v1-r34"),
        ("single_person_drawn.yaml", "single-person-drawn-v1"),
        {"drawn-v1": "drawn-v1-test"},
    ),
    "sample": Images(
        ("demo.yaml", "demo"),
        ("demo_r34.yaml", "demo-r34"),
        None,
        {"sample/unseen": "coco_sample_val", "sample/fitted": "coco_sample_train"},
    ),
}


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", choices=sorted(IMAGES), default="drawn")
    parser.add_argument("--runs", required=True, metavar="DIR", help="data and trainings go there")
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="ROW",
        help=f"of single, {', '.join(STEPS)}, each with a plus for all steps up to it, "
        f"{', '.join(BESIDE)} (default: all)",
    )
    parser.add_argument(
        "--output",
        metavar="F.json",
        help=f"file of the figures (default: {OUTPUT.relative_to(REPO)})",
    )
    parser.add_argument("--data-images", type=int, help="of a smaller drawn training set (a try)")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs of all trainings and rows (a try)",
    )
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    images, runs = IMAGES[args.images], Path(args.runs).resolve()
    is_try = bool(args.data_images or args.opts)
    runs = runs / "try" if is_try else runs
    args.output = args.output or str(runs / "inference.json" if is_try else OUTPUT)
    rows = row_options(images, runs)
    unknown = sorted(set(args.rows or ()) - set(rows))
    if unknown:
        raise ValueError(f"--rows {unknown[0]}: choose of {', '.join(rows)}")
    # Not after hours of training.
    check_file("--output", args.output)
    read_results(args.output)
    chosen = args.rows or list(rows)
    prepare_data(args.images, runs, args.data_images)
    train_missing(images.model[0], runs / images.model[1], args.opts)
    text = " ".join(word for row in chosen for word in rows[row])
    if images.member[0] in text:
        name, folder = images.member
        train_missing(name, runs / folder, args.opts)
    if images.refiner is not None and images.refiner[0] in text:
        # Its trunk and pyramid are the network's to begin with.
        begin = ["MODEL.WEIGHTS", str(runs / images.model[1] / FINAL)]
        name, folder = images.refiner
        train_missing(name, runs / folder, [*args.opts, *begin])
    measure(args, images, runs, {row: rows[row] for row in chosen})
    show_tables(args.output, fill=not is_try)


def row_options(images: Images, runs: Path) -> dict[str, list[str]]:
    """KEY VALUE pairs of every row, in order."""
    member, folder = images.member
    steps = {
        "flip": [*TTA, "TTA.FLIP", "True"],
        "scales": [*TTA, "TTA.SCALES", images.scales],
        "crops": [*TTA, "TTA.CROPS", "2"],
        "ensemble": [
            *("ENSEMBLE.CONFIGS", f"['{QUICK / member}']"),
            *("ENSEMBLE.WEIGHTS", f"['{runs / folder / FINAL}']"),
        ],
        "oks_nms": ["OKS_NMS.MODE", "hard"],
    }
    if images.refiner is not None:
        config, folder = images.refiner
        weights = str(runs / folder / FINAL)
        steps["refinement"] = ["REFINE.CONFIG", str(QUICK / config), "REFINE.WEIGHTS", weights]
    rows: dict[str, list[str]] = {"single": []}
    ordered = [step for step in STEPS if step in steps]
    rows |= {step: steps[step] for step in ordered}
    total: list[str] = []
    for step in ordered:
        total = [*total, *steps[step]]
        # On top of nothing it is the step by itself.
        if step != ordered[0]:
            rows[f"+{step}"] = total
    rows["soft_nms"] = ["MODEL.RETINANET.NMS", "soft_gaussian"]
    pooled = [*steps["flip"], *steps["scales"], "TTA.FUSION", "poses"]
    # Chosen on the images of seed 777: at the default of 0.9 many people stay twice.
    pooled += ["OKS_NMS.THRESH", "0.7", "OKS_NMS.MODE"]
    rows["poses"], rows["poses_soft"] = [*pooled, "hard"], [*pooled, "soft"]
    return rows


def prepare_data(name: str, runs: Path, count: int | None) -> None:
    """Draws what is to be drawn, and makes the package look for it."""
    if name == "drawn":
        root = runs / "datasets"
        for split, number in (("train", count), ("test", None)):
            workers = os.cpu_count() or 1
            write_dataset("drawn-v1", split, root, count=number, workers=workers)
        os.environ["DETECTRON2_DATASETS"] = str(root)
    register_pose_datasets()


def train_missing(config: str, folder: Path, options: list[str]) -> None:
    """Trains the chain of a quick config in `folder`, or goes on with it; nothing if finished."""
    options = [*options, "OUTPUT_DIR", str(folder)]
    cfg = load_config(str(QUICK / config), options)
    cfg.DATASETS.TEST = ()
    cfg.freeze()
    resume = goes_on(cfg)
    if resume and (folder / FINAL).is_file():
        return
    start_run(cfg, Namespace(config_file="", opts=options))
    train(cfg, "all", options, resume=resume)


def measure(args: Namespace, images: Images, runs: Path, rows: dict[str, list[str]]) -> None:
    """Evaluates rows on their datasets, all in one pass over the images, and keeps the figures."""
    config, folder = images.model
    cfgs, commands = {}, {}
    for row, options in rows.items():
        options = [
            *("MODEL.WEIGHTS", str(runs / folder / FINAL)),
            *("OUTPUT_DIR", str(runs / "inference" / args.images / row)),
            *("DATASETS.TEST", str(tuple(images.datasets.values()))),
            *args.opts,
            *options,
        ]
        line = ["train_net.py", "--config-file", f"configs/quick/{config}", "--eval-only", *options]
        commands[row] = f"DETECTRON2_DATASETS={os.environ.get('DETECTRON2_DATASETS', '')} python "
        commands[row] += shlex.join(line)
        print(f"\n{row}: {commands[row]}", flush=True)
        cfgs[row] = load_config(str(QUICK / config), options)
        cfgs[row].freeze()
    setup_logger()  # Detectron2 tells how far it is
    start = time.perf_counter()
    results = evaluate_rows(cfgs)
    seconds = time.perf_counter() - start
    for row, command in commands.items():
        for name, dataset in images.datasets.items():
            update_results(
                args.output,
                f"{name}/{row}",
                flat_metrics(results[row][dataset]),
                # Of the pass over the images that all rows of the command share.
                seconds=seconds,
                seed=cfgs[row].SEED,
                row_command=command,
            )


def tables(results: dict) -> dict[str, str]:
    """The figures of a results file, 0 to 100, by images, as tables in Markdown; rows that were
    not measured have none.
    """
    metrics, measured = results.get("metrics", {}), results.get("runs", {})
    found = {}
    for images in IMAGES.values():
        for name in images.datasets:
            rows = [
                (f"`{row}`", [metrics.get(f"{name}/{row}/{key}") for key in COLUMNS.values()])
                for row in row_options(images, Path())
                if f"{name}/{row}" in measured
            ]
            if rows:
                found[name] = markdown_table(["", *COLUMNS], rows)
    return found


def show_tables(output: str, *, fill: bool) -> None:
    """Prints the tables; fills docs/inference.md, if that is wanted and the results are its."""
    found = tables(read_results(output))
    for name, table in found.items():
        print(f"\n{name}\n\n{table}")
    page = OUTPUT.parents[1] / "inference.md"
    if fill and Path(output).resolve() == OUTPUT:
        fill_tables(page, found)


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
