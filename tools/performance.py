#!/usr/bin/env python
"""Measures speed against Keypoint R-CNN and what each mode costs in AP; fills docs/performance.md.

    python tools/performance.py --runs RUNS
    python tools/performance.py --runs RUNS --only speed
    python tools/performance.py --runs RUNS --only systems
    python tools/performance.py --runs RUNS --only accuracy

speed: tools/benchmark.py on R_50_shared, R_50 and Lite_R_18 (hundreds of passes, on a machine that
does nothing else) into results/performance.json, performance_R_50.json, performance_Lite_R_18.json
and images/performance_<config>.png of --output. systems: all systems in plain mode and the refined
heads of the R-CNN into results/benchmark_systems.json and benchmark_heads.json. accuracy: AP of the
network of tools/train_synthetic.py and of configs/quick/lite_drawn.yaml on drawn unseen images in
every mode, into results/performance_accuracy.json; trains below RUNS what is not there (an hour
each on 2 cores; repeating the command goes on). Options of the benchmark stand behind --opts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpn_d2.config import load_config
from mpn_d2.data.own_datasets import register_own_datasets
from mpn_d2.data.synthetic import write_dataset
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.fast import MODES, unavailable
from mpn_d2.engine.stages import FINAL, evaluate
from mpn_d2.utils.doc_tables import fill_tables
from mpn_d2.utils.files import check_folder
from mpn_d2.utils.performance_page import (
    accuracy_table,
    heads_table,
    speed_tables,
    systems_table,
    targets_table,
)
from mpn_d2.utils.results import flat_metrics, read_results, update_results
from tools.inference_table import prepare_data, train_missing

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / "docs"
# Config below configs/MultiPoseNet to the file of its figures.
SPEED = {
    "R_50_shared": "performance.json",
    "R_50": "performance_R_50.json",
    "Lite_R_18": "performance_Lite_R_18.json",
}
ACCURACY = "performance_accuracy.json"
DRAWN = "drawn-v1"
# Systems beside one another, and the refined head of the R-CNN.
SYSTEMS, HEADS = "benchmark_systems.json", "benchmark_heads.json"
OTHERS = {
    SYSTEMS: [
        *("--part", "systems", "--config-file", "configs/MultiPoseNet/R_50_shared.yaml"),
        *("--beside", "configs/MultiPoseNet/R_50.yaml", "configs/PoseRegression/R_50.yaml"),
        "configs/MultitaskRCNN/R_50_standard.yaml",
        "configs/MultitaskRCNN/R_50_standard_RB_H.yaml",
        "configs/UnifiedAssociation/mpn_R50.yaml",
        *("--persons", "1", "5", "20"),
    ],
    HEADS: [
        *("--part", "heads", "--config-file", "configs/MultitaskRCNN/R_50_multi_RB_H.yaml"),
    ],
}
# Config below configs/quick to the folder of its training.
NETWORKS = {"drawn_v1": "drawn-v1", "lite_drawn": "lite-drawn-v1"}
BENCHMARK = [
    *("--persons", "0", "1", "5", "20", "50", "100", "--size", "480"),
    *("--sizes", "320", "480", "640", "800", "--against", "keypoint_rcnn"),
]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, metavar="DIR", help="data and trainings go there")
    parser.add_argument("--only", choices=("speed", "systems", "accuracy"), help="(default: all)")
    parser.add_argument(
        "--output", default=str(DOCS), metavar="DIR", help="of results/ and images/ (default: docs)"
    )
    parser.add_argument("--configs", nargs="+", choices=list(SPEED), default=list(SPEED))
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument(
        "--test-images", type=int, default=600, help="drawn ones for accuracy (default: 600)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="of the benchmark (default: 15)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="further options of the benchmark"
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    for name in ("rounds", "test_images"):
        if vars(args)[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    output = Path(args.output).resolve()
    # Not after hours of measuring.
    for folder in (output / "results", output / "images", Path(args.runs)):
        check_folder(folder)
    if args.only in (None, "speed"):
        for config in args.configs:
            measure_speed(config, output, args)
    if args.only in (None, "systems"):
        for file, options in OTHERS.items():
            rounds = ["--repeats" if file == HEADS else "--rounds", str(args.rounds)]
            command = ["tools/benchmark.py", *options, *rounds]
            run_benchmark([*command, "--output", str(output / "results" / file), *args.opts])
    if args.only in (None, "accuracy"):
        measure_accuracy(output, Path(args.runs).resolve(), args)
    found = tables(output)
    for name, table in found.items():
        print(f"\n{name}\n\n{table}")
    if output == DOCS:
        fill_tables(DOCS / "performance.md", found)


def measure_speed(config: str, output: Path, args: argparse.Namespace) -> None:
    """Runs tools/benchmark.py in a process of its own; its figures name its command."""
    command = ["tools/benchmark.py", "--config-file", f"configs/MultiPoseNet/{config}.yaml"]
    command += [*BENCHMARK, "--modes", *args.modes, "--rounds", str(args.rounds)]
    command += ["--output", str(output / "results" / SPEED[config])]
    command += ["--plot", str(output / "images" / f"performance_{config}.png"), *args.opts]
    run_benchmark(command)


def run_benchmark(command: list[str]) -> None:
    """Runs a command line of tools/benchmark.py from the repository's root."""
    print(" ".join(["python", *command]), flush=True)
    config = Path(command[command.index("--config-file") + 1]).stem
    if subprocess.run([sys.executable, *command], cwd=REPO).returncode:
        raise ValueError(f"the benchmark of {config} failed, its message stands above")


def measure_accuracy(output: Path, runs: Path, args: argparse.Namespace) -> None:
    """AP of both drawn networks in every mode that this machine has."""
    prepare_data("drawn", runs, None)
    dataset = more_images(runs / "performance" / "datasets", args.test_images)
    for config, folder in NETWORKS.items():
        train_missing(f"{config}.yaml", runs / folder, [])
        for mode in args.modes:
            options = ["MODEL.WEIGHTS", str(runs / folder / FINAL), "SPEED.MODE", mode, *dataset]
            options += ["OUTPUT_DIR", str(runs / "performance" / folder / mode)]
            cfg = load_config(str(REPO / "configs" / "quick" / f"{config}.yaml"), options)
            reason = unavailable(mode, cfg.SPEED.DTYPE, cfg.MODEL.DEVICE)
            if reason:
                print(f"{mode}: not available, {reason}")
                continue
            register_own_datasets(cfg)
            cfg.freeze()
            start = time.perf_counter()
            results = evaluate(cfg, weights=cfg.MODEL.WEIGHTS)[cfg.DATASETS.TEST[0]]
            update_results(
                output / "results" / ACCURACY,
                f"{folder}/{mode}",
                flat_metrics(results),
                seconds=time.perf_counter() - start,
                seed=cfg.SEED,
            )


def more_images(root: Path, count: int) -> list[str]:
    """Draws unseen images, the test images of the version and as many more; options that test on
    them. A rounding that moves a few joints over a threshold changes the AP of 200 images by 0.2.
    """
    write_dataset(DRAWN, "test", root, count=count, workers=os.cpu_count() or 1)
    own = {"JSON": root / DRAWN / "annotations" / "test.json", "IMAGES": root / DRAWN / "test"}
    pairs = [text for k, v in own.items() for text in (f"DATASETS.OWN.drawn_test.{k}", str(v))]
    return [*pairs, "DATASETS.TEST", "('drawn_test',)"]


def tables(output: Path) -> dict[str, str]:
    """What stands between the markers of docs/performance.md, of the files that are there."""
    found: dict[str, str] = {}
    measured = {}
    for config, file in SPEED.items():
        metrics = read_results(output / "results" / file).get("metrics", {})
        measured[config] = metrics
        found |= speed_tables(config, metrics)
        picture = f"performance_{config}.png"
        if metrics and (output / "images" / picture).is_file():
            found[f"plot_{config}"] = f"![Time against people, {config}](images/{picture})"
    accuracy = accuracy_table(read_results(output / "results" / ACCURACY).get("metrics", {}))
    main, light = "R_50_shared", "Lite_R_18"
    targets = targets_table(main, measured[main], light, measured[light])
    further = {"accuracy": accuracy, "targets": targets}
    for name, file, table in (("systems", SYSTEMS, systems_table), ("heads", HEADS, heads_table)):
        further[name] = table(read_results(output / "results" / file).get("metrics", {}))
    return {**found, **{name: table for name, table in further.items() if table}}


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
