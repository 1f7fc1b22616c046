#!/usr/bin/env python
"""Draws the people that several networks find in the same images, side by side.

python tools/draw_side_by_side.py --input 1.png 2.png --output sheet.png \
    --network "loop 2" configs/UnifiedAssociation/quick_crowd.yaml loop_2/model_final.pth \
    --network "tags" configs/UnifiedAssociation/quick_AE.yaml tags/model_final.pth

One row an image: the image itself, then each network's people. Any system of the package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from mpn_d2.config import load_config
from mpn_d2.config_files import config_file
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.engine.sequence_pictures import titled
from mpn_d2.engine.showcase import contact_sheet
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.visualize import draw_people, write_png


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, nargs="+", metavar="F", help="images")
    parser.add_argument("--output", required=True, metavar="F.png")
    parser.add_argument(
        "--network",
        required=True,
        nargs=3,
        action="append",
        metavar=("TITLE", "CONFIG", "WEIGHTS"),
        help="once for each network",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        metavar="T",
        help="people who score less are left out (default: 0.3)",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs of all networks"
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    if not args.output.lower().endswith(".png"):
        raise ValueError(f"--output {args.output}: name a .png file")
    if not 0 <= args.score_threshold <= 1:
        raise ValueError(f"--score-threshold {args.score_threshold}: 0 to 1 is needed")
    images = [read_pose_image(file, "RGB") for file in args.input]
    columns = [[titled(x, Path(file).name) for x, file in zip(images, args.input, strict=True)]]
    for title, config, weights in args.network:
        cfg = load_config(config_file(config), args.opts)
        predict, skeleton = ImagePredictor(cfg, weights), get_skeleton(cfg.MODEL.SKELETON)
        columns.append([])
        for image in images:
            people = predict([image])[0]["instances"].to("cpu")
            shown = people[people.scores >= args.score_threshold]
            drawn = draw_people(image, shown, skeleton, boxes=False, score_threshold=0.0)
            columns[-1].append(titled(drawn, f"{title}: {len(shown)}"))
    rows: list[np.ndarray] = [picture for row in zip(*columns, strict=True) for picture in row]
    Path(args.output).resolve().parent.mkdir(parents=True, exist_ok=True)
    write_png(args.output, contact_sheet(rows, columns=len(columns)))
    print(f"{len(images)} images by {len(args.network)} networks in {args.output}")


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
