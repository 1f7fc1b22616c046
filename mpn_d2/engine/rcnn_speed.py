"""What refinement costs the keypoint head of an R-CNN: time by people, as ratios."""

from __future__ import annotations

import functools
import statistics

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import nn

from mpn_d2.engine.part_speed import seconds_of_one
from mpn_d2.modeling.roi_heads.keypoint_offset_head import REFINEMENTS, KeypointOffsetHead

PEOPLE = 20
# Width and height of a person's box, network-input pixels.
_BOX = (96.0, 240.0)


def measure_heads(cfg: CfgNode, *, repeats: int) -> dict[str, float]:
    """Median seconds of PEOPLE boxes' features to poses by refinement, heads taken in turns, and
    their ratios to the unrefined head.

    Args:
        cfg: of an R-CNN; its head's width and loss, random weights, offsets of about a cell.
        repeats: of each head.
    """
    side = cfg.MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION
    shape = ShapeSpec(channels=cfg.MODEL.FPN.OUT_CHANNELS, height=side, width=side)
    torch.manual_seed(0)
    heads = {refine: _head(cfg, refine, shape) for refine in REFINEMENTS}
    device = cfg.MODEL.DEVICE
    features = torch.randn(PEOPLE, shape.channels, side, side, device=device).relu()
    boxes = torch.tensor([0.0, 0.0, *_BOX], device=device).repeat(PEOPLE, 1)
    times: dict[str, list[float]] = {refine: [] for refine in heads}

    @torch.no_grad()
    def find(head: nn.Module) -> None:
        head(features, [Instances((480, 480), pred_boxes=Boxes(boxes))])

    for turn in range(repeats + 1):
        for refine, head in heads.items():
            spent = seconds_of_one(functools.partial(find, head), device)
            # The first turn warms up.
            if turn:
                times[refine].append(spent)
    medians = {refine: statistics.median(values) for refine, values in times.items()}
    figures = {f"heads/seconds/{k}/{PEOPLE}": value for k, value in medians.items()}
    plain = medians["none"]
    ratios = {f"heads/ratio/{k}/{PEOPLE}": v / plain for k, v in medians.items() if k != "none"}
    return {**figures, **ratios}


def _head(cfg: CfgNode, refine: str, shape: ShapeSpec) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_KEYPOINT_HEAD.REFINE = refine
    head = KeypointOffsetHead(cfg, shape).to(cfg.MODEL.DEVICE).eval()
    for name, parameter in head.named_parameters():
        # Offsets of 0 would be passed over.
        if ".offset.bias" in name:
            nn.init.normal_(parameter)
    if refine in ("heatmap", "both"):
        nn.init.normal_(head.score_lowres.bias[head.num_keypoints :])
    return head
