"""People from heatmaps and tags: joints with like tags belong to one person.

Newell, Huang, Deng, NIPS 2017, section 3.3, with the constants of its code
(princeton-vl/pose-ae-train); spec of unified association, section 7. Letters: K keypoint types,
C candidates, P people, H x W cells, V views (the image, and its mirror image where asked for): a
joint has as many tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from mpn_d2.codecs.subcell import quarter_shift

# Joints that end limbs are looked at last: the people are then known.
_LIMBS = ("elbow", "wrist", "knee", "ankle")
# What one step of the rounded tag distance weighs against the scores, which are below 1.
_TAG_WEIGHT = 100.0


@dataclass
class _Person:
    joints: dict[int, int] = field(default_factory=dict)
    tags: list[np.ndarray] = field(default_factory=list)


@dataclass
class TaggedPeaks:
    """Candidates of one image.

    Attributes:
        types, rows, columns: (C,) int64.
        scores: (C,) values of the heatmaps.
        tags: (C, V).
    """

    types: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    scores: torch.Tensor
    tags: torch.Tensor


def grouping_order(keypoint_names: Sequence[str]) -> list[int]:
    """Keypoint types in the order of grouping: head and torso, then elbows, wrists, knees ..."""
    is_limb = [any(limb in name for limb in _LIMBS) for name in keypoint_names]
    return sorted(range(len(is_limb)), key=lambda i: is_limb[i])


def find_peaks(
    heatmaps: torch.Tensor, tags: torch.Tensor, thresh: float, max_per_type: int
) -> TaggedPeaks:
    """Maxima of their 3 x 3 cells above a threshold, of each type the highest first.

    Args:
        heatmaps: (K, H, W).
        tags: (K, H, W), or (V, K, H, W) of several views.
        thresh: a peak's value must exceed it.
        max_per_type: most peaks of a type.
    """
    heatmaps = heatmaps.float()
    highest = F.max_pool2d(heatmaps[None], 3, stride=1, padding=1)[0]
    is_peak = (heatmaps == highest) & (heatmaps > thresh)
    values = torch.where(is_peak, heatmaps, -torch.inf).flatten(1)
    values, cells = values.topk(min(max_per_type, values.shape[1]), dim=1)
    types, rank = torch.nonzero(values > -torch.inf, as_tuple=True)
    cells = cells[types, rank]
    rows, columns = cells // heatmaps.shape[2], cells % heatmaps.shape[2]
    found = tags.view(-1, *heatmaps.shape)[:, types, rows, columns].T
    return TaggedPeaks(types, rows, columns, values[types, rank], found)


def group_by_tags(peaks: TaggedPeaks, order: Sequence[int], thresh: float) -> list[dict[int, int]]:
    """Gives candidates to people, type by type.

    The candidates of a type are matched to the people found so far by least total cost
    `100 * round(|tag - mean tag|) - score`; a pair whose tags differ by `thresh` or more, and a
    candidate without a person, begins a new one. Tags of several views differ by the root of the
    mean of their squared differences.

    Args:
        peaks: of one image.
        order: the K types, first to last.
        thresh: of tag distances.

    Returns:
        Of each person, in the order in which they were begun: type to index of the candidate.
    """
    types, scores = peaks.types.tolist(), peaks.scores.tolist()
    tags = peaks.tags.double().cpu().numpy()
    people: list[_Person] = []
    for joint in order:
        found = [i for i, of_type in enumerate(types) if of_type == joint]
        if not found:
            continue
        matched: dict[int, int] = {}
        if people:
            means = np.stack([np.mean(person.tags, axis=0) for person in people])
            gaps = np.sqrt(np.square(tags[found][:, None] - means).mean(axis=2))
            cost = _TAG_WEIGHT * np.round(gaps) - np.array([scores[i] for i in found])[:, None]
            pairs = zip(*linear_sum_assignment(cost), strict=True)
            matched = {int(row): int(one) for row, one in pairs if gaps[row, one] < thresh}
        for row, candidate in enumerate(found):
            if row not in matched:
                people.append(_Person())
            person = people[matched.get(row, -1)]
            person.joints[joint] = candidate
            person.tags.append(tags[candidate])
    return [person.joints for person in people]


def decode_tags(
    heatmaps: torch.Tensor,
    tags: torch.Tensor,
    stride: int,
    order: Sequence[int],
    *,
    peak_thresh: float,
    tag_thresh: float,
    max_per_type: int,
) -> torch.Tensor:
    """(P, K, 3) people of one image: x, y in network-input pixels, and the joint's score.

    (0, 0, 0) where a person has no candidate. Arguments: see the functions above.
    """
    peaks = find_peaks(heatmaps, tags, peak_thresh, max_per_type)
    points = stride * quarter_shift(heatmaps, peaks.types, peaks.rows, peaks.columns)
    groups = group_by_tags(peaks, order, tag_thresh)
    people = points.new_zeros(len(groups), len(heatmaps), 3)
    for person, joints in zip(people, groups, strict=True):
        for joint, candidate in joints.items():
            person[joint, :2] = points[candidate]
            person[joint, 2] = peaks.scores[candidate].clamp(max=1)
    return people


def fill_missing_joints(
    people: torch.Tensor, heatmaps: torch.Tensor, tags: torch.Tensor, stride: int
) -> torch.Tensor:
    """Looks for each missing joint where the map is high and the tag that of the person.

    The place is the argmax of `heatmap - round(|tag - the person's mean tag|)` (the length of the
    difference, with several views), the score the heatmap there; joints whose heatmap is not above
    0 stay missing.

    Args:
        people: (P, K, 3) x, y in network-input pixels, score 0 where missing; not changed.
        heatmaps: (K, H, W), perhaps means over several views.
        tags: (K, H, W), or (V, K, H, W) of several views.
        stride: cell side.

    Returns:
        (P, K, 3); people without any joint stay as they are.
    """
    filled = people.clone()
    count, height, width = heatmaps.shape
    all_types = torch.arange(count, device=people.device)
    limits = people.new_tensor([width - 1, height - 1]).long()
    tags = tags.view(-1, *heatmaps.shape).float()
    for person in filled:
        has = person[:, 2] > 0
        if not has.any():
            continue
        cells = torch.minimum((person[has, :2] / stride).floor().long().clamp(min=0), limits)
        mean = tags[:, all_types[has], cells[:, 1], cells[:, 0]].mean(dim=1)
        gaps = torch.linalg.vector_norm(tags - mean.view(-1, 1, 1, 1), dim=0)
        rated = heatmaps.float() - gaps.round()
        best = rated.flatten(1).argmax(dim=1)
        rows, columns = best // width, best % width
        scores = heatmaps[all_types, rows, columns].float()
        take = ~has & (scores > 0)
        points = stride * quarter_shift(heatmaps, all_types, rows, columns)
        person[take, :2] = points[take].to(person)
        person[take, 2] = scores[take].clamp(max=1).to(person)
    return filled
