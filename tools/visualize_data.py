#!/usr/bin/env python
"""Draws training images, people and targets as they enter the losses: what the network is taught.

    python tools/visualize_data.py --config-file configs/MultiPoseNet/R_50.yaml \
        --dataset coco_sample_train --stage keypoint --output seen --images 20

Everything passes through the training loader, augmentation included, and is drawn in the frame of
the network input:

- keypoint: people, crowd boxes and ignored region | heatmaps, their maximum | person mask;
- person: people and crowd boxes;
- keypoint of a single-person network: the crop and joints of one person | heatmaps;
- assembly (no images): per person the joints around the box, input grid and label grid;
- joint, or no --stage: all of it, the grids in <image id>_people.png; of pose regression: people
  and crowd boxes above the locations that answer for them.

Files are named by image id.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import mpn_d2  # isort: skip  # first: it silences what Detectron2 warns of  # noqa: F401

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from torch import nn

from mpn_d2.codecs.offsets import Locations
from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.data.loader import build_pose_train_loader
from mpn_d2.data.own_datasets import register_own_datasets
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.cli import run_command
from mpn_d2.engine.pictures import draw_crop_pair
from mpn_d2.engine.stages import stage_config, stage_names
from mpn_d2.modeling.meta_arch.joint import samples_from_annotations
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.location_picture import draw_locations
from mpn_d2.utils.target_pictures import draw_boxes, draw_grids, draw_targets, stack
from mpn_d2.utils.visualize import write_png

# People of one image whose grids are drawn.
MOST_PEOPLE = 12


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--dataset", help="registered name (default: DATASETS.TRAIN)")
    parser.add_argument("--stage", help="keypoint, person, assembly, joint (default: all parts)")
    parser.add_argument("--output", required=True, help="folder for the pictures (PNG)")
    parser.add_argument(
        "--images", type=int, default=10, metavar="N", help="how many images, or people (10)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    """Draws the first images of the training stream."""
    if args.images < 1:
        raise ValueError(f"--images is {args.images}: at least 1 is needed")
    register_pose_datasets()
    cfg = load_config(args.config_file, args.opts)
    register_own_datasets(cfg)
    cfg = one_at_a_time(cfg, args)
    # The network is needed for its heads' targets alone.
    model = build_pose_model(cfg).eval()
    os.makedirs(args.output, exist_ok=True)
    names: Counter[str] = Counter()
    for batch in itertools.islice(build_pose_train_loader(cfg), args.images):
        for name, picture in pictures(cfg, model, batch[0]):
            names[name] += 1
            again = f"_{names[name]}" if names[name] > 1 else ""
            write_png(os.path.join(args.output, f"{name}{again}.png"), picture)
    print(f"{names.total()} pictures in {args.output}")


def one_at_a_time(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """The config of the stage, with batches of one, on the CPU and in this process."""
    if args.stage:
        if args.stage not in stage_names(cfg):
            raise ValueError(f"unknown --stage {args.stage}: {', '.join(stage_names(cfg))}")
        cfg = stage_config(cfg, args.stage, args.opts)
    cfg.defrost()
    if args.dataset:
        cfg.DATASETS.TRAIN = (args.dataset,)
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.SOLVER.ACCUMULATION = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    # Else upright images would come after each other, then wide ones.
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.MODEL.DEVICE = "cpu"
    # Sorted, the first people would all be large ones with every joint.
    cfg.MODEL.PRN.CURRICULUM = "none"
    cfg.freeze()
    return cfg


def pictures(cfg: CfgNode, model: nn.Module, x: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pictures (RGB uint8) of one training input."""
    name = re.sub(r"[^\w.-]", "_", str(x.get("image_id", "image")))
    parts = cfg.MODEL.TRAIN_PARTS
    if "image" not in x:
        yield f"{name}_person{x['owner']}", draw_people(cfg, model, [x])
        return
    image = convert_image_to_rgb(x["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    if cfg.SINGLE_PERSON.ENABLED:
        picture = draw_crop_pair(model, x, skeleton, cfg.INPUT.FORMAT, predict=False)
        yield f"{name}_person{x['owner']}", picture
        return
    if "pose" in parts:
        above = draw_boxes(image, x["instances"], x["crowd_boxes"], skeleton)
        yield name, stack([above, draw_location_targets(model, x, image)])
        return
    if "keypoint" in parts:
        yield name, draw_heatmap_targets(model, x, image, cfg)
    else:
        yield name, draw_boxes(image, x["instances"], x["crowd_boxes"], skeleton)
    if "assembly" in parts:
        samples = samples_from_annotations([x["instances"]], cfg.MODEL.PRN.MIN_KEYPOINTS)
        if samples:
            yield f"{name}_people", draw_people(cfg, model, samples[:MOST_PEOPLE])


def draw_heatmap_targets(model: nn.Module, x: dict, image: np.ndarray, cfg: CfgNode) -> np.ndarray:
    """People | heatmaps | person mask of one image, targets as the keypoint head makes them."""
    head = model.keypoint_head
    padded = model.preprocess_image([x]).tensor.shape[-2:]
    size = tuple(-(-side // head.stride) for side in padded)
    targets = head.make_targets(
        [x["instances"].gt_keypoints.tensor], [x["person_mask"]], [x["ignore_mask"]], size
    )
    return draw_targets(
        image,
        x["instances"],
        x["crowd_boxes"],
        get_skeleton(cfg.MODEL.SKELETON),
        targets.maps[0],
        targets.loss_mask[0],
        head.stride,
    )


def draw_location_targets(model: nn.Module, x: dict, image: np.ndarray) -> np.ndarray:
    """The locations of one image that answer for its people."""
    padded = model.preprocess_image([x]).tensor.shape[-2:]
    shapes = model.backbone.output_shape()
    strides = [shapes[name].stride for name in model.head_in_features]
    grids = [(-(-padded[0] // s), -(-padded[1] // s)) for s in strides]
    locations = Locations.of_grids(grids, strides)
    targets = model.make_targets([x], locations)
    return draw_locations(image, locations, targets.owners[0], targets.ignored[0])


@torch.no_grad()
def draw_people(cfg: CfgNode, model: nn.Module, samples: list[dict]) -> np.ndarray:
    """One row a person: joints | input grid | label grid, as the evidence encodes them."""
    skeleton, evidence = get_skeleton(cfg.MODEL.SKELETON), model.assembler.evidence
    grids = evidence.encode_samples(samples)
    rows = [
        draw_grids(sample, skeleton, evidence.margin, pair, ("input", "label"))
        for sample, *pair in zip(samples, *grids, strict=True)
    ]
    return stack(rows)


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
