"""A picture of predicted heatmaps over the image that they were predicted from."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from mpn_d2.utils.target_pictures import draw_heatmap

# Rows of so many pixels are coloured at a time: colouring takes 100 bytes a pixel.
_PIXELS = 2**20


def draw_heatmaps(image_rgb: np.ndarray, heatmaps: np.ndarray) -> np.ndarray:
    """The strongest heatmap of each place, bright at 1, over the image in dim grey.

    Args:
        image_rgb: (H, W, 3) uint8.
        heatmaps: (K, h, w), at least one; they span the image exactly, so cell i of a row covers
            pixels [i W / w, (i + 1) W / w) (design 4.1).

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another shape.
    """
    if image_rgb.ndim != 3 or image_rgb.dtype != np.uint8:
        raise ValueError(f"cannot draw on {image_rgb.dtype} {image_rgb.shape}: uint8 (H, W, 3) RGB")
    if heatmaps.ndim != 3 or 0 in heatmaps.shape:
        raise ValueError(f"heatmaps are {heatmaps.shape}: (K, h, w) is needed")
    height, width = image_rgb.shape[:2]
    strongest = heatmaps.max(axis=0).astype(np.float32)
    # OpenCV lays the edges of both grids on one another, as wanted here.
    heat = torch.from_numpy(cv2.resize(strongest, (width, height), interpolation=cv2.INTER_LINEAR))
    picture = np.empty_like(image_rgb)
    rows = max(_PIXELS // width, 1)
    for top in range(0, height, rows):
        part = slice(top, top + rows)
        picture[part] = draw_heatmap(image_rgb[part], heat[part], 1)
    return picture
