#!/usr/bin/env python
"""People written one after the other, on drawn crowds: trainings, rows, memory and time.

    python tools/train_unified.py --runs RUNS              # quick_crowd.yaml, beside two others
    python tools/train_unified.py --rows --runs RUNS       # loop, rules, T: one short schedule
    python tools/train_unified.py --measure --runs RUNS    # memory and time of the paper's network

The base is the network of tools/train_synthetic.py (RUNS/drawn-v1/model_final.pth, or --weights).
Without --rows or --measure: trains the recurrent decoder (configs/UnifiedAssociation/
quick_crowd.yaml), the same without its loop and associative embedding (quick_AE.yaml) on
drawn-crowd-v1, half an hour each on one core, and evaluates them and the base's own people on the
same unseen images. Figures go to
results/unified_association.json in --output, tables of docs/unified_association.md are filled. An
interrupted run goes on where it stopped when the command is repeated. With --images or --opts all
is a try: trainings and figures go to RUNS/try, no page changes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.data.synthetic import write_dataset
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.sequence_memory import chunk_bytes, seconds_per_person, step_bytes
from mpn_d2.engine.sequence_pictures import SequenceDrawer
from mpn_d2.engine.showcase import write_predictions
from mpn_d2.engine.stages import FINAL, evaluate, stage_config
from mpn_d2.modeling.heads.part_sequence import PartSequenceDecoder
from mpn_d2.modeling.meta_arch.sequence_training import (
    SequenceRules,
    SequenceTargets,
    SequenceTraining,
)
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.doc_tables import fill_tables, markdown_table
from mpn_d2.utils.results import flat_metrics, read_results, update_results
from mpn_d2.utils.saved_bytes import MIB
from mpn_d2.utils.visualize import write_png
from tools.train_synthetic import train_run, trained_network

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "configs" / "UnifiedAssociation"
PAGE = REPO / "docs" / "unified_association.md"
OUTPUT = REPO / "docs" / "results" / "unified_association.json"
CROWD = "drawn-crowd-v1"
# What is compared on the same images, by its name in the figures.
SYSTEMS = {
    "recurrent": "quick_crowd.yaml",
    "recurrent_no_loop": "quick_crowd_no_loop.yaml",
    "tag_grouping": "quick_AE.yaml",
}
BASE_PEOPLE = "multiposenet"
# What trains without the base.
FROM_NOTHING = {"tag_grouping"}
# Rows on the short schedule; the first is what the others differ from in one thing.
ROWS = {
    "loop_2": [],
    "loop_0": ["MODEL.SEQUENCE.LOOP", "0"],
    "loop_3": ["MODEL.SEQUENCE.LOOP", "3"],
    "rules_a_b": ["MODEL.SEQUENCE.RULE_OVER", "b"],
    "rules_b_a": ["MODEL.SEQUENCE.RULE_UNDER", "b"],
    "rules_b_b": ["MODEL.SEQUENCE.RULE_UNDER", "b", "MODEL.SEQUENCE.RULE_OVER", "b"],
    "T_1": ["MODEL.SEQUENCE.T", "1"],
    "T_4": ["MODEL.SEQUENCE.T", "4"],
    # The paper's figure 6: AP by the least stop score that trains (and writes).
    **{
        f"omega_{omega}": ["MODEL.SEQUENCE.OMEGA", omega, "MODEL.SEQUENCE.OMEGA_TEST", omega]
        for omega in ("0.1", "0.2", "0.35", "0.5")
    },
    # What is ours, left out: the curriculum, and the decoder that looks at the base's heatmaps.
    "all_at_once": ["MODEL.SEQUENCE.CURRICULUM", "0"],
    "writes_maps": [
        *("MODEL.SEQUENCE.DECODER", "recurrent", "MODEL.SEQUENCE.COARSE", "1"),
        *("MODEL.SEQUENCE.LSTM1.WIDTH", "32"),
    ],
}
COLUMNS = {
    "keypoint AP": "keypoints/AP",
    "AP50": "keypoints/AP50",
    "AP75": "keypoints/AP75",
    "right count, %": "keypoints/count_right",
    "AP, overlap < 0.1": "keypoints/AP_overlap_0_0.1",
    "0.1 to 0.3": "keypoints/AP_overlap_0.1_0.3",
    "over 0.3": "keypoints/AP_overlap_0.3_1",
}
PEOPLE, SIDE = 8, 512
# Cells a side of the small maps on which chunks are measured.
SMALL_MAP = 32
_SMALL = f"MiB at most, 8 people, maps of {SMALL_MAP} x {SMALL_MAP}"
MEASURES = {
    "MiB kept for the backward pass of a step with 8 people at 512 x 512": "memory/step_mib",
    f"{_SMALL}, one pass over all steps": "memory/chunk_all_mib",
    **{f"{_SMALL}, T = {steps}": f"memory/chunk_{steps}_mib" for steps in (8, 4, 2, 1)},
    "seconds per person, first LSTM, 512 x 512": "seconds/lstm1",
    "seconds per person, second LSTM, 512 x 512": "seconds/lstm2",
}


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, metavar="DIR", help="data and trainings go there")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="trained network of drawn people (default: RUNS/drawn-v1/model_final.pth)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--rows", action="store_true", help="the table of switches instead")
    instead.add_argument("--measure", action="store_true", help="memory and time instead")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"of {', '.join(SYSTEMS)}, or of the rows"
    )
    parser.add_argument("--images", type=int, help="training images (a try)")
    parser.add_argument("--output", metavar="F.json", help=f"default: {OUTPUT.relative_to(REPO)}")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs of all (a try)"
    )
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    is_try = bool(args.images or args.opts)
    root = Path(args.runs).resolve()
    runs = root / "try" if is_try else root
    args.output = args.output or str(runs / "results" / OUTPUT.name if is_try else OUTPUT)
    names = list(ROWS) if args.rows else [*SYSTEMS, BASE_PEOPLE]
    chosen = args.only or names
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        raise ValueError(f"--only {unknown[0]}: choose of {', '.join(names)}")
    read_results(args.output)
    if args.measure:
        measure(args)
    else:
        if set(chosen) - FROM_NOTHING:
            args.weights = trained_network(args.weights, root)
        draw_data(args, runs / "datasets")
        for name in chosen:
            row(args, runs, name)
    show_tables(args.output, fill=Path(args.output).resolve() == OUTPUT)


def draw_data(args: Namespace, root: Path) -> None:
    """Draws what trainings and tests need, unless it is there."""
    parts = ((CROWD, "train", args.images), (CROWD, "test", None), ("drawn-v1", "test", None))
    for name, split, count in parts:
        write_dataset(name, split, root, count=count, workers=os.cpu_count() or 1)
    os.environ["DETECTRON2_DATASETS"] = str(root)
    register_pose_datasets()


def row(args: Namespace, runs: Path, name: str) -> None:
    """Trains (unless it is the base) and evaluates one system or row, and keeps its figures."""
    start = time.perf_counter()
    if name == BASE_PEOPLE:
        options = ["DATASETS.TEST", f"('{CROWD}-test',)", "EVAL.TASKS", "['keypoints']"]
        options += ["EVAL.OKS_OVERLAP", "[0.1, 0.3]", "EVAL.COUNT_SCORE", "0.3"]
        options += [*args.opts, "OUTPUT_DIR", str(runs / "unified" / name)]
        cfg = load_config(str(REPO / "configs" / "quick" / "drawn_v1.yaml"), options)
        cfg.freeze()
        results, schedule = evaluate(cfg, weights=args.weights), "see drawn-v1"
        seconds = time.perf_counter() - start
    else:
        config = CONFIGS / ("quick_rows.yaml" if args.rows else SYSTEMS[name])
        options = [*args.opts, *(ROWS[name] if args.rows else [])]
        if name not in FROM_NOTHING:
            options += ["MODEL.WEIGHTS", args.weights]
        cfg, clock = train_run(str(config), [*options, "OUTPUT_DIR", str(runs / "unified" / name)])
        seconds = clock.stop()
        solver = stage_config(cfg, "joint", []).SOLVER
        schedule = f"{solver.MAX_ITER} x {solver.IMS_PER_BATCH}"
        results = evaluate(_tested_on_both(cfg, name), weights=f"{cfg.OUTPUT_DIR}/{FINAL}")
    about = {"seconds": seconds, "seed": cfg.SEED, "iterations x batch": schedule}
    group = f"{CROWD}/rows/{name}" if args.rows else f"{CROWD}/{name}"
    update_results(args.output, group, flat_metrics(results[f"{CROWD}-test"]), **about)
    if name == "recurrent":
        images = Path(args.output).parents[1] / "images"
        show_steps(cfg, runs, images)
        found = images / "unified_association_crowds.png"
        write_predictions(cfg, f"{cfg.OUTPUT_DIR}/{FINAL}", found)
    if "drawn-v1-test" in results:
        # The figure that every system has (design section 6).
        figures = results["drawn-v1-test"]["keypoints"]
        update_results(args.output, "keypoints", figures, **about)


def show_steps(cfg: CfgNode, runs: Path, images: Path) -> None:
    """unified_association_steps.png: what is written at each step of the first test image."""
    images.mkdir(parents=True, exist_ok=True)
    image = read_pose_image(str(runs / "datasets" / CROWD / "test" / "000001.png"), "RGB")
    drawer = SequenceDrawer(cfg, f"{cfg.OUTPUT_DIR}/{FINAL}")
    write_png(images / "unified_association_steps.png", drawer(image))


def _tested_on_both(cfg: CfgNode, name: str) -> CfgNode:
    """The recurrent decoder is evaluated on drawn-v1, too, where the other systems are."""
    cfg = cfg.clone()
    cfg.defrost()
    if name == "recurrent":
        cfg.DATASETS.TEST = (f"{CROWD}-test", "drawn-v1-test")
    cfg.freeze()
    return cfg


def measure(args: Namespace) -> None:
    """Memory and time of the decoder of unified.yaml."""
    start, options = time.perf_counter(), ["MODEL.DEVICE", "cpu", *args.opts]
    cfg = load_config(str(CONFIGS / "unified.yaml"), options)
    joints, stacks = get_skeleton(cfg.MODEL.SKELETON).num_keypoints, cfg.MODEL.HOURGLASS.STACKS
    channels, side = 2 * joints * stacks, SIDE // cfg.MODEL.SEQUENCE.STRIDE
    with torch.device("meta"):
        decoder = PartSequenceDecoder(cfg, channels)
    memory = {"step_mib": step_bytes(decoder, channels, PEOPLE, (side, side)) / MIB}
    decoder = PartSequenceDecoder(cfg, channels)
    torch.nn.init.constant_(decoder.stop.bias, 5.0)
    targets = SequenceTargets(
        torch.rand(PEOPLE, joints, SMALL_MAP, SMALL_MAP), torch.ones(1, 1, SMALL_MAP, SMALL_MAP)
    )
    training = SequenceTraining(decoder, SequenceRules(most_steps=PEOPLE))
    features = torch.rand(1, channels, SMALL_MAP, SMALL_MAP)
    for name in ("all", "8", "4", "2", "1"):
        chunk = None if name == "all" else int(name)
        found = chunk_bytes(training, features, targets, chunk)
        memory[f"chunk_{name}_mib"] = found / MIB
    times = seconds_per_person(decoder.eval(), channels, (side, side))
    about = {"seconds": time.perf_counter() - start, "seed": cfg.SEED}
    update_results(args.output, "memory", memory, **about)
    update_results(args.output, "seconds", times, **about)


def tables(results: dict) -> dict[str, str]:
    """The figures of a results file as tables in Markdown; what was not measured has none."""
    metrics, measured = results.get("metrics", {}), results.get("runs", {})
    found = {}
    for title, names, prefix in (
        ("systems", [*SYSTEMS, BASE_PEOPLE], CROWD),
        ("rows", list(ROWS), f"{CROWD}/rows"),
    ):
        rows = [
            (f"`{name}`", [metrics.get(f"{prefix}/{name}/{key}") for key in COLUMNS.values()])
            for name in names
            if f"{prefix}/{name}" in measured
        ]
        if rows:
            found[title] = markdown_table(["", *COLUMNS], rows)
    if "memory" in measured:
        rows = [(words, [metrics.get(key)]) for words, key in MEASURES.items()]
        found["measures"] = markdown_table(["", ""], rows)
    return found


def show_tables(output: str, *, fill: bool) -> None:
    """Prints the tables, and fills those of the page."""
    found = tables(read_results(output))
    for name, table in found.items():
        print(f"\n{name}\n\n{table}")
    if fill:
        fill_tables(PAGE, found)


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
