#!/usr/bin/env python
"""People from anyone's keypoints and boxes: gives keypoints to person boxes, without an image.

    python tools/assemble.py --annotations person_keypoints_val2017.json --output poses.json
    python tools/assemble.py --annotations F --keypoints other.json --boxes gt --output R.json
    python tools/assemble.py --annotations F --keypoints gt --boxes gt --noise
    python tools/assemble.py --annotations F --keypoints gt --boxes gt --error-budget

Without more, our assembler with the weights that come with the package does it. Keypoints come from
the annotations, from COCO results (poses, taken apart) or from a list
[{"image_id", "keypoints": [[type, x, y, score], ...]}] in pixel indices; boxes from the annotations
or from COCO results. Writes COCO results, prints COCO's table and the share of labelled joints that
came to their owner. A keypoint goes to one box at most, and none is invented.
"""

from __future__ import annotations

import argparse
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.data.datasets import has_keypoints
from mpn_d2.data.people_file import PEOPLE_FILE, load_people_file, person_id
from mpn_d2.engine.assembler_weights import assembler_options, load_assembler
from mpn_d2.engine.cli import run_command
from mpn_d2.evaluation.assembly import assemble_scenes, evaluate_poses
from mpn_d2.evaluation.error_budget import error_budget, promises_one_to_one
from mpn_d2.evaluation.noise import NOISE_SEED, noise_table
from mpn_d2.evaluation.pose_evaluator import export_instances, write_json
from mpn_d2.evaluation.scenes import (
    TRUTH,
    Scene,
    Skipped,
    annotated_scenes,
    check_source,
    to_instances,
    with_boxes,
    with_keypoints,
)
from mpn_d2.structures.outputs import AssembledPoses
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.results import format_figure, read_results, update_results

REPO = Path(__file__).resolve().parents[1]


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--annotations", required=True, metavar="F", help="COCO keypoint JSON, .gz too; no images")
    add("--keypoints", default=TRUTH, metavar="gt|F", help="annotated ones, or a JSON; default: gt")
    add("--boxes", default=TRUTH, metavar="gt|F", help="annotated ones, or COCO results")
    add(
        "--config-file",
        metavar="C",
        default=str(REPO / "configs" / "MultiPoseNet" / "Assembler_coco.yaml"),
        help="default: our assembler",
    )
    add("--evidence", metavar="E", help="MODEL.ASSEMBLER.EVIDENCE (prn, ucr, max, identity ...)")
    add("--matching", metavar="M", help="MODEL.ASSEMBLER.MATCHING (mutual_best, hungarian ...)")
    add("--weights", metavar="W", help="checkpoint with the assembler; default: the config's")
    add("--output", metavar="R.json", help="where the people are written as COCO results")
    add("--noise", action="store_true", help="also a table of degraded annotations, fixed seed")
    add(
        "--error-budget",
        action="store_true",
        help="also tables of what costs how much, and of true and given keypoints and boxes",
    )
    add(
        "--filter-boxes",
        action="store_true",
        help="leave out annotated boxes of crowds and of people without keypoints",
    )
    add("--results", metavar="F", help="the figures go into this JSON, too; needs --name")
    add("--name", default="", metavar="G", help="group of the figures in it")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options, at the end")
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    start = time.perf_counter()
    check_arguments(args)
    cfg = load_config(
        args.config_file,
        assembler_options(args.config_file, args.opts, args.evidence, args.matching),
    )
    cfg.freeze()
    dicts = load_people_file(args.annotations, get_skeleton(cfg.MODEL.SKELETON))
    if (args.noise or args.error_budget) and not annotates_people(dicts):
        raise ValueError(
            f"{args.annotations}: nobody has labelled keypoints, which --noise and --error-budget "
            "compare with: give annotations with keypoints"
        )
    assembler = load_assembler(cfg, args.weights)
    sources = load_sources(args, cfg, dicts)
    scenes = sources[chosen_source(args)]
    poses = assemble_scenes(assembler, scenes, one_to_one=announce(assembler, scenes))
    if args.output:
        write_poses(args.output, scenes, poses)
    figures = evaluate(cfg, dicts, scenes, poses)
    if args.noise:
        figures.update(
            noise_table(cfg, assembler, dicts, PEOPLE_FILE, filter_boxes=args.filter_boxes)
        )
    if args.error_budget:
        figures.update(
            error_budget(
                cfg,
                assembler,
                dicts,
                PEOPLE_FILE,
                filter_boxes=args.filter_boxes,
                from_files=sources,
            )
        )
    if args.results:
        seconds = time.perf_counter() - start
        update_results(args.results, args.name, figures, seconds=seconds, seed=NOISE_SEED)


def check_arguments(args: Namespace) -> None:
    """ValueError or FileNotFoundError for arguments that cannot be meant."""
    if args.noise and chosen_source(args) != TRUTH:
        raise ValueError("--noise degrades annotations: give --keypoints gt --boxes gt")
    if args.results and not args.name:
        raise ValueError("--results needs --name, which the figures are kept under")
    if args.results:
        read_results(args.results)
    check_source("--keypoints", args.keypoints)
    check_source("--boxes", args.boxes)


def annotates_people(dicts: list[dict]) -> bool:
    """Whether there is any truth to compare with."""
    return any(has_keypoints(a) for record in dicts for a in record["annotations"])


def chosen_source(args: Namespace) -> str:
    """Which of `load_sources` the arguments ask for."""
    files = args.keypoints != TRUTH, args.boxes != TRUTH
    return {(False, False): TRUTH, (True, False): "keypoints", (False, True): "boxes"}.get(
        files, "both"
    )


def load_sources(args: Namespace, cfg: CfgNode, dicts: list[dict]) -> dict[str, list[Scene]]:
    """Scenes by what of them comes from a file; prints what of the files was skipped.

    Keys: "gt" (nothing) and, where the arguments name files, "keypoints", "boxes", "both".
    """
    num_keypoints = get_skeleton(cfg.MODEL.SKELETON).num_keypoints
    truth = annotated_scenes(dicts, num_keypoints, filter_boxes=args.filter_boxes)
    sources = {TRUTH: truth}
    if args.keypoints != TRUTH:
        skipped = Skipped()
        sources["keypoints"] = with_keypoints(
            truth, args.keypoints, num_keypoints, skipped, person_id()
        )
        print_skipped(args.keypoints, skipped)
    if args.boxes != TRUTH:
        skipped = Skipped()
        sources["boxes"] = with_boxes(truth, args.boxes, skipped, person_id())
        print_skipped(args.boxes, skipped)
    if len(sources) == 3:
        sources["both"] = [
            replace(boxed, candidates=found.candidates, owners=None)
            for found, boxed in zip(sources["keypoints"], sources["boxes"], strict=True)
        ]
    return sources


def print_skipped(path: str, skipped: Skipped) -> None:
    """A line for each reason why something of a file is not used."""
    for line in skipped.lines():
        print(f"{path}: {line}")


def announce(assembler: nn.Module, scenes: list[Scene]) -> bool:
    """Prints what is assembled; returns whether the assembler promises to be one-to-one."""
    boxes = sum(len(scene.boxes) for scene in scenes)
    flat = sum(int((s.boxes[:, 2:] <= s.boxes[:, :2]).any(dim=1).sum()) for s in scenes)
    if flat:
        print(f"{flat} boxes have no area")
    candidates = sum(len(scene.candidates) for scene in scenes)
    print(f"{len(scenes)} images, {boxes} boxes, {candidates} keypoints")
    least = assembler.box_score_thresh
    low = sum(int((s.box_scores < least).sum()) for s in scenes if s.box_scores is not None)
    if low:
        key = "MODEL.ASSEMBLER.BOX_SCORE_THRESH"
        print(f"{low} boxes score below {least}, {key}, and get no keypoint")
    one_to_one = promises_one_to_one(assembler)
    if not one_to_one:
        print("NOT one-to-one: the config lets boxes share keypoints, or invents joints")
    return one_to_one


def write_poses(path: str, scenes: list[Scene], poses: list[AssembledPoses]) -> None:
    """COCO results of everybody who got a keypoint."""
    rows = []
    for scene, pose in zip(scenes, poses, strict=True):
        rows += export_instances(to_instances(scene, pose), scene.image_id)[1]
    write_json(path, [{**row, "category_id": person_id()} for row in rows])
    without = sum(len(scene.boxes) for scene in scenes) - len(rows)
    print(f"{path}: {len(rows)} people; {without} boxes got no keypoint and are left out")


def evaluate(
    cfg: CfgNode, dicts: list[dict], scenes: list[Scene], poses: list[AssembledPoses]
) -> dict[str, float | None]:
    """COCO's table and the share of joints that came to their owner, printed."""
    if not annotates_people(dicts):
        print("nobody has labelled keypoints in the annotations: nothing to compare with")
        return {}
    sigmas = get_skeleton(cfg.MODEL.SKELETON).sigmas
    metrics = evaluate_poses(PEOPLE_FILE, scenes, poses, sigmas)
    if "owner_share" not in metrics and any(scene.owners is None for scene in scenes):
        print("owner_share, joints that came to their owner: not known of keypoints of a file")
    print(", ".join(f"{name} {format_figure(value).strip()}" for name, value in metrics.items()))
    return metrics


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
