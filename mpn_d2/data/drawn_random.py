"""Random draws for drawn pictures that come out the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """Draws from uniform numbers alone, so that no library's tables for normals are involved.

    Args:
        *key: non-negative integers; the same key gives the same draws.
    """

    def __init__(self, *key: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * self.generator.random()

    def around(self, mean: float, spread: float) -> float:
        """Bell-shaped, never further than `spread` from `mean` (sum of three uniform draws)."""
        a, b, c = self.generator.random(3)
        return mean + spread * (2 * (a + b + c) / 3 - 1)

    def chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return low + min(int(self.generator.random() * (high - low + 1)), high - low)

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def weighted(self, weights: dict[T, float]) -> T:
        """A key, by its weight."""
        left = self.generator.random() * sum(weights.values())
        for option, weight in weights.items():
            left -= weight
            if left < 0:
                return option
        return option

    def grid(self, rows: int, columns: int, low: int, high: int) -> np.ndarray:
        """(rows, columns, 3) uint8 colours between `low` and `high`."""
        values = self.generator.random((rows, columns, 3))
        return (low + np.floor(values * (high - low + 1))).clip(0, 255).astype(np.uint8)
