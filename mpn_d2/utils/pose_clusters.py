"""Typical poses: k-means of poses in the frame of their box, with OKS as similarity.

Letters: N poses, C clusters, K keypoint types, h x w cells of a box grid. MultiPoseNet's figure of
what the PRN learned; spec section 14.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpn_d2.structures.oks import pairwise_oks

# A joint whose grid is flatter than this is nowhere: peak over mean of the cells [ours].
_LEAST_CONTRAST = 2.0


@dataclass
class PoseClusters:
    """Groups of alike poses, largest group first.

    Attributes:
        centres: (C, K, 3) mean x, y of the members that have the joint, and the share of members
            who do, 0 to 1; (0, 0, 0) where nobody does.
        labels: (N,) int64 cluster of each pose, -1 for a pose without any joint.
        similarity: (N,) OKS of each pose with its centre; 0 where there is none.
        counts: (C,) int64 members.
    """

    centres: torch.Tensor
    labels: torch.Tensor
    similarity: torch.Tensor
    counts: torch.Tensor


def grid_poses(grids: torch.Tensor) -> torch.Tensor:
    """The pose that output grids show: the largest cell of each type.

    Args:
        grids: (N, K, h, w), not negative.

    Returns:
        (N, K, 3) x, y in cells (the middle of the cell), and 1, or (0, 0, 0) for a joint without
        evidence: its grid is empty or (a softmax's way to say so) nearly flat.
    """
    top, cell = grids.flatten(2).max(dim=2)
    width = grids.shape[3]
    places = torch.stack([cell % width, cell // width], dim=-1) + 0.5
    has = (top > 0) & (top >= _LEAST_CONTRAST * grids.flatten(2).mean(dim=2))
    return torch.cat([places, torch.ones_like(places[..., :1])], dim=-1) * has[..., None]


def cluster_poses(
    poses: torch.Tensor,
    area: float,
    sigmas: torch.Tensor,
    clusters: int,
    *,
    seed: int = 0,
    starts: int = 4,
    rounds: int = 100,
) -> PoseClusters:
    """k-means with distance 1 - OKS and the mean of coordinates as centre.

    OKS is taken over the joints that a pose has; a joint that the centre lacks counts as missed.
    Seeds are drawn as in k-means++, likely where the distance to those drawn is large (Arthur and
    Vassilvitskii, 2007; 1 - OKS grows with the squared distance already). Of several starts the one
    with the largest mean OKS is kept. Equal arguments give equal clusters.

    Args:
        poses: (N, K, 3) x, y, v in one common frame; joints with v > 0 are there.
        area: of the frame, the s^2 of OKS, squared units of the poses.
        sigmas: (K,) of the skeleton.
        clusters: number of groups, at least 1; fewer come out where there are fewer different
            poses, or a group loses all its members.
        seed: of the seeding.
        starts: seedings tried.
        rounds: most updates of the centres of one start.

    Raises:
        ValueError: fewer than one cluster, or shapes that do not fit each other.
    """
    if clusters < 1:
        raise ValueError(f"{clusters} clusters: at least 1 is needed")
    has = (poses[..., 2] > 0).any(dim=1)
    members = poses[has]
    labels = poses.new_full((len(poses),), -1, dtype=torch.int64)
    similarity = poses.new_zeros(len(poses))
    if not len(members):
        centres = poses.new_zeros(0, *poses.shape[1:])
        return PoseClusters(centres, labels, similarity, labels.new_zeros(0))
    generator = torch.Generator().manual_seed(seed)
    best = None
    for _ in range(starts):
        centres = _seeds(members, area, sigmas, clusters, generator)
        found = _settle(members, centres, area, sigmas, rounds)
        if best is None or found[1].mean() > best[1].mean():
            best = found
    labels[has], similarity[has] = best
    return _largest_first(poses, labels, similarity)


def _similarities(
    poses: torch.Tensor, centres: torch.Tensor, area: float, sigmas: torch.Tensor
) -> torch.Tensor:
    """(N, C) OKS of poses with centres, joints that a centre lacks infinitely far away."""
    areas = poses.new_full((len(poses),), area)
    places = torch.where(centres[..., 2:] > 0, centres[..., :2], torch.inf)
    # One centre at a time: N x C x K numbers need not fit into memory.
    columns = [pairwise_oks(poses, place[None], areas, sigmas) for place in places]
    return torch.cat(columns, dim=1)


def _seeds(
    poses: torch.Tensor,
    area: float,
    sigmas: torch.Tensor,
    clusters: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """(at most `clusters`, K, 3) poses to begin with; fewer where none differs any more."""
    chance = poses.new_ones(len(poses))
    seeds: list[torch.Tensor] = []
    while len(seeds) < clusters and chance.sum() > 0:
        # On the CPU in double precision: the same draw for the same seed everywhere.
        index = int(torch.multinomial(chance.double().cpu(), 1, generator=generator))
        seeds.append(poses[index])
        distance = 1 - _similarities(poses, poses[index][None], area, sigmas)[:, 0]
        chance = torch.minimum(chance, distance.clamp(min=0))
    return torch.stack(seeds)


def _settle(
    poses: torch.Tensor, centres: torch.Tensor, area: float, sigmas: torch.Tensor, rounds: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Label and OKS of each pose once the labels stay the same, or after `rounds` updates."""
    similarity, labels = _similarities(poses, centres, area, sigmas).max(dim=1)
    for _ in range(rounds):
        centres = _means(poses, labels, len(centres))
        similarity, new = _similarities(poses, centres, area, sigmas).max(dim=1)
        if torch.equal(new, labels):
            break
        labels = new
    return labels, similarity


def _means(poses: torch.Tensor, labels: torch.Tensor, clusters: int) -> torch.Tensor:
    """(clusters, K, 3) mean place and share of the members' joints."""
    has = (poses[..., 2:] > 0).to(poses.dtype)
    rows = torch.cat([poses[..., :2] * has, has], dim=-1)
    sums = poses.new_zeros(clusters, *poses.shape[1:]).index_add_(0, labels, rows)
    members = torch.bincount(labels, minlength=clusters).clamp(min=1)
    places = sums[..., :2] / sums[..., 2:].clamp(min=1)
    return torch.cat([places, sums[..., 2:] / members[:, None, None]], dim=-1)


def _largest_first(
    poses: torch.Tensor, labels: torch.Tensor, similarity: torch.Tensor
) -> PoseClusters:
    """The clusters that labels mean, those without members left out."""
    kept = labels >= 0
    names, labels_kept, counts = labels[kept].unique(return_inverse=True, return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    ranked = labels.clone()
    ranked[kept] = rank[labels_kept]
    centres = _means(poses[kept], ranked[kept], len(names))
    return PoseClusters(centres, ranked, similarity, counts[order])
