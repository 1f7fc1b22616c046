"""Person masks out of COCO annotations: polygons and RLE to pixels, pixels to cells.

Polygons are continuous coordinates; a pixel belongs to one when its centre does (pycocotools).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks

from mpn_d2.data.outlines import drawable, outline_length

# Outline of a person, in (width + height) of the image, beyond which a mask is kept as a bitmap:
# the mask head enlarges a small box to its grid, outline and all.
_MOST_ENLARGED = 10


def valid_polygons(segmentation: object) -> list[np.ndarray]:
    """The polygons of a COCO `segmentation` with three points or more, each (n, 2) x, y."""
    if not isinstance(segmentation, list):
        return []
    arrays = [np.array(p, dtype=np.float64).reshape(-1) for p in segmentation]
    return [a.reshape(-1, 2) for a in arrays if a.size >= 6 and a.size % 2 == 0]


def has_mask(annotation: dict) -> bool:
    """Whether the annotation says which pixels are the person's."""
    segmentation = annotation.get("segmentation")
    return isinstance(segmentation, dict) or bool(valid_polygons(segmentation))


def union_mask(
    annotations: list[dict],
    size: tuple[int, int],
    transforms: T.Transform | None = None,
    out_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Pixels covered by any of the annotations' masks; annotations without a mask add nothing.

    Args:
        annotations: with COCO `segmentation` (polygons, or RLE compressed or not).
        size: (H, W) of the annotated image.
        transforms: geometry from the annotated image to the output, None for none.
        out_size: (H, W) of the output, None for `size`.

    Returns:
        (H, W) uint8 of 0 and 1 at `out_size`.

    Raises:
        ValueError: an RLE mask has another size than the image, or polygons are too long to draw.
    """
    transforms = T.NoOpTransform() if transforms is None else transforms
    out_size = size if out_size is None else out_size
    polygons, rles = [], []
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            rles.append(_compressed(segmentation, size))
        polygons.extend(valid_polygons(segmentation))

    mask = np.zeros(out_size, dtype=np.uint8)
    if rles:
        decoded = mask_util.decode(mask_util.merge(rles))
        mask |= transforms.apply_segmentation(decoded)
    if polygons:
        # Not `apply_polygons`: for crops that needs shapely, and drawing clips anyway.
        moved = drawable([transforms.apply_coords(p) for p in polygons], out_size)
        corners = [p.reshape(-1).tolist() for p in moved]
        # pycocotools takes an empty list for no mask of any size.
        if corners:
            mask |= mask_util.decode(mask_util.merge(mask_util.frPyObjects(corners, *out_size)))
    return mask


def instance_masks(
    annotations: list[dict],
    size: tuple[int, int],
    transforms: T.Transform,
    out_size: tuple[int, int],
) -> tuple[PolygonMasks | BitMasks, torch.Tensor]:
    """The masks of people one by one, as Detectron2's mask head takes them.

    Args:
        annotations, size, transforms, out_size: as `union_mask`'s.

    Returns:
        P masks at `out_size`: polygons, which are small, or bitmaps where anybody has an RLE or a
        very long outline; and (P,) bool, who has a mask. The others' are empty.

    Raises:
        ValueError: as `union_mask`.
    """
    known = torch.tensor([has_mask(a) for a in annotations], dtype=torch.bool)
    polygons = [valid_polygons(a.get("segmentation")) for a in annotations]
    moved = [drawable([transforms.apply_coords(p) for p in ps], out_size) for ps in polygons]
    longest = max((sum(map(outline_length, person)) for person in moved), default=0)
    if longest > _MOST_ENLARGED * sum(out_size) or any(
        isinstance(a.get("segmentation"), dict) for a in annotations
    ):
        maps = [union_mask([a], size, transforms, out_size) for a in annotations]
        return BitMasks(torch.from_numpy(np.stack(maps)).bool()), known
    return PolygonMasks([[p.reshape(-1) for p in person] for person in moved]), known


def mask_area(annotation: dict, size: tuple[int, int]) -> float | None:
    """Square pixels of the annotation's mask, polygons exactly; None where it has no mask.

    Args:
        annotation: with or without a COCO `segmentation`.
        size: (H, W) of the annotated image.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return float(mask_util.area(_compressed(segmentation, size)))
    polygons = valid_polygons(segmentation)
    if not polygons:
        return None
    # Overlapping parts count twice, as in COCO's own `area`.
    return sum(abs(_signed_area(p)) for p in polygons)


def _signed_area(polygon: np.ndarray) -> float:
    """Of (n, 2) corners, by the shoelace formula."""
    after = np.roll(polygon, -1, axis=0)
    return float((polygon[:, 0] * after[:, 1] - polygon[:, 1] * after[:, 0]).sum() / 2)


def box_outline(box: Sequence[float] | np.ndarray) -> dict:
    """A box x1, y1, x2, y2 as if it were a mask, for `union_mask`: it can be turned too."""
    x1, y1, x2, y2 = (float(v) for v in box)
    return {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}


def mask_points(annotation: dict, size: tuple[int, int]) -> np.ndarray:
    """(n, 2) points x, y, between which the whole mask lies; n = 0 without a mask.

    Args:
        annotation: with COCO `segmentation`.
        size: (H, W) of the annotated image.
    """
    segmentation = annotation.get("segmentation")
    if not isinstance(segmentation, dict):
        return np.concatenate([np.zeros((0, 2)), *valid_polygons(segmentation)])
    mask = mask_util.decode(_compressed(segmentation, size))
    rows = np.flatnonzero(mask.any(axis=1))
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    # Both ends of each row, at its upper and its lower edge.
    return np.array(
        [(x, y) for ends in (left, right) for edge in (rows, rows + 1) for x, y in zip(ends, edge)],
        dtype=np.float64,
    ).reshape(-1, 2)


def reduce_to_cells(mask: np.ndarray, stride: int) -> np.ndarray:
    """(H, W) pixels to (ceil(H / stride), ceil(W / stride)) cells, uint8.

    A cell is 1 where at least half of its pixels inside the image are set.
    """
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % stride), (0, -width % stride)))
    counts: np.ndarray = np.zeros(padded[::stride, ::stride].shape, np.int32)
    for y in range(stride):
        for x in range(stride):
            counts += padded[y::stride, x::stride]
    # Pixels of each row and column of cells; fewer in the last ones.
    heights = np.minimum(height - stride * np.arange(counts.shape[0]), stride)
    widths = np.minimum(width - stride * np.arange(counts.shape[1]), stride)
    return (2 * counts >= np.outer(heights, widths)).astype(np.uint8)


def _compressed(rle: dict, size: tuple[int, int]) -> dict:
    if tuple(rle["size"]) != tuple(size):
        raise ValueError(f"RLE mask of size {tuple(rle['size'])} in an image of size {size} (H, W)")
    return mask_util.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle
