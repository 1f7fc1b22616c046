"""People written one after the other: who is who, and what is lost, as pure functions.

Spec of unified association, sections 4 and 5. Letters: T steps, Z annotated people, K keypoint
types, H x W cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

RULES = ("a", "b")


def stop_loss(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Sum of the binary cross entropy of steps (paper eq. 3, with the minus that it lacks).

    Args:
        logits: (T,).
        targets: (T,) 1 for the first z steps of the image, then 0 (eq. 1).
        counts: (T,) bool, steps that are supervised.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return (losses * counts).sum()


def takes_part(
    stop_scores: torch.Tensor,
    steps: torch.Tensor,
    leading: torch.Tensor,
    people: int,
    omega: float,
    *,
    under: str,
    over: str,
) -> torch.Tensor:
    """(T,) bool: which maps are matched to annotated people (paper section 3.2, miscounting).

    Args:
        stop_scores: (T,) in [0, 1].
        steps: (T,) number of each step, the image's first is 1.
        leading: (T,) bool, no score was below omega up to here.
        people: z, annotated.
        omega: stop threshold.
        under: fewer found than annotated: "a" leaves out steps below omega, "b" none.
        over: more found than annotated: "a" leaves out those after the z-th step, "b" none that
            was found.
    """
    within = steps <= people
    if under == "a":
        within = within & (stop_scores >= omega)
    return within | ((steps > people) & leading) if over == "b" else within


def pair_costs(maps: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(T, Z) sums over the keypoint types of the distance (L2 norm) of whole maps.

    Args:
        maps: (T, K, H, W) predicted.
        targets: (Z, K, H, W).
    """
    maps, targets = maps.float().flatten(2), targets.flatten(2)
    # One person at a time: all pairs at once would need T Z K H W numbers.
    columns = [(maps - target).norm(dim=-1).sum(dim=-1) for target in targets]
    return torch.stack(columns, dim=1) if columns else maps.new_zeros(len(maps), 0)


def match_people(costs: torch.Tensor) -> list[tuple[int, int]]:
    """min(T, Z) pairs (step, person) of least total cost (Hungarian), in the order of the steps.

    Raises:
        FloatingPointError: costs that are not finite.
    """
    if not torch.isfinite(costs).all():
        raise FloatingPointError(
            "maps of the recurrent decoder are NaN or infinite: lower SOLVER.BASE_LR or set "
            "SOLVER.CLIP_GRADIENTS"
        )
    rows, columns = linear_sum_assignment(costs.cpu().numpy())
    return sorted(zip(rows.tolist(), columns.tolist(), strict=True))


def sequence_heatmap_loss(
    maps: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, *, per_cell: bool
) -> torch.Tensor:
    """Sum over people and keypoint types of the squared distance (paper eqs. 2 and 4).

    Args:
        maps, targets: (r, K, H, W) of matched pairs.
        weights: (r or 1, K or 1, H, W) of the cells, 0 where nothing is known.
        per_cell: mean over the cells instead of their sum.
    """
    squares = weights * (maps.float() - targets).square()
    total = squares.sum()
    return total / (maps.shape[-2] * maps.shape[-1]) if per_cell else total
