#!/usr/bin/env python3
"""Draws how data flows through the systems, for docs/concepts.md.

python tools/draw_data_flow.py --output docs/images/data_flow.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from mpn_d2.engine.cli import run_command
from mpn_d2.utils.files import replaced_when_done

DATA, SHARED, SYSTEM, RESULT = "#e8eef7", "#dff0e1", "#fdf0d5", "#f3e3f1"

# Name: (x, y of the middle, width, colour, lines). Units: hundredths of the picture's width.
BOXES = {
    "dataset": (9, 34, 15, DATA, ["COCO JSON", "dataset dicts"]),
    "mapper": (28, 34, 17, DATA, ["PoseDatasetMapper", "image, people,", "ignored region"]),
    "trunk": (49, 34, 17, SHARED, ["backbone", "res2 ... res5,", "pyramids k*, p*"]),
    "maps": (
        71,
        45.5,
        20,
        SYSTEM,
        ["keypoint maps, mask", "or poses per location", "or a person per step"],
    ),
    "boxes": (71, 34, 20, SYSTEM, ["person boxes", "RetinaNet or RPN"]),
    "targets": (28, 12, 17, DATA, ["codecs: encode", "points to maps", "on the device"]),
    "losses": (49, 12, 17, SHARED, ["losses", "{loss_head_what}"]),
    "decode": (92, 45.5, 15, SHARED, ["codecs: decode", "candidates"]),
    "assemble": (92, 34, 15, SYSTEM, ["assembly", "PRN, ours ..."]),
    "people": (92, 20, 15, RESULT, ["Instances", "boxes, keypoints,", "scores, sem_seg"]),
    "uses": (71, 12, 20, RESULT, ["COCOEvaluator, Visualizer,", "PosePredictor, JSON, ONNX"]),
}
HEIGHT = 8.5  # of a box
HEADS = (71, 40, 24, 24)  # the frame around both: x, y of the middle, width, height
ARROWS = [
    ("dataset", "mapper"),
    ("mapper", "trunk"),
    ("trunk", "heads"),
    ("maps", "decode"),
    ("boxes", "assemble"),
    ("decode", "assemble"),
    ("assemble", "people"),
    ("people", "uses"),
    ("mapper", "targets"),
    ("targets", "losses"),
    ("heads", "losses"),
]


def edge(name: str, towards: str) -> tuple[float, float]:
    """Where an arrow leaves a box: on the side that faces the other box."""
    x, y, width, height = place(name)
    other_x, other_y, *_ = place(towards)
    if name == "heads" and other_y < y - height / 2:
        return x - width / 3, y - height / 2
    if abs(other_x - x) < width / 2 + 1:
        return x, y + (height / 2 if other_y > y else -height / 2)
    side = x + (width / 2 if other_x > x else -width / 2)
    return side, other_y if name == "heads" else y


def place(name: str) -> tuple[float, float, float, float]:
    """x, y of the middle, width, height."""
    return HEADS if name == "heads" else (*BOXES[name][:3], HEIGHT)


def draw(axes: Axes) -> None:
    x, y, width, height = HEADS
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(Rectangle(corner, width, height, fc="none", ec="#aaa", ls=":"))
    axes.text(x, y + height / 2 - 1.2, "heads", ha="center", va="center", fontsize=8, color="#666")
    for x, y, width, colour, lines in BOXES.values():
        corner = (x - width / 2, y - HEIGHT / 2)
        shape = "round,pad=0,rounding_size=1"
        axes.add_patch(FancyBboxPatch(corner, width, HEIGHT, shape, fc=colour, ec="#555", lw=0.8))
        axes.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=8)
    for start, end in ARROWS:
        training = end in ("targets", "losses")
        axes.add_patch(
            FancyArrowPatch(
                edge(start, end),
                edge(end, start),
                arrowstyle="-|>",
                mutation_scale=9,
                shrinkA=1,
                shrinkB=1,
                lw=0.9,
                color="#888" if training else "#222",
                linestyle="--" if training else "-",
            )
        )
    axes.text(1.5, 4, "dashed: training only", fontsize=8, color="#666")
    axes.text(1.5, 51.5, "blue: data   green: shared by all systems   yellow: each system's own   "
              "purple: results", fontsize=8, color="#444")  # fmt: skip


def main(args: argparse.Namespace) -> None:
    figure = plt.figure(figsize=(10, 5.4), dpi=130)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(2, 54), aspect="auto")
    axes.axis("off")
    draw(axes)
    with replaced_when_done(args.output) as partial:
        figure.savefig(partial, format="png")
    plt.close(figure)
    print(f"{args.output}: written")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/images/data_flow.png"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(lambda: main(parse_args()))
