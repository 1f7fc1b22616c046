#!/usr/bin/env python
"""Curves of trainings: losses, learning rate and accuracy over iterations, as a PNG.

    python tools/plot_metrics.py output/run --output curves.png
    python tools/plot_metrics.py output/a output/b --output both.png --keys total_loss "*/AP"

RUN_DIR is an OUTPUT_DIR, or one of the stage folders in it; an OUTPUT_DIR of the chain of stages
stands for its stage folders. One column a folder, one row a kind of curve.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib
import numpy as np

from mpn_d2.engine.cli import run_command
from mpn_d2.utils.files import replaced_when_done
from mpn_d2.utils.metrics_file import METRICS, read_metrics

Curves = dict[str, list[tuple[int, float]]]
# Rows without --keys: title -> patterns of names.
ROWS = {
    "loss": ("*loss*",),
    "learning rate": ("lr",),
    "AP, IoU (%)": ("*/AP", "*/IoU-person"),
}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folders that trainings wrote")
    parser.add_argument("--output", required=True, metavar="F.png", help="file to write")
    parser.add_argument(
        "--keys", nargs="+", metavar="NAME", help="names or patterns (*), one row each"
    )
    parser.add_argument(
        "--smooth",
        type=int,
        default=1,
        metavar="N",
        help="running mean over N values of each loss; the values stay as thin lines (default: 1)",
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    if args.smooth < 1:
        raise ValueError(f"--smooth is {args.smooth}: at least 1 is needed")
    runs = {title: read_metrics(folder / METRICS) for title, folder in find_runs(args.runs).items()}
    rows = choose_rows(runs, args.keys)
    draw(runs, rows, args.output, args.smooth)
    counts = ", ".join(f"{title}: to iteration {last_iteration(c)}" for title, c in runs.items())
    print(f"{args.output}: {counts}")


def find_runs(folders: Sequence[str]) -> dict[str, Path]:
    """Folders with a metrics.json by title, the stage folders of a chain in order of training.

    Raises:
        FileNotFoundError: a folder that holds none.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        own = [folder] if (folder / METRICS).is_file() else []
        # A stage that just began has an empty file.
        written = [path for path in folder.glob(f"*/{METRICS}") if path.stat().st_size]
        stages = sorted((path.parent for path in written), key=_started)
        if not own + stages:
            raise FileNotFoundError(
                f"no {METRICS} in {folder} or the folders in it: name the OUTPUT_DIR of a training"
            )
        found |= {str(path): path for path in own + stages}
    return found


def _started(folder: Path) -> tuple[float, str]:
    # The config is written when a stage starts, the metrics till it ends.
    file = next((f for f in ("config.yaml", METRICS) if (folder / f).is_file()), METRICS)
    return os.path.getmtime(folder / file), folder.name


def choose_rows(runs: dict[str, Curves], keys: Sequence[str] | None) -> dict[str, Sequence[str]]:
    """Titles and patterns of the rows that have a curve.

    Raises:
        ValueError: a key that no run has; names those that they have.
    """
    rows = {key: (key,) for key in keys} if keys else ROWS
    names = sorted({name for curves in runs.values() for name in curves})
    empty = [title for title, patterns in rows.items() if not _matching(names, patterns)]
    if keys and empty:
        raise ValueError(f"no run has {', '.join(empty)}; they have {', '.join(names)}")
    kept = {title: patterns for title, patterns in rows.items() if title not in empty}
    if not kept:
        raise ValueError(f"nothing to plot among {', '.join(names)}: choose with --keys")
    return kept


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def last_iteration(curves: Curves) -> int:
    """The largest iteration of any curve."""
    return max(points[-1][0] for points in curves.values())


def smoothed(values: np.ndarray, count: int) -> np.ndarray:
    """Running mean over up to `count` values, centred, fewer towards the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    low = np.maximum(middle - (count - 1) // 2, 0)
    high = np.minimum(middle + count // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def draw(runs: dict[str, Curves], rows: dict[str, Sequence[str]], output: str, smooth: int) -> None:
    """Writes the panels, one column a run, one row a kind of curve."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (1 + 5 * len(runs), 3.2 * len(rows))
    figure, grid = plt.subplots(len(rows), len(runs), figsize=size, squeeze=False, sharex="col")
    for axes_row, (title, patterns) in zip(grid, rows.items(), strict=True):
        for axes, (run, curves) in zip(axes_row, runs.items(), strict=True):
            names = _matching(list(curves), patterns)
            for color, name in enumerate(sorted(names)):
                iterations, values = np.array(curves[name]).T
                # Accuracies come rarely: each one is shown as a point.
                rare = len(values) < 30
                style = {"color": f"C{color % 10}", "marker": "." if rare else None}
                count = smooth if "loss" in name else 1
                if count > 1:
                    axes.plot(iterations, values, alpha=0.3, lw=0.6, color=style["color"])
                axes.plot(iterations, smoothed(values, count), label=name, lw=1.2, **style)
                if "loss" in name and values.min() > 0:
                    axes.set_yscale("log")
            if names:
                axes.legend(fontsize=6)
            axes.set_title(run, fontsize=8)
            axes.grid(alpha=0.3)
        axes_row[0].set_ylabel(title)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    figure.tight_layout()
    write_figure(figure, output)
    plt.close(figure)


def write_figure(figure: matplotlib.figure.Figure, output: str) -> None:
    """Writes a PNG, whole or not at all; missing folders are made."""
    with replaced_when_done(output) as partial:
        figure.savefig(partial, format="png", dpi=120)


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
