#!/usr/bin/env python
"""Draws people on images: boxes, skeletons and the person mask; writes them as COCO JSON too.

python tools/demo.py --config-file configs/quick/demo.yaml --input photos/ "more/*.jpg" \
    --output drawn --json people.json --opts MODEL.WEIGHTS output/demo/model_final.pth
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from mpn_d2.config import load_config
from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.evaluation.pose_evaluator import export_instances, write_json
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.visualize import draw_people, write_png

# What a folder is searched for; files that are named themselves may end as they like.
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
COCO_PERSON = 1  # category_id of people in COCO's files


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config that the weights fit")
    parser.add_argument("--input", nargs="+", required=True, help="images, folders, globs")
    parser.add_argument("--output", required=True, help="folder for the drawn images (PNG)")
    parser.add_argument("--json", help="file for the people in COCO's result format")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        help="least box score of people that are drawn and written, 0 to 1 (default: 0.5); below "
        "MODEL.ASSEMBLER.BOX_SCORE_THRESH a box has no skeleton",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default: 1)")
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs over the config, last on the line; MODEL.WEIGHTS names the weights",
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """Draws all images; exit code 1 where some could not be read."""
    _check_arguments(args)
    files, missing = find_images(args.input)
    if not files:
        raise ValueError(f"no image found: {'; '.join(missing)}")
    targets = name_outputs(files, args.output)
    image_ids = name_ids(files)
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    predictor = ImagePredictor(cfg, cfg.MODEL.WEIGHTS)
    os.makedirs(args.output, exist_ok=True)
    if args.json:
        os.makedirs(os.path.dirname(args.json) or ".", exist_ok=True)

    failures = list(missing)
    for line in failures:
        print(line, file=sys.stderr)
    rows: list[dict] = []
    drawn = 0
    with tqdm(total=len(files), unit="image", disable=None) as progress:
        for names, images in _read_batches(files, args.batch_size, failures, progress):
            for name, image, result in zip(names, images, predictor(images), strict=True):
                people = result["instances"].to("cpu")
                people = people[people.scores >= args.confidence_threshold]
                sem_seg = result.get("sem_seg")
                picture = draw_people(image, people, skeleton, sem_seg, args.confidence_threshold)
                write_png(targets[name], picture)
                rows += people_rows(people, image_ids[name], name)
                drawn += 1
            progress.update(len(names))
    if args.json:
        write_json(args.json, rows)
    where = args.output + (f", people in {args.json}" if args.json else "")
    print(f"{drawn} images with {len(rows)} people drawn in {where}")
    if failures:
        print(f"{len(failures)} inputs failed (named above)", file=sys.stderr)
        sys.exit(1)


def _check_arguments(args: argparse.Namespace) -> None:
    if not 0 <= args.confidence_threshold <= 1:
        raise ValueError(f"--confidence-threshold is {args.confidence_threshold}: 0 to 1 is needed")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}: at least 1 is needed")
    if args.json and os.path.isdir(args.json):
        raise ValueError(f"--json {args.json} is a folder: name a file")


def find_images(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files named by paths, folders (not their subfolders) and globs, each once.

    Returns:
        (paths in the order given, sorted within folders and globs; one line for each input that
        names nothing).
    """
    found: dict[str, str] = {}
    missing = []
    for given in inputs:
        # A file may have glob characters in its name.
        matches = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        paths = [path for match in matches for path in _images_at(match)]
        for path in paths:
            found.setdefault(os.path.realpath(path), path)
        if not paths:
            missing.append(f"{given}: {'no images in it' if matches else 'not found'}")
    return list(found.values()), missing


def _images_at(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted(
        os.path.join(path, name)
        for name in os.listdir(path)
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    )


def name_outputs(files: Sequence[str], folder: str) -> dict[str, str]:
    """The PNG of each file: FOLDER/<stem>.png, with _2, _3 ... where a stem comes again.

    Raises:
        ValueError: a picture would overwrite an input.
    """
    inputs = {os.path.realpath(file) for file in files}
    # Some file systems do not tell a.png from A.png.
    taken: set[str] = set()
    targets = {}
    for file in files:
        stem = Path(file).stem
        name, count = stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name.casefold())
        targets[file] = os.path.join(folder, f"{name}.png")
        if os.path.realpath(targets[file]) in inputs:
            raise ValueError(f"--output {folder} would overwrite {targets[file]}: name another")
    return targets


def name_ids(files: Sequence[str]) -> dict[str, int | str]:
    """`image_id` of each file: its stem where that is a number, as in COCO, else its name.

    A file whose id another one already has gets its path.
    """
    ids: dict[str, int | str] = {}
    taken: set[int | str] = set()
    for file in files:
        path = Path(file)
        numeric = path.stem.isascii() and path.stem.isdecimal()
        image_id: int | str = int(path.stem) if numeric else path.name
        ids[file] = file if image_id in taken else image_id
        taken.add(ids[file])
    return ids


def _read_batches(
    files: Sequence[str], batch_size: int, failures: list[str], progress: tqdm
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Readable images, RGB, up to batch_size at a time; the others are named and counted."""
    names: list[str] = []
    images: list[np.ndarray] = []
    for file in files:
        try:
            images.append(read_pose_image(file, "RGB"))
            names.append(file)
        except (FileNotFoundError, ValueError) as error:
            failures.append(str(error))
            tqdm.write(failures[-1], file=sys.stderr)
            progress.update()
        if len(images) == batch_size:
            yield names, images
            names, images = [], []
    if images:
        yield names, images


def people_rows(people: Instances, image_id: int | str, file_name: str) -> list[dict]:
    """COCO results of one image, a row for each person.

    `score` is the box's and `pose_score` the pose's; a person without any keypoint has zeros.
    """
    rows = []
    for i in range(len(people)):
        (row,), poses = export_instances(people[i : i + 1], image_id)
        row["category_id"] = COCO_PERSON
        if people.has("pred_keypoints"):
            row["keypoints"] = [0.0] * people.pred_keypoints[i].numel()
            row["pose_score"] = 0.0
        for pose in poses:
            row.update(keypoints=pose["keypoints"], pose_score=pose["score"])
        rows.append({**row, "file_name": file_name})
    return rows


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
