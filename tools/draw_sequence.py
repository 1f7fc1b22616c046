#!/usr/bin/env python
"""Draws what a recurrent decoder writes at each step of an image.

python tools/draw_sequence.py --config-file configs/UnifiedAssociation/quick_crowd.yaml \
    --input photo.png --output steps.png MODEL.WEIGHTS model_final.pth

One picture a person: her maps over the dim image, her joints, the score that there is somebody.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpn_d2.config import load_config
from mpn_d2.config_files import config_file
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.sequence_pictures import SequenceDrawer
from mpn_d2.utils.visualize import write_png


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C")
    parser.add_argument("--input", required=True, metavar="F", help="an image")
    parser.add_argument("--output", required=True, metavar="F.png")
    parser.add_argument("--columns", type=int, default=4, help="pictures in a row (default: 4)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    if args.columns < 1:
        raise ValueError(f"--columns {args.columns}: at least 1 is needed")
    if not args.output.lower().endswith(".png"):
        raise ValueError(f"--output {args.output}: name a .png file")
    cfg = load_config(config_file(args.config_file), args.opts)
    image = read_pose_image(args.input, "RGB")
    if "MODEL.WEIGHTS" not in args.opts[::2]:
        raise ValueError("no weights to draw with: give MODEL.WEIGHTS model_final.pth")
    drawer = SequenceDrawer(cfg, cfg.MODEL.WEIGHTS)
    Path(args.output).resolve().parent.mkdir(parents=True, exist_ok=True)
    write_png(args.output, drawer(image, args.columns))
    print(f"steps in {args.output}")


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
