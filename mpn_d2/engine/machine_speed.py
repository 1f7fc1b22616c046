"""What the machine can do at best: its rate of multiplying matrices."""

from __future__ import annotations

import torch

from mpn_d2.utils.timing import seconds_of

_SIDE = {"cpu": 2048, "cuda": 8192}


@torch.no_grad()
def matmul_gflops(dtype: torch.dtype, device: str, repeats: int = 5) -> float:
    """10^9 operations a second (a multiplication and an addition are two) of square matrices, best
    of so many products."""
    side = _SIDE["cuda" if device.startswith("cuda") else "cpu"]
    left = torch.rand(side, side, device=device).to(dtype)
    right = torch.rand(side, side, device=device).to(dtype)
    seconds = min(seconds_of(lambda: left @ right, repeats, device=device))
    return 2 * side**3 / seconds / 1e9
