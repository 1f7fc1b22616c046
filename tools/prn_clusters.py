#!/usr/bin/env python
"""Draws the typical poses that a trained PRN knows: its outputs for many boxes, clustered.

    python tools/prn_clusters.py --config-file configs/MultiPoseNet/PRN_coco.yaml \
        --weights model_final.pth --annotations person_keypoints_val2017.json --output clusters.png

For each annotated person the largest cell of each output channel is a joint; the poses are grouped
by k-means with OKS as similarity (s^2 = cells of the box), and the mean of each group is drawn with
its share of the people. Joints that the output puts nowhere are left out of a pose.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode

from mpn_d2.config import load_config
from mpn_d2.data.association import build_association_samples
from mpn_d2.data.people_file import load_people_file
from mpn_d2.engine.assembler_weights import assembler_options, load_assembler
from mpn_d2.engine.cli import run_command
from mpn_d2.modeling.assembly.grid_evidence import GridEvidence
from mpn_d2.structures.skeleton import Skeleton, get_skeleton
from mpn_d2.utils.cluster_pictures import draw_clusters
from mpn_d2.utils.files import write_text_atomically
from mpn_d2.utils.pose_clusters import PoseClusters, cluster_poses, grid_poses
from mpn_d2.utils.visualize import write_png

# People that pass through the network at once.
_BATCH = 64


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C")
    parser.add_argument("--annotations", required=True, metavar="F", help="COCO keypoint JSON")
    parser.add_argument("--evidence", metavar="E", help="MODEL.ASSEMBLER.EVIDENCE")
    parser.add_argument("--weights", metavar="W", help="of the assembler; default: the config's")
    parser.add_argument("--output", required=True, metavar="F.png")
    parser.add_argument("--json", metavar="F", help="the mean poses as numbers")
    parser.add_argument("--clusters", type=int, default=20, metavar="K", help="groups (20)")
    parser.add_argument(
        "--people", type=int, default=5000, metavar="N", help="at most, drawn by lot (5000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of lot and clustering (0)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    for name in ("clusters", "people"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}: at least 1 is needed")
    options = assembler_options(args.config_file, args.opts, args.evidence or None, None)
    cfg = load_config(args.config_file, options)
    cfg.freeze()
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    evidence = load_assembler(cfg, args.weights).evidence
    if not isinstance(evidence, GridEvidence):
        raise ValueError(
            f"MODEL.ASSEMBLER.EVIDENCE {cfg.MODEL.ASSEMBLER.EVIDENCE} has no output grid to read "
            "poses from: use prn"
        )
    poses = output_poses(evidence, choose_people(args, cfg, skeleton))
    height, width = evidence.size
    sigmas = torch.tensor(skeleton.sigmas)
    clusters = cluster_poses(poses, height * width, sigmas, args.clusters, seed=args.seed)
    report(poses, clusters, args.clusters)
    for path in filter(None, (args.output, args.json)):
        Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
    write_png(args.output, draw_clusters(clusters, evidence.size, skeleton))
    if args.json:
        write_text_atomically(args.json, clusters_text(clusters, evidence.size, skeleton))


def choose_people(args: argparse.Namespace, cfg: CfgNode, skeleton: Skeleton) -> list[dict]:
    """Samples of data/association.py, at most --people of them."""
    dicts = load_people_file(args.annotations, skeleton)
    least = cfg.MODEL.PRN.MIN_KEYPOINTS
    samples = build_association_samples(dicts, least, skeleton.num_keypoints)
    if not samples:
        raise ValueError(
            f"{args.annotations}: nobody has {least} labelled keypoints (MODEL.PRN.MIN_KEYPOINTS): "
            "there is nothing to cluster"
        )
    generator = torch.Generator().manual_seed(args.seed)
    chosen = torch.randperm(len(samples), generator=generator)[: args.people].sort().values
    print(f"{len(chosen)} of {len(samples)} people with at least {least} labelled keypoints")
    return [samples[index] for index in chosen.tolist()]


@torch.no_grad()
def output_poses(evidence: GridEvidence, samples: list[dict]) -> torch.Tensor:
    """(people, K, 3) x, y, 1 in cells, on the CPU: the largest output of each joint."""
    poses = []
    for first in range(0, len(samples), _BATCH):
        inputs, _ = evidence.encode_samples(samples[first : first + _BATCH])
        poses.append(grid_poses(evidence.network(inputs)).cpu())
    return torch.cat(poses)


def report(poses: torch.Tensor, clusters: PoseClusters, wanted: int) -> None:
    """Prints what was clustered; a ValueError where nothing was."""
    clustered = clusters.labels >= 0
    if not clustered.any():
        raise ValueError(
            "the network puts no joint of anybody anywhere (its outputs are flat): is it trained?"
        )
    joints = (poses[clustered][..., 2] > 0).sum(dim=1).float().mean()
    similarity = clusters.similarity[clustered].mean()
    print(f"{int(clustered.sum())} poses of {joints:.1f} joints, mean OKS {similarity:.3f}")
    if not clustered.all():
        print(f"skipped {int((~clustered).sum())} people without any joint in the output")
    if len(clusters.counts) < wanted:
        print(f"{len(clusters.counts)} clusters, not {wanted}: the others are empty")


def clusters_text(clusters: PoseClusters, size: tuple[int, int], skeleton: Skeleton) -> str:
    """JSON: the mean poses in cells of the box, [x, y, share of the people who have it] a joint."""
    total = int(clusters.counts.sum())
    rows = [
        {
            "people": count,
            "share": count / total,
            "mean_oks": float(clusters.similarity[clusters.labels == index].mean()),
            "joints": centre.tolist(),
        }
        for index, (count, centre) in enumerate(
            zip(clusters.counts.tolist(), clusters.centres, strict=True)
        )
    ]
    names = list(skeleton.keypoint_names)
    return json.dumps({"size": list(size), "keypoints": names, "clusters": rows}, indent=1) + "\n"


if __name__ == "__main__":
    args = parse_args()
    run_command(lambda: main(args))
