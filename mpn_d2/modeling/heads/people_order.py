"""Orders in which people are handed to the second LSTM (spec of unified association, section 3).

Letters: P people, K keypoint types, H x W cells.
"""

from __future__ import annotations

import torch

ORDERS = ("learned", "random", "confidence", "inverse", "canonical")


def order_people(
    order: str,
    maps: torch.Tensor,
    scores: torch.Tensor,
    tau: float,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Places of the people in the order that LSTM2 gets them.

    - learned: as LSTM1 wrote them; inverse: the last one first;
    - random: drawn anew each time;
    - confidence: the highest stop score first;
    - canonical: by the mean x, then y, of the cells of the joints' maxima that reach `tau`; people
      without such joints last.

    Args:
        order: of ORDERS.
        maps: (P, K, H, W) of LSTM1.
        scores: (P,) stop scores.
        tau: see MODEL.SEQUENCE.TAU.
        generator: of "random", on the CPU; None: the global one.
    """
    count = len(maps)
    if order == "learned":
        return list(range(count))
    if order == "inverse":
        return list(range(count))[::-1]
    if order == "random":
        return torch.randperm(count, generator=generator).tolist()
    if order == "confidence":
        return torch.argsort(scores.detach(), descending=True, stable=True).tolist()
    if order != "canonical":
        raise ValueError(f"MODEL.SEQUENCE.ORDER is {order!r}; choose one of {', '.join(ORDERS)}")
    values, cells = maps.detach().flatten(2).max(dim=2)
    has = (values >= tau).double()
    width, joints = maps.shape[-1], has.sum(dim=1)
    x = ((cells % width) * has).sum(dim=1) / joints.clamp(min=1)
    y = ((cells // width) * has).sum(dim=1) / joints.clamp(min=1)
    keys = [(joints[i].item() == 0, x[i].item(), y[i].item()) for i in range(count)]
    return sorted(range(count), key=keys.__getitem__)
