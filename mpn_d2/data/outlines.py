"""Outlines of polygons: how long one may be, and what of it lies around the image.

pycocotools walks an outline in steps of a fifth of a pixel, keeps every step and counts them in 32
bits: a few kilobytes of corners far apart fill the memory, or end the process (SIGSEGV).
"""

from __future__ import annotations

import numpy as np

# Of an annotation, all polygons together; COCO's largest have some thousands.
MOST_POINTS = 100_000
# Pixels, of an annotation: pycocotools needs some 80 bytes for each.
LONGEST_OUTLINE = 1e6
# What of it lies around the image, in (width + height) of that; people have less than ten. What
# enlarges the image (training on small ones) enlarges this part.
LONGEST_AROUND_IMAGE = 100
# Pixels that are drawn at most, whatever the polygons come from and are enlarged to.
_MOST_DRAWN = 1e7


def outline_length(polygon: np.ndarray) -> float:
    """Pixels that pycocotools walks along a closed outline of (n, 2) corners."""
    steps = np.abs(np.roll(polygon, -1, axis=0) - polygon).max(axis=1, initial=0)
    return float(steps.sum())


def around_image(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What of a polygon lies within one image size around the image: (n, 2) corners.

    The same pixels of the image are inside it. A polygon that reaches no further stays as it is;
    one that lies elsewhere altogether has no corner left.

    Args:
        polygon: (n, 2) x, y.
        size: (H, W) of the image.
    """
    for axis, length in ((0, size[1]), (1, size[0])):
        polygon = _cut(polygon, axis, -length, 1)
        polygon = _cut(polygon, axis, 2 * length, -1)
    return polygon if len(polygon) >= 3 else polygon[:0]


def drawable(polygons: list[np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
    """Polygons as they can be handed to pycocotools, see `around_image`.

    Raises:
        ValueError: their outlines are too long all the same.
    """
    near = [around_image(polygon, size) for polygon in polygons]
    length = sum(map(outline_length, near))
    if length > _MOST_DRAWN:
        raise ValueError(
            f"polygons with {length:,.0f} pixels of outline: draw them with fewer corners"
        )
    return [polygon for polygon in near if len(polygon)]


def _cut(polygon: np.ndarray, axis: int, limit: float, sign: int) -> np.ndarray:
    """What of the polygon lies on one side of a line across an axis (Sutherland and Hodgman)."""
    inside = sign * (polygon[:, axis] - limit) >= 0
    if inside.all():
        return polygon
    after = np.roll(polygon, -1, axis=0)
    crosses = inside != np.roll(inside, -1)
    way = np.where(crosses, after[:, axis] - polygon[:, axis], 1)
    share = (limit - polygon[:, axis]) / way
    cuts = polygon + share[:, None] * (after - polygon)
    cuts[:, axis] = limit
    # Each corner, then where the edge behind it crosses the line.
    both = np.stack([polygon, cuts], axis=1).reshape(-1, 2)
    return both[np.stack([inside, crosses], axis=1).reshape(-1)]
