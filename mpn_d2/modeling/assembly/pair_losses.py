"""What the pair network is trained for: who owns whom, and how good each pose will be. Ours.

Letters as in pair_network.py.
"""

from __future__ import annotations

import torch

from mpn_d2.modeling.assembly.pair_network import PairLogits, Pairs, segment_exp_sum, segment_sum
from mpn_d2.structures.oks import joint_similarity


def ownership_loss(logits: PairLogits, pairs: Pairs, owned: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of slots over their candidates and of candidates over their boxes, sum a box.

    Args:
        logits: of one round.
        pairs: that they rate.
        owned: (E,) bool, the candidate is a joint of the box's person.
    """
    num_slots, num_candidates = len(logits.no_candidate), pairs.num_candidates
    target = owned.to(logits.pairs.dtype)
    total = -2.0 * (logits.pairs * target).sum()
    for index, count, default in (
        (pairs.slot, num_slots, logits.no_candidate),
        (pairs.candidate, num_candidates, logits.no_box),
    ):
        has = segment_sum(target, index, count) > 0
        counts = torch.zeros_like(has).index_fill(0, index, True)
        log_sum = segment_exp_sum(logits.pairs, index, default).log()
        total = total + (log_sum - torch.where(has, 0.0, default))[counts].sum()
    return total / max(len(pairs.box_features), 1)


def pose_quality(
    chance: torch.Tensor,
    points: torch.Tensor,
    pairs: Pairs,
    truth: torch.Tensor,
    areas: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """(B,) share of COCO's OKS thresholds that a pose of each slot's likeliest candidate passes.

    The mean of it over people is what AP counts: a pose score that expects it ranks best.

    Args:
        chance: (E,) probability of each pair.
        points: (E, 2) its candidate, pixels.
        pairs: of the network.
        truth: (B, K, 3) x, y, v of the boxes' people, pixels; without a joint with v > 0: 0.
        areas: (B,) of them, square pixels.
        sigmas: (K,) of the skeleton.
    """
    count = truth.shape[0] * truth.shape[1]
    best = chance.new_zeros(count).scatter_reduce(0, pairs.slot, chance, "amax")
    chosen = (chance >= best[pairs.slot]).to(chance.dtype)
    where = segment_sum(points * chosen[:, None], pairs.slot, count)
    some = segment_sum(chosen, pairs.slot, count)
    poses = (where / some.clamp(min=1.0)[:, None]).view(*truth.shape[:2], 2)
    similarity = joint_similarity(truth, poses, areas, sigmas) * (some > 0).view(truth.shape[:2])
    labelled = truth[..., 2] > 0
    oks = (similarity * labelled).sum(dim=1) / labelled.sum(dim=1).clamp(min=1)
    thresholds = torch.arange(10, device=oks.device) * 0.05 + 0.5
    return (oks[:, None] >= thresholds).to(oks.dtype).mean(dim=1)
