#!/usr/bin/env python
"""Draws how an assembler gives the keypoints of one image to its people, and why.

    python tools/draw_assignment.py --annotations person_keypoints_val2017.json --image-id 785 \
        --images val2017 --output picture.png
    python tools/draw_assignment.py --annotations F --image-id I --evidence prn \
        --config-file configs/MultiPoseNet/PRN_coco.yaml --weights W --output picture.png

Above, all keypoints (a colour each type) and boxes (a colour each person), and the result: red
crosses are joints that somebody else owns, hollow ones went to nobody. Below, what each box makes
of it: the output grid of a PRN and its like, or each keypoint as large as the pair's score. Without
--images, or where the image is not there, it is drawn on a plain canvas.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.data.people_file import load_people_file, person_id
from mpn_d2.engine.assembler_weights import assembler_options, load_assembler
from mpn_d2.engine.assignment import assign
from mpn_d2.engine.cli import run_command
from mpn_d2.evaluation.scenes import (
    TRUTH,
    Scene,
    Skipped,
    annotated_scenes,
    check_source,
    with_boxes,
    with_keypoints,
)
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.assignment_picture import draw_assignment
from mpn_d2.utils.visualize import write_png

REPO = Path(__file__).resolve().parents[1]
# Brightness of the canvas of an image that is not there, before it is dimmed.
PLAIN = 80
_MOST_NAMED = 5


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, metavar="F", help="COCO keypoint JSON")
    parser.add_argument("--image-id", required=True, metavar="I", help="id in the annotations")
    parser.add_argument("--images", metavar="DIR", help="folder of the images")
    parser.add_argument("--keypoints", default=TRUTH, metavar="gt|F", help="as tools/assemble.py")
    parser.add_argument("--boxes", default=TRUTH, metavar="gt|F", help="as tools/assemble.py")
    parser.add_argument(
        "--config-file",
        metavar="C",
        default=str(REPO / "configs" / "MultiPoseNet" / "Assembler_coco.yaml"),
        help="default: our assembler",
    )
    parser.add_argument("--evidence", metavar="E", help="MODEL.ASSEMBLER.EVIDENCE")
    parser.add_argument("--matching", metavar="M", help="MODEL.ASSEMBLER.MATCHING")
    parser.add_argument("--weights", metavar="W", help="of the assembler; default: the config's")
    parser.add_argument("--output", required=True, metavar="F.png")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    cfg = load_config(
        args.config_file,
        assembler_options(args.config_file, args.opts, args.evidence, args.matching),
    )
    cfg.freeze()
    if args.images and not Path(args.images).is_dir():
        raise FileNotFoundError(f"--images {args.images}: there is no such folder")
    check_source("--keypoints", args.keypoints)
    check_source("--boxes", args.boxes)
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    dicts = load_people_file(args.annotations, skeleton, args.images)
    record = find_image(dicts, args.image_id, args.annotations)
    assembler = load_assembler(cfg, args.weights)
    assignment = assign(assembler, load_scene(args, cfg, dicts, record))
    picture = draw_assignment(read_canvas(record, args.images), assignment, skeleton)
    Path(args.output).resolve().parent.mkdir(parents=True, exist_ok=True)
    write_png(args.output, picture)
    print(f"{args.output}: {picture.shape[1]} x {picture.shape[0]} pixels")


def find_image(dicts: list[dict], image_id: str, path: str) -> dict:
    """The dataset dict of an image; a ValueError names some that there are."""
    for record in dicts:
        if str(record["image_id"]) == image_id:
            return record
    some = ", ".join(str(record["image_id"]) for record in dicts[:_MOST_NAMED])
    raise ValueError(
        f"--image-id {image_id} is not in {path}: it has {len(dicts)} images, {some} and so on"
    )


def load_scene(args: argparse.Namespace, cfg: CfgNode, dicts: list[dict], record: dict) -> Scene:
    """What is assembled, from the sources that the arguments name; prints what was skipped."""
    num_keypoints = get_skeleton(cfg.MODEL.SKELETON).num_keypoints
    skipped = Skipped()
    given = args.keypoints != TRUTH or args.boxes != TRUTH
    # Files are read with all images, so that only what is truly unknown counts as skipped.
    scenes = annotated_scenes(dicts if given else [record], num_keypoints)
    if args.keypoints != TRUTH:
        scenes = with_keypoints(scenes, args.keypoints, num_keypoints, skipped, person_id())
    if args.boxes != TRUTH:
        scenes = with_boxes(scenes, args.boxes, skipped, person_id())
    for line in skipped.lines():
        print(line)
    return next(scene for scene in scenes if scene.image_id == record["image_id"])


def read_canvas(record: dict, images: str | None) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the image, or grey of its size where it is not there."""
    size = (record["height"], record["width"])
    if images and Path(record["file_name"]).is_file():
        return read_pose_image(record["file_name"], "RGB", size=size, image_id=record["image_id"])
    if images:
        print(f"{record['file_name']} is not there: drawn on a plain canvas")
    return np.full((*size, 3), PLAIN, dtype=np.uint8)


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
