"""Whose joints are whose: what annotations say of the candidates in each box.

Letters: N images, B boxes that take part, P boxes of one image, K keypoint types, M candidates of
one type in the fullest image. Scenes are those of `annotated_scenes`: owners and people are known.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mpn_d2.codecs import person_grid
from mpn_d2.evaluation.scenes import Scene
from mpn_d2.modeling.assembly.evidence import Rating
from mpn_d2.modeling.assembly.grid_evidence import GridEvidence
from mpn_d2.modeling.assembly.people_batch import PeopleBatch

# Padded tensors of some scenes, and the scenes, to a rating.
Rate = Callable[[PeopleBatch, list[Scene]], Rating]
# Pair score of the oracle for boxes that do not own a candidate.
_OTHERS = 1e-3


def oracle(assembler: nn.Module) -> Rate:
    """Rates by the annotations: label grids where the evidence has grids, else 1 for the owner."""
    evidence = assembler.evidence

    def by_grids(batch: PeopleBatch, part: list[Scene]) -> Rating:
        own = torch.cat([own_joints(scene, assembler.num_keypoints) for scene in part])
        labels = person_grid.encode_label(
            own.to(batch.boxes.device), batch.boxes, evidence.size, evidence.label_sigma
        )
        return evidence.rate_grids(batch, labels, peaks=assembler.needs_peaks)

    def by_owner(batch: PeopleBatch, part: list[Scene]) -> Rating:
        return rate_by_owner(batch, part, assembler.num_keypoints)

    return by_grids if isinstance(evidence, GridEvidence) else by_owner


def rate_by_owner(batch: PeopleBatch, part: list[Scene], num_keypoints: int) -> Rating:
    """Pair score 1 for the candidates of a box's own person, next to none for all others; peaks at
    the person's own joints."""
    ids = batch.ids[batch.image]
    people = torch.cat([scene.people for scene in part]).to(ids.device)
    width = max((len(scene.candidates) for scene in part), default=0) + 1
    owners = torch.full((len(part), width), -1, device=ids.device)
    for row, scene in enumerate(part):
        owners[row, : len(scene.owners)] = scene.owners.to(ids.device)
    owner = owners[batch.image[:, None, None], ids.clamp(min=0)]
    scores = torch.where(owner == people[:, None, None], 1.0, _OTHERS)
    own = torch.cat([own_joints(scene, num_keypoints) for scene in part]).to(scores.device)
    return Rating(torch.where(ids >= 0, scores, 0.0), peaks=own)


def own_joints(scene: Scene, num_keypoints: int) -> torch.Tensor:
    """(P, K, 3) x, y and 1 of the labelled joints of each box's own person, zeros elsewhere."""
    last = int(torch.cat([scene.owners, scene.people]).max()) if len(scene.people) else -1
    people = max(last + 1, min(len(scene.people), 1))
    table = torch.zeros(people, num_keypoints, 3)
    known = (scene.owners >= 0) & (scene.owners < people)
    place = scene.owners[known], scene.candidates.types[known]
    table[(*place, slice(0, 2))] = scene.candidates.points[known]
    table[(*place, 2)] = 1.0
    mine = table[scene.people.clamp(min=0)]
    return torch.where(scene.people.ge(0)[:, None, None], mine, 0.0)


def count_outside(scenes: list[Scene], num_keypoints: int, margin: float) -> int:
    """Labelled joints that lie outside their own person's box enlarged by `margin` of its sides."""
    count = 0
    for scene in scenes:
        own = own_joints(scene, num_keypoints)
        inside = person_grid.in_margin(own[..., :2], scene.boxes, margin)
        count += int((~inside & (own[..., 2] > 0)).sum())
    return count


def count_collisions(batch: PeopleBatch, size: tuple[int, int], margin: float) -> int:
    """Candidates beyond the first of their type in a cell of a box's grid, over all boxes.

    Args:
        batch: boxes and candidates.
        size: (h, w) of the grid.
        margin: candidates outside the box enlarged so are in none of its cells.
    """
    points = batch.points[batch.image]
    inside = person_grid.in_margin(points, batch.boxes, margin) & (batch.ids[batch.image] >= 0)
    column, row = person_grid.points_to_cells(points, batch.boxes, size).unbind(-1)
    groups = torch.arange(points.shape[0] * points.shape[1], device=points.device)
    cell = groups.view(*points.shape[:2], 1) * (size[0] * size[1]) + row * size[1] + column
    taken = cell[inside]
    return len(taken) - len(taken.unique())
