#!/usr/bin/env python
"""People from anyone's keypoints and boxes: gives keypoints to person boxes, without an image.

    python tools/assemble.py --annotations person_keypoints_val2017.json --keypoints gt --boxes gt \
        --output poses.json
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
import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detectron2.config import CfgNode
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.data.association_noise import Noise
from mpn_d2.data.datasets import load_pose_dicts, register_people
from mpn_d2.engine.assembler_weights import load_assembler
from mpn_d2.engine.cli import run_command
from mpn_d2.evaluation.assembly import assemble_scenes, evaluate_poses
from mpn_d2.evaluation.error_budget import error_budget
from mpn_d2.evaluation.pose_evaluator import export_instances, write_json
from mpn_d2.evaluation.scenes import (
    Scene,
    Skipped,
    annotated_scenes,
    to_instances,
    with_boxes,
    with_keypoints,
)
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.results import format_figure, update_results

REPO = Path(__file__).resolve().parents[1]
DATASET = "assemble-annotations"
TRUTH = "gt"
# Rows of --noise: one kind of damage each, as much as their names say.
NOISE_ROWS = {
    "clean": Noise(),
    "boxes_5": Noise(box=0.05),
    "boxes_10": Noise(box=0.1),
    "missing_10": Noise(missing=0.1),
    "missing_20": Noise(missing=0.2),
    "false_10": Noise(false=0.1),
    "false_20": Noise(false=0.2),
    "position_0.5": Noise(position=0.5),
    "position_1": Noise(position=1.0),
}
NOISE_SEED = 7


def parse_args(arguments: list[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, metavar="F", help="COCO keypoint JSON")
    parser.add_argument("--keypoints", default=TRUTH, metavar="gt|F", help="default: gt")
    parser.add_argument("--boxes", default=TRUTH, metavar="gt|F", help="default: gt")
    parser.add_argument(
        "--config-file",
        metavar="C",
        default=str(REPO / "configs" / "MultiPoseNet" / "Assembler_coco.yaml"),
        help="default: our assembler",
    )
    parser.add_argument("--evidence", metavar="E", help="MODEL.ASSEMBLER.EVIDENCE")
    parser.add_argument("--matching", metavar="M", help="MODEL.ASSEMBLER.MATCHING")
    parser.add_argument("--weights", metavar="W", help="of the assembler; default: MODEL.WEIGHTS")
    parser.add_argument("--output", metavar="R.json", help="COCO results")
    parser.add_argument("--noise", action="store_true", help="a table of degraded inputs")
    parser.add_argument("--error-budget", action="store_true", help="what costs how many points")
    parser.add_argument("--filter-boxes", action="store_true", help="EVAL.GT_BOX_FILTER")
    parser.add_argument("--results", metavar="F", help="figures go into this JSON, too")
    parser.add_argument("--name", default="", help="group of the figures in it")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(arguments)


def main(args: Namespace) -> None:
    if args.noise and (args.keypoints != TRUTH or args.boxes != TRUTH):
        raise ValueError("--noise degrades annotations: give --keypoints gt --boxes gt")
    cfg = load_config(args.config_file, options(args))
    cfg.freeze()
    dicts = load_annotations(args.annotations, cfg)
    assembler = load_assembler(cfg, args.weights)
    if args.noise:
        figures = noise_table(cfg, assembler, dicts, args.filter_boxes)
    else:
        scenes = load_scenes(args, cfg, dicts)
        poses = assemble_scenes(assembler, scenes, one_to_one=one_to_one(cfg))
        if args.output:
            write_poses(args.output, scenes, poses)
        figures = evaluate(cfg, scenes, poses) if annotates_people(dicts) else {}
        if args.error_budget:
            figures.update(error_budget(cfg, assembler, dicts, DATASET))
    if args.results:
        update_results(args.results, args.name, figures, seed=NOISE_SEED)


def options(args: Namespace) -> list[str]:
    """What the arguments change in the config."""
    changed = list(args.opts)
    for key, value in (("EVIDENCE", args.evidence), ("MATCHING", args.matching)):
        if value is not None:
            changed += [f"MODEL.ASSEMBLER.{key}", value]
    return changed


def one_to_one(cfg: CfgNode) -> bool:
    """Whether the config promises it: shared or invented joints are rows of their own."""
    node = cfg.MODEL.ASSEMBLER
    return node.ONE_TO_ONE and node.MATCHING != "argmax" and node.FALLBACK == "none"


def load_annotations(path: str, cfg: CfgNode) -> list[dict]:
    """Dataset dicts of all images of a COCO JSON, those without people included."""
    register_people(
        DATASET,
        json_file=path,
        image_root=None,
        skeleton=get_skeleton(cfg.MODEL.SKELETON),
        remedy="give --annotations the path of a COCO keypoint JSON",
    )
    return load_pose_dicts([DATASET], is_train=False, need_images=False)


def load_scenes(args: Namespace, cfg: CfgNode, dicts: list[dict]) -> list[Scene]:
    """What is assembled, from the sources that the arguments name; prints what was skipped."""
    num_keypoints = get_skeleton(cfg.MODEL.SKELETON).num_keypoints
    scenes = annotated_scenes(dicts, num_keypoints, filter_boxes=args.filter_boxes)
    skipped = Skipped()
    if args.keypoints != TRUTH:
        scenes = with_keypoints(scenes, args.keypoints, num_keypoints, skipped)
    if args.boxes != TRUTH:
        scenes = with_boxes(scenes, args.boxes, skipped)
    for line in skipped.lines():
        print(line)
    candidates, boxes = (
        sum(len(x) for x in part) for part in zip(*((s.candidates, s.boxes) for s in scenes))
    )
    print(f"{len(scenes)} images, {boxes} boxes, {candidates} keypoints")
    return scenes


def write_poses(path: str, scenes: list[Scene], poses: list) -> None:
    """COCO results of everybody who got a keypoint; category 1, as in COCO."""
    rows = []
    for scene, pose in zip(scenes, poses, strict=True):
        rows += export_instances(to_instances(scene, pose), scene.image_id)[1]
    Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [{**row, "category_id": 1} for row in rows])
    print(f"{path}: {len(rows)} people")


def annotates_people(dicts: list[dict]) -> bool:
    """Whether there is any truth to compare with."""
    return any(a.get("keypoints") for record in dicts for a in record.get("annotations", ()))


def evaluate(cfg: CfgNode, scenes: list[Scene], poses: list) -> dict[str, float | None]:
    """Metrics of the poses, printed."""
    sigmas = get_skeleton(cfg.MODEL.SKELETON).sigmas
    metrics = evaluate_poses(DATASET, scenes, poses, sigmas)
    print(json.dumps({name: format_figure(value).strip() for name, value in metrics.items()}))
    return metrics


def noise_table(
    cfg: CfgNode, assembler: nn.Module, dicts: list[dict], filter_boxes: bool
) -> dict[str, float | None]:
    """AP and owner share of each row of NOISE_ROWS, printed as a table in Markdown."""
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    figures = {}
    for name, noise in NOISE_ROWS.items():
        scenes = annotated_scenes(
            dicts,
            skeleton.num_keypoints,
            filter_boxes=filter_boxes,
            noise=noise,
            sigmas=skeleton.sigmas,
            seed=NOISE_SEED,
        )
        poses = assemble_scenes(assembler, scenes, one_to_one=one_to_one(cfg))
        metrics = evaluate_poses(DATASET, scenes, poses, skeleton.sigmas)
        figures |= {f"noise/{name}/{key}": metrics[key] for key in ("AP", "owner_share")}
    print("\n| | AP | given to their owner, % |\n|---|---|---|")
    for name in NOISE_ROWS:
        row = (format_figure(figures[f"noise/{name}/{key}"]) for key in ("AP", "owner_share"))
        print(f"| {name} | {' | '.join(row)} |")
    return figures


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
