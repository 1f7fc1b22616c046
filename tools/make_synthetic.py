#!/usr/bin/env python
"""Draws a dataset of people with exact keypoints, masks and boxes (COCO JSON, PNG images).

    python tools/make_synthetic.py --dataset drawn-v1 --output datasets

The same seed gives the same pictures on every machine. A dataset that is complete is left as it is,
unless its first picture is not what is drawn now: then other code drew it, and it is drawn again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpn_d2.data.drawn_picture import DRAWN_DATASETS, SPLITS
from mpn_d2.data.synthetic import measure_difficulty, write_dataset
from mpn_d2.engine.cli import run_command


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, choices=sorted(DRAWN_DATASETS))
    parser.add_argument("--output", required=True, help="folder of the datasets")
    parser.add_argument("--split", choices=SPLITS, help="this one alone (default: both)")
    parser.add_argument(
        "--images", type=int, help="images of --split, or of train (default: the dataset's own)"
    )
    parser.add_argument("--seed", type=int, help="default: the one of the dataset's version")
    parser.add_argument(
        "--layouts",
        metavar="DIR",
        help="drawn-coco-v1: folder of gzipped COCO keypoint files (default: a few bundled ones)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    measured = {}
    for split in [args.split] if args.split else SPLITS:
        # The test images stay the version's, however many are drawn for training.
        count = args.images if split == (args.split or "train") else None
        content, drawn = write_dataset(
            args.dataset,
            split,
            args.output,
            count=count,
            seed=args.seed,
            workers=args.workers,
            layouts=args.layouts,
        )
        place = Path(args.output) / args.dataset / split
        print(f"{place}: {'drawn' if drawn else 'complete, nothing to do'}")
        if "layouts" in content["info"]["drawn"] and args.layouts is None:
            print("from the bundled layouts, a few hundred people of COCO; --layouts DIR for more")
        measured[split] = measure_difficulty(content)
    print(format_table(measured))


def format_table(measured: dict[str, dict[str, float]]) -> str:
    """Figures by row, splits by column."""
    lines = [f"{'':18}" + "".join(f"{split:>10}" for split in measured)]
    for key in next(iter(measured.values())):
        values = [figures[key] for figures in measured.values()]
        cells = [f"{v:10d}" if isinstance(v, int) else f"{v:10.3f}" for v in values]
        lines.append(f"{key:18}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
