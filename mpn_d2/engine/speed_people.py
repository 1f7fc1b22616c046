"""People put into a network at the seam between its convolutions and what reads them.

Random weights would decide how many people there are; so the convolutions run, and what they say is
replaced by maps and boxes of people who are known, and who must come out again.
Letters: P people, K keypoint types, A anchors a cell, H x W cells.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from detectron2.structures import pairwise_iou
from torch import nn
from torchvision.ops import box_iou

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.data.drawn_coco import load_layouts
from mpn_d2.structures.outputs import DenseOutputs

# Of COCO's people, those with at least so many labelled joints.
_LEAST_JOINTS = 12
# Boxes reach that far beyond their place in the grid, so that neighbours overlap a little.
_REACH = 1.1
# Standard deviation of the drawn peaks, pixels (MODEL.TARGET.SIGMA's default).
_SIGMA = 7.0
# Logits of anchors: of nobody; on a person; the best one on a person.
_NOBODY, _SOMEBODY, _BEST = -10.0, 2.0, 4.0
# An anchor is on a person from this IoU on (RetinaNet's own rule).
_ON = 0.5
# A person has come out again where a box overlaps hers by this.
_SAME_BOX = 0.9


@dataclass
class People:
    """Whom a timed image shows.

    Attributes:
        boxes: (P, 4) x1, y1, x2, y2, pixels of the network input.
        keypoints: (P, K, 3) x, y, v; v = 0 where a joint is not labelled.
    """

    boxes: torch.Tensor
    keypoints: torch.Tensor

    def __len__(self) -> int:
        return len(self.boxes)


def place_people(count: int, size: int) -> People:
    """So many of COCO's people (boxes and joints of the bundled layouts) in an image of `size`.

    They stand in a square grid, each in her own proportions and about as large as her place, the
    same ones for the same count.
    """
    layouts, _ = load_layouts("test")
    people = [a for layout in layouts for a in layout.people]
    people = [a for a in people if sum(v > 0 for v in a["keypoints"][2::3]) >= _LEAST_JOINTS]
    columns = math.ceil(math.sqrt(max(count, 1)))
    cell = size / columns
    boxes, keypoints = [torch.zeros(0, 4)], [torch.zeros(0, len(people[0]["keypoints"]) // 3, 3)]
    for i in range(count):
        annotation = people[i % len(people)]
        x, y, width, height = annotation["bbox"]
        joints = torch.tensor(annotation["keypoints"], dtype=torch.float32).view(1, -1, 3)
        # COCO's integers name cells (design 4.1).
        joints[..., :2] += 0.5
        scale = _REACH * cell / max(width, height)
        middle = torch.tensor([i % columns + 0.5, i // columns + 0.5]) * cell
        corner = torch.tensor([x + width / 2, y + height / 2])
        joints[..., :2] = (joints[..., :2] - corner) * scale + middle
        half = torch.tensor([width, height]) * scale / 2
        boxes.append(torch.cat([middle - half, middle + half])[None])
        keypoints.append(joints)
    placed = torch.cat(keypoints)
    inside = ((placed[..., :2] > 0) & (placed[..., :2] < size)).all(dim=-1)
    placed[..., 2] *= inside
    return People(torch.cat(boxes).clamp(0, size), placed)


@contextlib.contextmanager
def seeing(model: nn.Module, people: People, size: int, batch: int = 1) -> Iterator[None]:
    """Inside, the network's convolutions run as ever, and show these people in every image.

    Args:
        model: with `dense`, RetinaNet's anchors and a keypoint head.
        people: in square images of `size`, as many types as the head has.
        size: a multiple of the network's size divisibility.
        batch: images at a time.

    Raises:
        ValueError: a network or size that does not fit.
    """
    shown = dense_outputs(model, people, size, batch)
    plain = model.dense

    def dense(images: torch.Tensor) -> DenseOutputs:
        plain(images)
        # Copies: logits become scores in place.
        return DenseOutputs(
            shown.maps.clone(), [x.clone() for x in shown.logits], [x.clone() for x in shown.deltas]
        )

    had_own = "dense" in vars(model)
    model.dense = dense  # type: ignore[assignment]  # in the place of a method
    try:
        yield
    finally:
        if had_own:
            model.dense = plain
        else:
            del model.dense


def dense_outputs(model: nn.Module, people: People, size: int, batch: int = 1) -> DenseOutputs:
    """What a network that sees these people perfectly would say; see `seeing`."""
    for name in ("keypoint_head", "anchor_generator", "box2box_transform"):
        if not hasattr(model, name):
            raise ValueError(
                f"{type(model).__name__} has no {name}: a network with heatmaps and anchors is "
                "needed"
            )
    step = model.backbone.size_divisibility
    if size % step:
        raise ValueError(f"images of {size} pixels: a multiple of {step} is needed")
    head, device = model.keypoint_head, model.device
    if head.num_keypoints != people.keypoints.shape[1]:
        raise ValueError(
            f"people have {people.keypoints.shape[1]} joints, the network {head.num_keypoints}: "
            "give a config with MODEL.SKELETON coco"
        )
    cells = size // head.stride
    joints = people.keypoints.to(device)
    maps = encode_heatmaps([joints], head.num_keypoints, (cells, cells), head.stride, _SIGMA)
    mask = maps.new_zeros(1, 1, cells, cells)
    for x1, y1, x2, y2 in (people.boxes / head.stride).round().int().tolist():
        mask[..., y1:y2, x1:x2] = 1.0
    logits, deltas = _anchor_outputs(model, people, size)
    repeated = [
        [x.expand(batch, -1, -1, -1).contiguous() for x in kind] for kind in (logits, deltas)
    ]
    return DenseOutputs(torch.cat([maps, mask], dim=1).repeat(batch, 1, 1, 1), *repeated)


def _anchor_outputs(
    model: nn.Module, people: People, size: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Per level (1, A, H, W) logits and (1, 4 A, H, W) deltas whose boxes are the people's."""
    strides = model.anchor_generator.strides
    grids = [torch.zeros(1, 1, -(-size // s), -(-size // s), device=model.device) for s in strides]
    levels = model.anchor_generator(grids)
    anchors = type(levels[0]).cat(levels)
    boxes = people.boxes.to(model.device)
    logits = torch.full((len(anchors),), _NOBODY, device=model.device)
    deltas = torch.zeros(len(anchors), 4, device=model.device)
    if len(people):
        overlap = pairwise_iou(type(anchors)(boxes), anchors)
        closest, owner = overlap.max(dim=0)
        best = overlap.argmax(dim=1)
        logits[closest >= _ON] = _SOMEBODY
        logits[best], owner[best] = _BEST, torch.arange(len(boxes), device=owner.device)
        deltas = model.box2box_transform.get_deltas(anchors.tensor, boxes[owner])
    maps: tuple[list, list] = ([], [])
    rows = 0
    for level, grid in zip(levels, grids, strict=True):
        shape = (*grid.shape[-2:], -1)
        of_level = slice(rows, rows + len(level))
        maps[0].append(logits[of_level].view(shape).permute(2, 0, 1)[None])
        maps[1].append(deltas[of_level].reshape(shape).permute(2, 0, 1)[None])
        rows += len(level)
    return maps


def check_people(results: list[dict], people: People) -> None:
    """Raises a ValueError unless every result holds exactly these people, each with a pose.

    Args:
        results: of a network inside `seeing`, in pixels of its input.
        people: who was shown.
    """
    for result in results:
        found = result["instances"].to("cpu")
        posed = int((found.pose_scores > 0).sum())
        if len(found) != len(people) or posed != len(people):
            raise ValueError(
                f"{len(people)} people were put in; {len(found)} boxes came out, {posed} of them "
                "with a pose"
            )
        if not len(people):
            continue
        overlap = box_iou(people.boxes, found.pred_boxes.tensor).max(dim=1).values
        if not (overlap > _SAME_BOX).all():
            raise ValueError("people were put in, and others came out: their boxes differ")
