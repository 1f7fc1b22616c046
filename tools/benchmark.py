#!/usr/bin/env python
"""Measures speed and memory, and writes the figures to a results file.

    python tools/benchmark.py --config-file configs/MultiPoseNet/R_50_shared.yaml \
        --persons 1 5 20 50 --size 480 --against keypoint_rcnn --output bench.json --plot bench.png

Part `pipeline` (the default): from an image in memory to its people, random weights. The network's
convolutions run; then maps and boxes of so many known people take the place of what they say, and
these people must come out again. All systems and modes (SPEED.MODE) take turns in one process.

- seconds/<system>/<people>/<mode>: of an image, median of --rounds; <system> is the config's name,
  or the one of --against (Detectron2's, eager float32, which has the mode plain alone);
  spread_percent/...: half of what the middle half of the rounds spans, share of the median;
- ratio/<people>/<mode>: the config's seconds over those of --against;
- size_seconds/<system>/<side>/<mode>: 5 people in images of --sizes.

And unless --no-details says so, at 20 people (or the largest of --persons below):

- step_seconds/<people>/<step>: the steps of the fastest mode, each with those before it;
- part_seconds/<part>/<people>/<mode>: parts of a pass (modes that are not compiled); .../drawing:
  of the people on the image; part_seconds/loader: from a bundled photograph's file to the network's
  input, one core; part_seconds/training_step: of the keypoint stage, one crop of --size;
- params/<part>; gflops/<part>/<mode>: 10^9 multiplications and additions of an image, counted
  apart; gflops/<system>/total: of all of --against;
- peak_mib/<system>/<people>/<mode>: memory of a process of its own (GPU: what PyTorch reserved);
- machine/gflops/<type>: rate of this machine's matrix products.

A mode that the machine lacks is null ("not available").

    python tools/benchmark.py --config-file configs/MultiPoseNet/R_50.yaml --part data \
        --output docs/results/benchmark_data.json
    python tools/benchmark.py ... --output F.json DATASETS.TRAIN "('coco_sample_train',)"

Part `data`, at the settings of the keypoint stage (crops of --size, whole recipe):

- data/images_per_second: what the training loader reads on one core; the best of --passes, as other
  programs can only slow it down. data/images_per_cpu_second: the same by processor time, which they
  hardly touch;
- data/iteration_seconds, data/target_seconds, data/target_percent: a training iteration of
  --batch-size images and the part of it that building targets takes;
- peak_mib/keypoint_stage: memory of a process of its own that takes one step on --memory-batch-size
  images (GPU: what PyTorch reserved there; else all of the process).

    python tools/benchmark.py --config-file configs/MultiPoseNet/PRN_coco.yaml --part assembly \
        --output docs/results/benchmark_assembly.json

Part `assembly`, in float32, with the annotations of the assembly stage:

- assembly/people_per_second: training people that are read and rasterised on one core, by the wall
  clock; assembly/people_per_cpu_second: by processor time; the best of --passes;
- assembly/seconds/<evidence>/<people>: one image of 20 or 100 people to poses, median of --repeats.
  Boxes lie as in the fullest images, every box holds all joints. <evidence>: prn and ucr as
  published, and the config's own. Weights are random, unless they come with the package;
- assembly/seconds/prn_products/20: the two matrix products of the published PRN for 20 people by
  themselves, a measure of the machine.

    python tools/benchmark.py --config-file configs/MultiPoseNet/R_50.yaml --part inference \
        --output docs/results/benchmark_inference.json MODEL.WEIGHTS ''

Part `inference`; weights may be random:

- inference/seconds/peaks/200: 200 peaks in maps of 120 x 120 cells, one thread, median;
- inference/seconds/plain, /flip and inference/ratio/flip: an image of --photo without and with its
  mirrored view, in turns;
- peak_mib/tiling_4000x3000: memory of a process that sees a photograph of that size whole and in
  4 x 4 overlapping parts, mirrored too.

    python tools/benchmark.py --config-file configs/MultitaskRCNN/R_50_multi_RB_H.yaml \
        --part heads --output docs/results/benchmark_heads.json

Part `heads`, random weights: heads/seconds/<refinement>/20, the keypoint head of an R-CNN, from the
features of 20 boxes to poses, and heads/ratio/<refinement>/20, to the unrefined head.

    python tools/benchmark.py --config-file configs/PoseRegression/R_50.yaml --part regression \
        --output docs/results/benchmark_regression.json --persons 1 20 30
    python tools/benchmark.py --config-file configs/PoseRegression/R_50.yaml \
        --part regression_memory --output docs/results/benchmark_regression_memory.json --size 800

Part `regression`, random weights, one image with so many known people (see `pipeline`):

- regression/seconds/<people> and regression/seconds/keypoint_rcnn/<people>, medians of --rounds in
  turns; regression/ratio/<people>; regression/more_percent/<fewest>_to_<most>: what the most people
  cost more than the fewest.

Part `regression_memory`: regression/training_mib/kept, /weights and /total of a training step on
--memory-batch-size images of --size, computed from shapes; nothing is run.

    python tools/benchmark.py --config-file configs/MultiPoseNet/R_50_shared.yaml --part systems \
        --beside configs/PoseRegression/R_50.yaml configs/MultitaskRCNN/R_50_standard_RB_H.yaml \
        --persons 1 20 --output docs/results/benchmark_systems.json

Part `systems`, random weights, plain mode: systems/seconds/<config>/<people>, the config's network
and those of --beside, in turns with Keypoint R-CNN, from an image in memory to so many people, and
systems/ratio/<config>/<people>. People are put in as fits each kind: maps, boxes, poses or steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.assembly_speed import measure_assembly
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.data_speed import measure_data
from mpn_d2.engine.fast import MODES
from mpn_d2.engine.inference_speed import measure_inference
from mpn_d2.engine.pipeline_speed import Settings, measure_pipeline
from mpn_d2.engine.rcnn_speed import measure_heads
from mpn_d2.engine.regression_speed import measure_regression, training_memory
from mpn_d2.engine.speed_reference import NAMES
from mpn_d2.engine.system_speed import measure_systems
from mpn_d2.utils.files import check_file
from mpn_d2.utils.results import write_results
from mpn_d2.utils.speed_plot import plot_speed

PHOTO = (
    Path(__file__)
    .resolve()
    .parents[1]
    .joinpath("datasets", "coco_sample", "val", "000000397133.jpg")
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--part", choices=sorted(PARTS), default="pipeline", help="(default: pipeline)"
    )
    parser.add_argument("--output", required=True, metavar="F.json", help="file of the figures")
    parser.add_argument(
        "--beside", nargs="+", default=[], metavar="FILE", help="further configs (part systems)"
    )
    parser.add_argument("--size", type=int, default=480, help="side of images (default: 480)")
    group = parser.add_argument_group("part pipeline")
    group.add_argument("--persons", type=int, nargs="+", default=[1, 5, 20, 50], metavar="N")
    group.add_argument("--against", choices=NAMES, default="", help="(default: nobody)")
    group.add_argument("--modes", nargs="+", default=list(MODES), help="(default: all)")
    group.add_argument("--rounds", type=int, default=10, help="in which all take turns")
    group.add_argument("--batch", type=int, default=1, help="images at a time")
    group.add_argument("--sizes", type=int, nargs="+", default=[], help="further sides of images")
    group.add_argument("--no-details", action="store_true", help="times by people alone")
    group.add_argument("--plot", metavar="F.png", help="picture of time against people")
    group = parser.add_argument_group("the other parts")
    group.add_argument("--images", type=int, default=200, help="in a pass of the loader")
    group.add_argument("--passes", type=int, default=3, help="of the loader")
    group.add_argument("--batch-size", type=int, default=8, help="of the timed iterations")
    group.add_argument("--iterations", type=int, default=2, help="that are timed; the best counts")
    group.add_argument("--memory-batch-size", type=int, default=2, help="of the measured step")
    group.add_argument("--people", type=int, default=6400, help="that a pass rasterises")
    group.add_argument("--repeats", type=int, default=15, help="of an assembly, of a view")
    group.add_argument("--photo", default=str(PHOTO), help="that is looked at (a bundled one)")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="KEY VALUE pairs of the config, at the end, behind an option with a single value",
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    for name, value in vars(args).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if args.beside and args.part != "systems":
        raise ValueError(f"--beside is for part systems, not {args.part}")
    if args.plot and args.part != "pipeline":
        raise ValueError(f"--plot shows part pipeline, not {args.part}")
    # Not after hours of measuring.
    check_file("--output", args.output)
    if args.plot:
        check_file("--plot", args.plot)
        if Path(args.plot).resolve() == Path(args.output).resolve():
            raise ValueError(f"--plot {args.plot} would overwrite --output: name another")
    register_pose_datasets()
    cfg = load_config(args.config_file, args.opts)
    figures = PARTS[args.part](args, cfg)
    for name, value in figures.items():
        print(f"{name:48} {'not available' if value is None else f'{value:10.4g}'}")
    seconds = time.perf_counter() - start
    write_results(args.output, figures, seconds=seconds, seed=cfg.SEED, device=cfg.MODEL.DEVICE)
    if args.plot:
        plot_speed(figures, args.plot)


def of_pipeline(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float | None]:
    """The figures of part `pipeline`, see the head of this file."""
    settings = Settings(
        name=Path(args.config_file).stem,
        persons=args.persons,
        size=args.size,
        modes=args.modes,
        against=args.against,
        rounds=args.rounds,
        batch=args.batch,
        sizes=args.sizes,
        details=not args.no_details,
        device=cfg.MODEL.DEVICE,
    )
    figures = measure_pipeline(cfg, settings)
    if args.against:
        print_ratios(figures, settings)
    return figures


def print_ratios(figures: dict[str, float | None], settings: Settings) -> None:
    """Table: seconds of an image and ratio to the other system, by people and mode."""
    print(f"\n{'people':>8}{settings.against:>16}", *(f"{mode:>21}" for mode in settings.modes))
    for count in settings.persons:
        base = figures[f"seconds/{settings.against}/{count}/plain"]
        cells = []
        for mode in settings.modes:
            own = figures[f"seconds/{settings.name}/{count}/{mode}"]
            ratio = figures[f"ratio/{count}/{mode}"]
            cells.append("not available" if own is None else f"{own:.3f} s ({ratio:.3f})")
        print(f"{count:>8}{f'{base:.3f} s':>16}", *(f"{cell:>21}" for cell in cells))
    print()


def of_data(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `data`, see the head of this file."""
    return measure_data(
        cfg,
        args.opts,
        size=args.size,
        images=args.images,
        passes=args.passes,
        batch_size=args.batch_size,
        iterations=args.iterations,
        memory_batch_size=args.memory_batch_size,
    )


def of_assembly(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `assembly`, see the head of this file."""
    return measure_assembly(
        cfg, args.opts, people=args.people, passes=args.passes, repeats=args.repeats
    )


def of_views(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `inference`, see the head of this file."""
    image = read_pose_image(args.photo, "RGB")
    photo = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return measure_inference(cfg, image=photo, repeats=args.repeats)


def of_all(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float | None]:
    """All parts; the config must have all stages."""
    parts = (of_pipeline, of_data, of_assembly, of_views)
    return {name: value for part in parts for name, value in part(args, cfg).items()}


def of_heads(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `heads`, see the head of this file."""
    return measure_heads(cfg, repeats=args.repeats)


def of_regression(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `regression`, see the head of this file."""
    if min(args.persons) < 0:
        raise ValueError("--persons needs numbers of people, 0 or more")
    return measure_regression(cfg, persons=args.persons, size=args.size, rounds=args.rounds)


def of_regression_memory(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `regression_memory`, see the head of this file."""
    return training_memory(cfg, size=args.size, batch=args.memory_batch_size)


def of_systems(args: argparse.Namespace, cfg: CfgNode) -> dict[str, float]:
    """The figures of part `systems`, see the head of this file."""
    if min(args.persons) < 0:
        raise ValueError("--persons needs numbers of people, 0 or more")
    configs = {_name(args.config_file): cfg}
    configs |= {_name(file): load_config(file, args.opts) for file in args.beside}
    if len(configs) <= len(args.beside):
        raise ValueError("--beside names a config twice")
    return measure_systems(configs, persons=args.persons, size=args.size, rounds=args.rounds)


def _name(file: str) -> str:
    """Two systems have an R_50: the folder tells which."""
    path = Path(file)
    return f"{path.parent.name}.{path.stem}"


PARTS = {
    "pipeline": of_pipeline,
    "data": of_data,
    "assembly": of_assembly,
    "inference": of_views,
    "heads": of_heads,
    "regression": of_regression,
    "regression_memory": of_regression_memory,
    "systems": of_systems,
    "all": of_all,
}


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
