#!/usr/bin/env python
"""COCO's metrics of a results file, without a model and without images.

    python tools/evaluate.py --results keypoints_results.json --annotations F.json
    python tools/evaluate.py --results R.json --annotations F.json --curves curves/ --output M.json

R.json holds COCO results of people (.gz too): keypoints_results.json or coco_instances_results.json
of an evaluation, the people of tools/demo.py or of tools/assemble.py, or anybody else's. Poses are
rated by `pose_score` where rows have that, boxes and all others by `score`. Figures are those of
pycocotools on the same file (of the category of people alone). All images of F.json count; who is
found in an image without people is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpn_d2.engine.cli import run_command
from mpn_d2.evaluation.curves import Curves, write_curves
from mpn_d2.evaluation.pose_evaluator import CURVE_FILES
from mpn_d2.evaluation.results_file import TASKS, load_results
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.files import check_file, check_folder
from mpn_d2.utils.results import flat_metrics, write_results


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--results", required=True, metavar="R.json", help="people in COCO's result format")
    add("--annotations", required=True, metavar="F", help="COCO file with the truth, .gz too")
    add(
        "--gt-boxes-only",
        action="store_true",
        help="only images with annotated people (of val2017: 2,693 of 5,000, as in the paper); "
        "false people in others do not count",
    )
    add("--tasks", nargs="+", choices=TASKS, help="default: what the rows hold")
    add(
        "--skeleton",
        default="coco",
        metavar="S",
        help="coco, crowdpose, mpii or a YAML file: gives the sigmas of OKS (default: coco)",
    )
    add(
        "--oks-overlap",
        nargs="+",
        type=float,
        default=[],
        metavar="B",
        help="keypoint AP by the OKS between people, too: rising bounds, e.g. 0.1 0.3",
    )
    add(
        "--curves",
        metavar="PNG|DIR",
        help="recall-precision curves, numbers in a JSON beside them; in a folder, a file a task",
    )
    add("--output", metavar="F.json", help="the figures, 0 to 100, null where not defined")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    check_arguments(args)
    evaluator, found = load_results(
        args.results,
        args.annotations,
        get_skeleton(args.skeleton),
        args.tasks,
        overlap_edges=args.oks_overlap,
    )
    truth = evaluator.truth
    if not truth.anns:
        raise ValueError(f"{args.annotations}: nobody is annotated, nothing to compare with")
    for note, count in found.notes.items():
        print(f"{args.results}: {count} {note}")
    images = sorted(truth.imgs)
    if args.gt_boxes_only:
        images = [i for i in images if truth.imgToAnns[i]]
        print(f"{len(images)} of {len(truth.imgs)} images have annotated people and count")
    results = evaluator.score_rows(found.rows, images)
    if args.curves:
        save_curves(args.curves, evaluator.curves())
    if args.output:
        write_results(
            args.output,
            flat_metrics(results),
            seconds=time.perf_counter() - start,
            seed=0,  # nothing is random
            images=len(images),
            notes=dict(found.notes),
        )
        print(f"figures in {args.output}")


def check_arguments(args: argparse.Namespace) -> None:
    """ValueError for arguments that cannot be meant."""
    if args.curves and not is_picture(args.curves) and Path(args.curves).is_file():
        raise ValueError(f"--curves {args.curves} is a file: name a folder, or a .png")
    if args.output:
        check_file("--output", args.output)
    if args.curves and is_picture(args.curves):
        check_file("--curves", args.curves)
    elif args.curves:
        check_folder(args.curves)
    read = {Path(args.results).resolve(), Path(args.annotations).resolve()}
    output = Path(args.output).resolve() if args.output else None
    if output in read:
        raise ValueError(f"--output {args.output} would overwrite what is read: name another file")
    for file in curve_files(args.curves) if args.curves else ():
        if file.resolve() in read:
            raise ValueError(f"--curves {args.curves} would overwrite {file}: name another")
        if file.resolve() == output:
            raise ValueError(f"--curves {args.curves} writes {file}, too: name another --output")


def is_picture(target: str) -> bool:
    """Whether --curves names one picture, not a folder."""
    return target.lower().endswith(".png")


def curve_files(target: str) -> list[Path]:
    """All that `save_curves` may write: pictures, and the numbers beside them."""
    pictures = [Path(target)] if is_picture(target) else []
    pictures = pictures or [Path(target, name) for name in CURVE_FILES.values()]
    return [*pictures, *(picture.with_suffix(".json") for picture in pictures)]


def save_curves(target: str, curves: dict[str, Curves]) -> None:
    """One picture with all tasks, or in a folder one for each."""
    if not curves:
        print("no curves: nothing of that kind is annotated")
        return
    if is_picture(target):
        write_curves(target, curves)
    else:
        for task, found in curves.items():
            write_curves(Path(target, CURVE_FILES[task]), {task: found})
    print(f"curves in {target}")


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
