"""Object keypoint similarity (OKS) between poses, and suppression of repeated poses by it.

Letters: A and B poses of two sets, N poses of one set, K keypoint types. The formula is COCO's:
`mean_k exp(-d_k^2 / (2 area (2 sigma_k)^2))`. The sigmas come from the Skeleton.
"""

from __future__ import annotations

import torch

# A person covers about half of her box; CrowdPose's evaluation takes this share (design 7.9).
AREA_OF_BOX = 0.53


def pairwise_oks(
    poses: torch.Tensor,
    others: torch.Tensor,
    areas: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """COCO's OKS of every pair, averaged over the joints that the first pose has.

    Args:
        poses: (A, K, 3) x, y, v; joints with v > 0 are compared (ground truth in COCO).
        others: (B, K, 2 or 3) x, y, compared wherever they lie.
        areas: (A,) area of each first pose's person, square pixels.
        sigmas: (K,) of the skeleton.

    Returns:
        (A, B) in [0, 1]; 0 for a first pose without joints.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(poses, areas, sigmas, "poses")
    if others.ndim != 3 or others.shape[1] != poses.shape[1]:
        raise ValueError(
            f"others have shape {tuple(others.shape)}, expected (B, {poses.shape[1]}, 2 or 3)"
        )
    similarity = joint_similarity(poses[:, None], others[None], areas[:, None], sigmas)
    has = (poses[:, None, :, 2] > 0).to(similarity.dtype)
    return (similarity * has).sum(-1) / has.sum(-1).clamp(min=1.0)


def self_oks(poses: torch.Tensor, areas: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """OKS between predicted poses, for suppression: symmetric, aware of missing joints.

    Only joints that both have are compared, with the mean of both areas; the sum is divided by
    the smaller number of joints, so poses that share one joint of many are no repeats.

    Args:
        poses: (N, K, 3) x, y, score; a joint with score <= 0 is missing.
        areas: (N,) square pixels.
        sigmas: (K,).

    Returns:
        (N, N) in [0, 1].
    """
    _check(poses, areas, sigmas, "poses")
    mean_areas = (areas[:, None] + areas) / 2
    similarity = joint_similarity(poses[:, None], poses[None], mean_areas, sigmas)
    has = poses[..., 2] > 0
    both = (has[:, None] & has[None]).to(similarity.dtype)
    count = has.sum(-1)
    fewer = torch.minimum(count[:, None], count).clamp(min=1)
    return (similarity * both).sum(-1) / fewer


def oks_nms(
    poses: torch.Tensor,
    scores: torch.Tensor,
    areas: torch.Tensor,
    sigmas: torch.Tensor,
    threshold: float,
) -> torch.Tensor:
    """Keeps the best pose, drops those more similar than `threshold` to a kept one, and so on.

    Args:
        poses: (N, K, 3) x, y, score.
        scores: (N,).
        areas: (N,).
        sigmas: (K,).
        threshold: OKS above which a pose repeats a better one (0.9 in mmpose).

    Returns:
        (kept,) int64 indices, best first; equal scores keep their order.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    repeats = (self_oks(poses[order], areas[order], sigmas) > threshold).cpu()
    alive = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~repeats[index, index + 1 :]
    return order[alive.to(order.device)]


def soft_oks_nms(
    poses: torch.Tensor,
    scores: torch.Tensor,
    areas: torch.Tensor,
    sigmas: torch.Tensor,
    threshold: float,
    min_score: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowers the score of repeated poses by exp(-oks^2 / threshold) instead of dropping them.

    Soft-NMS (Bodla et al., ICCV 2017) with OKS in place of IoU.

    Args:
        poses: (N, K, 3), see `oks_nms`, as the next three.
        scores: (N,).
        areas: (N,).
        sigmas: (K,).
        threshold: width of the Gaussian penalty.
        min_score: poses whose lowered score is below it are dropped.

    Returns:
        (kept,) int64 indices in order of lowered score, and (kept,) the lowered scores.
    """
    penalty = torch.exp(-(self_oks(poses, areas, sigmas) ** 2) / threshold).cpu()
    current = scores.detach().clone().cpu()
    waiting = torch.ones(len(current), dtype=torch.bool)
    kept: list[int] = []
    while waiting.any():
        best = int(torch.where(waiting, current, current.new_tensor(-torch.inf)).argmax())
        if not current[best] >= min_score:
            break
        waiting[best] = False
        kept.append(best)
        current = torch.where(waiting, current * penalty[best], current)
    index = torch.tensor(kept, dtype=torch.int64)
    return index.to(scores.device), current[index].to(scores.device)


def _check(poses: torch.Tensor, areas: torch.Tensor, sigmas: torch.Tensor, name: str) -> None:
    if poses.ndim != 3 or poses.shape[1:] != (len(sigmas), 3):
        raise ValueError(f"{name} have shape {tuple(poses.shape)}, expected (N, {len(sigmas)}, 3)")
    if areas.shape != poses.shape[:1]:
        raise ValueError(f"areas have shape {tuple(areas.shape)}, expected ({len(poses)},)")


def joint_similarity(
    poses: torch.Tensor, others: torch.Tensor, areas: torch.Tensor, sigmas: torch.Tensor
) -> torch.Tensor:
    """Each joint's term of the OKS, whether the joint is there or not.

    Args:
        poses, others: (..., K, 2 or 3) x, y; leading dimensions broadcast.
        areas: (...) square pixels.
        sigmas: (K,).

    Returns:
        (..., K) in [0, 1].
    """
    squared = ((poses[..., :2] - others[..., :2]) ** 2).sum(-1)
    variances = (2 * sigmas.to(squared)) ** 2
    # The tiny area keeps a person without area at similarity 1 for equal, 0 for other joints.
    return torch.exp(-squared / (2 * variances * areas.clamp(min=1e-9)[..., None]))
