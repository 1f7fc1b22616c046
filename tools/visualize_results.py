#!/usr/bin/env python
"""Shows a results file beside the truth, the worst images first: pictures and one HTML page.

    python tools/visualize_results.py --results keypoints_results.json --annotations F.json \
        --images val2017/ --output seen/

People and found poses are paired one to one so that the sum of their OKS is the largest (from OKS
0.1 on). An image is as good as the sum of the OKS of its pairs, divided by the number of annotated
people (with labelled joints) and of false poses: whoever is missed and whoever is nobody count as
OKS 0. Poses below --score-threshold are left out of that, and of the pictures; COCO's figures on
top of the page are of all. seen/index.html shows the worst; its pictures begin with their rank.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mpn_d2  # isort: skip  # first: it silences what Detectron2 warns of  # noqa: F401

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances, Keypoints
from tqdm import tqdm

from mpn_d2.data.image_file import read_pose_image
from mpn_d2.engine.cli import run_command
from mpn_d2.evaluation.image_figures import ImageFigures, image_figures
from mpn_d2.evaluation.results_file import CocoResults, load_results
from mpn_d2.structures.skeleton import Skeleton, get_skeleton
from mpn_d2.utils.comparison_pictures import draw_comparison
from mpn_d2.utils.files import check_folder, write_text_atomically
from mpn_d2.utils.results import format_figure
from mpn_d2.utils.results_page import PagePicture, results_page
from mpn_d2.utils.visualize import write_png

PAGE = "index.html"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--results", required=True, metavar="R.json", help="poses in COCO's result format, .gz too")
    add("--annotations", required=True, metavar="F", help="COCO file with the truth, .gz too")
    add("--images", required=True, metavar="DIR", help="folder of the images")
    add("--output", required=True, metavar="DIR", help="where page and pictures are written")
    add("--most", type=int, default=50, metavar="N", help="images shown, worst first (default: 50)")
    add(
        "--score-threshold",
        type=float,
        default=0.2,
        metavar="T",
        help="poses with a lower score are not looked at (default: 0.2)",
    )
    add(
        "--skeleton",
        default="coco",
        metavar="S",
        help="coco, crowdpose, mpii or a YAML file (default: coco)",
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """Exit code 1 where an image could not be read; the page says which."""
    check_arguments(args)
    skeleton = get_skeleton(args.skeleton)
    evaluator, found = load_results(args.results, args.annotations, skeleton)
    if "keypoints" not in found.rows:
        raise ValueError(f"{args.results}: no row has 'keypoints': poses are needed")
    for note, count in found.notes.items():
        print(f"{args.results}: {count} {note}")
    metrics = evaluator.score_rows(found.rows)
    figures = image_figures(evaluator.scorers["keypoints"], args.score_threshold)
    if not all("bbox" in row for row in found.rows["keypoints"]):
        for pose in (pose for image in figures for pose in image.poses):
            # pycocotools' own box reaches to 0, 0 where a joint was not found.
            pose["bbox"] = box_of_joints(pose["keypoints"])
    failures: list[str] = []
    sections = []
    for rank, image in enumerate(tqdm(figures[: args.most], unit="image", disable=None), start=1):
        sections.append(show_image(rank, image, args, skeleton, failures))
    page = results_page(
        f"{Path(args.results).name} against {Path(args.annotations).name}",
        summary(args, figures, found),
        {"COCO (0 to 100)": metrics_table(metrics)},
        sections,
    )
    write_text_atomically(Path(args.output, PAGE), page)
    print(f"{len(sections)} of {len(figures)} images, the worst first: {args.output}/{PAGE}")
    if failures:
        print(f"{len(failures)} images failed (named above)", file=sys.stderr)
        sys.exit(1)


def check_arguments(args: argparse.Namespace) -> None:
    """ValueError or FileNotFoundError for arguments that cannot be meant."""
    if args.most < 1:
        raise ValueError(f"--most is {args.most}: at least 1 is needed")
    if not math.isfinite(args.score_threshold):
        raise ValueError(f"--score-threshold is {args.score_threshold}: a number is needed")
    if not Path(args.images).is_dir():
        raise FileNotFoundError(f"--images {args.images}: no such folder")
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise ValueError(f"--output {args.output} is a file: name a folder")
    check_folder(args.output)


def show_image(
    rank: int,
    figures: ImageFigures,
    args: argparse.Namespace,
    skeleton: Skeleton,
    failures: list[str],
) -> PagePicture:
    """Draws an image; one that cannot be read is named, and gets a part without a picture."""
    entry = figures.image
    name, problem = f"{rank:04d}_{_file_stem(entry['file_name'])}.png", ""
    try:
        image = read_pose_image(
            Path(args.images, entry["file_name"]),
            "RGB",
            size=(entry["height"], entry["width"]),
            image_id=entry["id"],
        )
        Path(args.output).mkdir(parents=True, exist_ok=True)
        write_png(Path(args.output, name), draw(image, figures, skeleton))
    except (FileNotFoundError, ValueError) as error:
        problem = str(error)
        failures.append(problem)
        tqdm.write(problem, file=sys.stderr)
    count = len(figures.people)
    return PagePicture(
        title=f"{rank}. {entry['file_name']} (id {entry['id']})",
        figures=f"quality {figures.quality:.3f}; {count} people, {len(figures.missed)} missed; "
        f"{len(figures.poses)} poses, {len(figures.false)} false",
        picture=None if problem else name,
        problem=problem,
        rows=people_table(figures),
    )


def draw(image: np.ndarray, figures: ImageFigures, skeleton: Skeleton) -> np.ndarray:
    """Truth and poses of an image, see `draw_comparison`."""
    size = image.shape[:2]
    truth = Instances(size)
    truth.gt_boxes = _boxes([p["bbox"] for p in figures.people])
    truth.gt_keypoints = Keypoints(_keypoints(figures.people, skeleton))
    poses = Instances(size)
    poses.pred_boxes = _boxes([p["bbox"] for p in figures.poses])
    poses.scores = torch.tensor([float(p["score"]) for p in figures.poses])
    poses.pred_keypoints = _keypoints(figures.poses, skeleton)
    return draw_comparison(
        image,
        truth,
        poses,
        figures.pose_of,
        figures.oks,
        skeleton,
        ignored_boxes=_boxes([p["bbox"] for p in figures.ignored]).tensor,
        excused=figures.excused,
    )


def people_table(figures: ImageFigures) -> list[list[str]]:
    """OKS and score by person; empty without people."""
    rows = [["person", "OKS", "pose's score"]]
    for place, (oks, pose) in enumerate(zip(figures.oks, figures.pose_of, strict=True), start=1):
        if pose is None:
            rows.append([str(place), "missed", "-"])
        else:
            rows.append([str(place), f"{oks:.3f}", f"{figures.poses[pose]['score']:.3f}"])
    return rows if len(rows) > 1 else []


def metrics_table(metrics: dict[str, dict]) -> list[list[str]]:
    """One row a task, one column a metric that any has."""
    names = list(dict.fromkeys(name for of_task in metrics.values() for name in of_task))
    rows = [["", *names]]
    for task, of_task in metrics.items():
        cells = [format_figure(of_task[n]).strip() if n in of_task else "" for n in names]
        rows.append([task, *cells])
    return rows


def summary(
    args: argparse.Namespace, figures: Sequence[ImageFigures], found: CocoResults
) -> list[str]:
    """Texts on top of the page."""
    people = sum(len(f.people) for f in figures)
    missed, false = (sum(len(getattr(f, what)) for f in figures) for what in ("missed", "false"))
    pairs = people - missed
    mean = f"{sum(sum(f.oks) for f in figures) / pairs:.3f}" if pairs else "-"
    return [
        f"{len(figures)} images, {people} people with labelled joints: {missed} missed, "
        f"{pairs} paired with a pose (mean OKS {mean}); {false} poses are false. Poses that score "
        f"less than {args.score_threshold:g} are not among these.",
        "Quality of an image: the sum of its people's OKS (0 for those missed) / (people + false "
        "poses). Truth on the left, what was found on the right: box and joints of a person and "
        "her pose have one colour and number, edges the colours of the sides; red: missed; white: "
        "false; grey: ignored (crowds, nobody's joints labelled).",
        *(f"{count} {note}." for note, count in found.notes.items()),
    ]


def box_of_joints(keypoints: Sequence[float]) -> list[float]:
    """x, y, width, height around the joints that are not 0, 0, 0; all 0 without any."""
    joints = np.array(keypoints, dtype=float).reshape(-1, 3)
    places = joints[(joints != 0).any(axis=1), :2]
    if not len(places):
        return [0.0] * 4
    low, high = places.min(axis=0), places.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _file_stem(file_name: str) -> str:
    return re.sub(r"[^\w.-]", "_", Path(file_name).stem)


def _boxes(boxes: Sequence[Sequence[float]]) -> Boxes:
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Boxes(BoxMode.convert(tensor, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))


def _keypoints(rows: Sequence[dict], skeleton: Skeleton) -> torch.Tensor:
    """(N, K, 3) continuous pixels of COCO's indices; 0, 0, 0 stays as it is."""
    keypoints = torch.tensor([row["keypoints"] for row in rows], dtype=torch.float32)
    keypoints = keypoints.reshape(-1, skeleton.num_keypoints, 3)
    given = (keypoints != 0).any(dim=-1, keepdim=True)
    return torch.cat([keypoints[..., :2] + 0.5 * given, keypoints[..., 2:]], dim=-1)


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
