"""Speed of assembling people: samples of a training, and candidates and boxes to poses."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from mpn_d2.data.loader import build_pose_train_loader
from mpn_d2.engine.stages import stage_config
from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.structures.outputs import Candidates
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.timing import clocked, one_core, seconds_of

# People in the image that is assembled.
CROWDS = (20, 100)


def measure_assembly(
    cfg: CfgNode, options: list[str], *, people: int, passes: int, repeats: int
) -> dict[str, float]:
    """Figures of part `assembly` by name, see tools/benchmark.py.

    Args:
        cfg: with the assembly stage.
        options: KEY VALUE pairs that win over the stage's keys.
        people: that a pass rasterises.
        passes: of rasterising; the best counts.
        repeats: of an assembly; the median counts.
    """
    own = stage_config(cfg, "assembly", options)
    loader: Any = build_pose_train_loader(_published(own, "ucr"))
    figures = _rasterising_speed(_published(own, "ucr"), loader, people, passes)
    kinds = {"prn": _published(own, "prn"), "ucr": _published(own, "ucr")}
    kinds.setdefault(own.MODEL.ASSEMBLER.EVIDENCE, own)
    for kind, settings in kinds.items():
        torch.manual_seed(0)
        assembler = build_pose_assembler(settings).to(settings.MODEL.DEVICE).eval()
        for count in CROWDS:
            candidates, boxes = crowd(loader.order.samples, count)
            work = functools.partial(
                assembler.inference,
                [candidates.to(settings.MODEL.DEVICE)],
                [boxes.to(settings.MODEL.DEVICE)],
            )
            figures[f"assembly/seconds/{kind}/{count}"] = statistics.median(
                seconds_of(work, repeats, device=settings.MODEL.DEVICE)
            )
    figures[f"assembly/seconds/prn_products/{CROWDS[0]}"] = _prn_products(own, repeats)
    return figures


def _published(cfg: CfgNode, evidence: str) -> CfgNode:
    """The evidence with the authors' matching and settings (design 7.5), trained on people."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ASSEMBLER.merge_from_other_cfg(
        CfgNode(
            {
                "EVIDENCE": evidence,
                "MATCHING": "reference",
                "SAMPLES": "people",
                "WEIGHTS": "",
                "POSE_SCORE": ["keypoints"],
            }
        )
    )
    cfg.MODEL.PRN.merge_from_other_cfg(
        CfgNode({"NODES": 1024, "NUM_HIDDEN": 1, "SOFTMAX": "global", "INPUT_MODE": "peaks"})
    )
    cfg.freeze()
    return cfg


@torch.no_grad()
def _prn_products(cfg: CfgNode, repeats: int) -> float:
    """Median seconds of a PRN's layers, grid to nodes to grid, for as many people as in CROWDS."""
    cells = get_skeleton(cfg.MODEL.SKELETON).num_keypoints * math.prod(cfg.MODEL.PRN.CROP)
    layers = nn.Sequential(nn.Linear(cells, 1024), nn.Linear(1024, cells)).to(cfg.MODEL.DEVICE)
    people = torch.rand(CROWDS[0], cells, device=cfg.MODEL.DEVICE)
    return statistics.median(seconds_of(lambda: layers(people), repeats, device=cfg.MODEL.DEVICE))


def _rasterising_speed(
    cfg: CfgNode, loader: Iterable[list[dict]], people: int, passes: int
) -> dict[str, float]:
    evidence = build_pose_assembler(cfg).evidence
    batches = max(people // cfg.SOLVER.IMS_PER_BATCH, 1)

    def read() -> None:
        for batch in itertools.islice(loader, batches):
            evidence.encode_samples(batch)

    with one_core():
        times = [clocked(read) for _ in range(passes + 1)]
    wall, processor = (min(values) for values in zip(*times[1:], strict=True))
    count = batches * cfg.SOLVER.IMS_PER_BATCH
    return {
        "assembly/people_per_second": count / wall,
        "assembly/people_per_cpu_second": count / processor,
    }


def crowd(samples: list[dict], count: int) -> tuple[Candidates, torch.Tensor]:
    """Keypoints and (count, 4) boxes of one image of so many people.

    The fullest images of the samples stand side by side, as often as it takes. Into their boxes
    come the most completely labelled people, scaled to fit.
    """
    images = [list(of_one) for _, of_one in itertools.groupby(samples, key=itemgetter("image_id"))]
    images.sort(key=len, reverse=True)
    boxes, right = [], 0.0
    for people in itertools.cycle(images):
        group = torch.stack([person["box"] for person in people])
        group[:, ::2] += right - group[:, 0].min()
        boxes.append(group)
        right = float(group[:, 2].max())
        if sum(map(len, boxes)) >= count:
            break
    placed = torch.cat(boxes)[:count]
    joints = torch.stack([sample["keypoints"][sample["owner"]] for sample in samples])
    fullest = (joints[..., 2] > 0).sum(dim=1).argsort(descending=True, stable=True)
    chosen = fullest[torch.arange(count) % len(fullest)]
    frames = torch.stack([samples[i]["box"] for i in chosen.tolist()])
    sides = (frames[:, 2:] - frames[:, :2]).clamp(min=1.0)[:, None]
    share = (joints[chosen][..., :2] - frames[:, None, :2]) / sides
    points = placed[:, None, :2] + share * (placed[:, 2:] - placed[:, :2])[:, None]
    row, kind = (joints[chosen][..., 2] > 0).nonzero().unbind(1)
    return Candidates(points[row, kind], kind, torch.ones(len(row))), placed
