#!/usr/bin/env python
"""Writes a trained network, people assembled, as one file: ONNX or TorchScript.

    python tools/export_model.py --config-file configs/MultiPoseNet/R_50.yaml --format onnx \
        --output exported --opts MODEL.WEIGHTS output/R_50/model_final.pth
    python tools/export_model.py --config-file C --format onnx --precision int8 --output exported \
        --calibration photos/ --opts MODEL.WEIGHTS W

The file takes an image (height, width, 3) uint8 of any size and gives boxes, scores, pose_scores,
keypoints (people, K, 3) in its pixels, and person_mask if the network has one. It is run on
--images and compared with PyTorch before it gets its name, OUTPUT/<config>_<precision>.onnx or .pt:
see docs/export.md.
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
from mpn_d2.engine.image_drawing import find_images
from mpn_d2.engine.inference_model import check_inference_config, load_trained_model
from mpn_d2.export.files import FORMATS
from mpn_d2.export.network import regresses
from mpn_d2.export.writing import PRECISIONS, check_export, write_export
from mpn_d2.utils.files import check_folder

SAMPLE = Path(__file__).resolve().parents[1] / "datasets" / "coco_sample"
# Images for the ranges of eight bits: more make no difference that is worth their time.
MOST_CALIBRATION = 64


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config that the weights fit")
    parser.add_argument("--format", choices=sorted(FORMATS), default="onnx")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the file")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp16 halves the file; int8 (onnx) quantizes it after the training",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        default=[str(SAMPLE / "train"), str(SAMPLE / "val")],
        help="images, folders, globs to compare on (default: the bundled photographs)",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="PATH",
        help=f"images for --precision int8, like those of the task; up to {MOST_CALIBRATION} are "
        "taken (default: those of --images)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs over the config, last on the line; MODEL.WEIGHTS names the weights",
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    cfg = load_config(config_file(args.config_file), args.opts)
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    check_export(cfg, args.format, args.precision)
    check_inference_config(cfg)
    check_folder(args.output)
    images = read_images(args.images, cfg.INPUT.FORMAT)
    calibration = []
    if args.precision == "int8":
        chosen = args.calibration or args.images
        calibration = read_images(chosen, cfg.INPUT.FORMAT, MOST_CALIBRATION)
    model = load_trained_model(cfg, cfg.MODEL.WEIGHTS)
    name = f"{Path(args.config_file).stem}_{args.precision}{FORMATS[args.format]}"
    path = Path(args.output, name)
    if not regresses(cfg) and cfg.MODEL.ASSEMBLER.MATCHING != "mutual_best":
        print(
            f"MODEL.ASSEMBLER.MATCHING {cfg.MODEL.ASSEMBLER.MATCHING} becomes mutual_best in the "
            "file, and is compared with PyTorch's mutual_best"
        )
    written = write_export(
        cfg,
        model,
        path,
        kind=args.format,
        precision=args.precision,
        images=images,
        calibration=[pixels for _, pixels in calibration],
    )
    print(f"compared with PyTorch: {written.agreement.summary()}")
    if written.agreement.people == 0:
        print("no person was compared: give --images on which the network finds people")
    print(f"{path}: {written.size / 2**20:.1f} MiB, written in {written.seconds:.1f} s")


def read_images(
    paths: Sequence[str], image_format: str, most: int | None = None
) -> list[tuple[str, np.ndarray]]:
    """Name and pixels of all images, or of so many of them; a ValueError names one that cannot be
    read, or no image."""
    files, missing = find_images(paths)
    if missing or not files:
        raise ValueError(f"no images: {'; '.join(missing) or 'none named'}")
    files = files if most is None else spread(files, most)
    return [(Path(file).name, read_pose_image(file, image_format)) for file in files]


def spread(items: Sequence, most: int) -> list:
    """At most that many, evenly from all."""
    step = max(len(items) / most, 1.0)
    return [items[int(i * step)] for i in range(min(len(items), most))]


if __name__ == "__main__":
    arguments = parse_args()
    run_command(lambda: main(arguments))
