#!/usr/bin/env python
"""Measures the memory that the largest inputs take; fills docs/limits.md.

    python tools/limits.py
    python tools/limits.py --only image --image 4000 3000 --output limits.json

Each kind of input runs in a process of its own, a small one before the large one; what counts is
the most memory that the process has had in use. Networks (configs/MultiPoseNet/R_18_small.yaml)
have random weights and name people at random, as many as the config allows. A process that takes
more than the page's bound is an error, exit code 2.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.limits import MOST_PEOPLE, check_image_size
from mpn_d2.engine import limit_memory as memory
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.cli import run_command
from mpn_d2.utils.doc_tables import fill_tables
from mpn_d2.utils.results import read_results, write_results
from mpn_d2.utils.timing import in_fresh_process

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "docs" / "results" / "limits.json"
PAGE = REPO / "docs" / "limits.md"
CONFIG = REPO / "configs" / "MultiPoseNet" / "R_18_small.yaml"
OPTIONS = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
# Boxes of random weights score little; all of them shall become people.
PREDICTING = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "MODEL.ASSEMBLER.BOX_SCORE_THRESH", "0.0"]
VIDEO = ["INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "128"]
# What `measure_<name>` is called for; the order is that of the tables.
KINDS = ("image", "annotations", "results", "people", "video")


def measure_image(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Of a quarter of each side, and of --image."""
    width, height = args.image
    sizes = [(max(width // 4, 1), max(height // 4, 1)), (width, height)]
    files = [str(folder / f"{i}.jpg") for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        memory.write_image(file, *size)
    cfg = _config(PREDICTING)
    target = str(folder / "drawn.png")
    peaks = in_fresh_process(memory.image_mib, cfg.dump(), _weights(cfg, folder), files, target)
    return {f"peak_mib/image/{w}x{h}": peak for (w, h), peak in zip(sizes, peaks, strict=True)}


def measure_annotations(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    counts = [max(args.annotations // 10, 1), args.annotations]
    files = [str(folder / f"people_{count}.json") for count in counts]
    sizes = [memory.write_annotations(f, c) for f, c in zip(files, counts, strict=True)]
    return _by_count("annotations", counts, sizes, in_fresh_process(memory.annotations_mib, files))


def measure_results(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    counts = [max(args.annotations // 10, 1), args.annotations]
    pairs, sizes = [], []
    for count in counts:
        rows, people = str(folder / f"rows_{count}.json"), str(folder / f"truth_{count}.json")
        # The rows are what counts, but what they are compared with lies in memory, too.
        sizes.append(memory.write_rows(rows, count) + memory.write_annotations(people, count))
        pairs.append((rows, people))
    return _by_count("results", counts, sizes, in_fresh_process(memory.results_mib, pairs))


def measure_people(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Of a training step on one image with so many people."""
    figures = {}
    memory.write_image(str(folder / "0.jpg"), 640, 480)
    for count in (max(args.people // 100, 1), args.people):
        file = folder / f"crowd_{count}.json"
        memory.write_annotations(str(file), count, per_image=count)
        cfg = _config(["DATASETS.TRAIN", "('crowd',)", "DATALOADER.NUM_WORKERS", "0"])
        cfg.SOLVER.IMS_PER_BATCH = 1
        cfg.INPUT.AUGMENTATION = "resize"
        cfg.DATASETS.OWN.crowd = CfgNode({"JSON": str(file), "IMAGES": str(folder)})
        figures[f"peak_mib/people/{count}"] = in_fresh_process(memory.training_mib, cfg.dump())
    return figures


def measure_video(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    counts = [max(args.frames // 10, 1), args.frames]
    cfg = _config(PREDICTING + VIDEO)
    peaks = in_fresh_process(memory.video_mib, cfg.dump(), _weights(cfg, folder), counts)
    return {f"peak_mib/video/{n}": peak for n, peak in zip(counts, peaks, strict=True)}


def _by_count(
    name: str, counts: Sequence[int], sizes: Sequence[int], peaks: Sequence[float]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for count, size, peak in zip(counts, sizes, peaks, strict=True):
        figures |= {f"bytes/{name}/{count}": size, f"peak_mib/{name}/{count}": peak}
    return figures


def _config(options: list[str]) -> CfgNode:
    return load_config(str(CONFIG), [*OPTIONS, *options])


def _weights(cfg: CfgNode, folder: Path) -> str:
    torch.manual_seed(0)
    PoseCheckpointer(build_pose_model(cfg.clone()), str(folder)).save("random")
    return str(folder / "random.pth")


def bounds(metrics: dict[str, float]) -> dict[str, float]:
    """MiB that the page promises for each measured `peak_mib/...` that has a bound."""
    found = {}
    for key in metrics:
        start, kind, what = key.split("/")
        if start == "peak_mib" and kind == "image":
            width, height = map(int, what.split("x"))
            found[key] = memory.image_bound_mib(width * height)
        elif start == "peak_mib" and f"bytes/{kind}/{what}" in metrics:
            found[key] = memory.json_bound_mib(int(metrics[f"bytes/{kind}/{what}"]))
    return found


def tables(results: dict) -> dict[str, str]:
    """Tables of docs/limits.md from the figures."""
    metrics = results["metrics"]
    promised = bounds(metrics)

    def rows(kind: str, cells: Callable[[str, str], list[str]]) -> list[list[str]]:
        keys = [key for key in metrics if key.startswith(f"peak_mib/{kind}/")]
        return [cells(key, key.rpartition("/")[2]) for key in keys]

    def image(key: str, size: str) -> list[str]:
        width, height = map(int, size.split("x"))
        shape = f"{width:,} x {height:,}"
        return [shape, f"{width * height / 1e6:.1f}", _mib(metrics[key]), _mib(promised[key])]

    def file(key: str, count: str) -> list[str]:
        kind = key.split("/")[1]
        size = metrics[f"bytes/{kind}/{count}"]
        label = f"{kind}, {int(count):,} people"
        return [label, f"{size / 1e6:.1f}", _mib(metrics[key]), _mib(promised[key])]

    def plain(key: str, count: str) -> list[str]:
        return [f"{int(count):,}", _mib(metrics[key])]

    return {
        "image": _table(["pixels", "megapixels", "MiB", "bound, MiB"], rows("image", image)),
        "files": _table(
            ["file", "MB", "MiB", "bound, MiB"], rows("annotations", file) + rows("results", file)
        ),
        "people": _table(["people in the image", "MiB"], rows("people", plain)),
        "video": _table(["frames", "MiB"], rows("video", plain)),
    }


def _mib(value: float) -> str:
    return f"{value:,.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    check_image_size(*args.image, "--image")
    if args.people > MOST_PEOPLE:
        raise ValueError(f"--people is {args.people}: at most {MOST_PEOPLE:,} are read")
    metrics: dict[str, float] = {}
    for kind in args.only:
        with tempfile.TemporaryDirectory() as folder:
            found = globals()[f"measure_{kind}"](args, Path(folder))
        for key, value in found.items():
            if key.startswith("peak_mib"):
                print(f"{key}: {value:,.0f} MiB", flush=True)
        metrics |= found
    write_results(args.output, metrics, seconds=time.perf_counter() - start, seed=0)
    print(f"{args.output}: written")
    if Path(args.output).resolve() == RESULTS:
        fill_tables(PAGE, tables(read_results(args.output)))
    over = [key for key, most in bounds(metrics).items() if metrics[key] > most]
    if over:
        raise ValueError(f"more memory than docs/limits.md promises: {', '.join(over)}")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    add("--image", nargs=2, type=_positive, default=(15_000, 11_900), metavar=("W", "H"))
    add("--annotations", type=_positive, default=100_000, metavar="N", help="people of the files")
    add("--people", type=_positive, default=MOST_PEOPLE, metavar="N", help="people of one image")
    add("--frames", type=_positive, default=200, metavar="N", help="of the video")
    add("--output", default=str(RESULTS), metavar="F")
    args = parser.parse_args(arguments)
    if set(args.only) != set(KINDS) and Path(args.output).resolve() == RESULTS:
        parser.error("--only leaves figures out: name another --output")
    return args


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1 is needed")
    return value


if __name__ == "__main__":
    run_command(lambda: main(parse_args()))
