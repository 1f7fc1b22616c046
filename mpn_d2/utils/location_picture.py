"""Picture of the locations that answer for people: what pose regression is taught.

Frame: network input, continuous pixels (design 4.1).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from mpn_d2.codecs.offsets import Locations
from mpn_d2.utils.target_pictures import IGNORED_COLOR
from mpn_d2.utils.visualize import track_color

# Radius of a drawn location, share of its stride; pixels at least.
_SHARE, _LEAST = 0.2, 2


def draw_locations(
    image_rgb: np.ndarray, locations: Locations, owners: torch.Tensor, ignored: torch.Tensor
) -> np.ndarray:
    """A disc in the person's colour at every location of hers, larger at coarser levels; red points
    where the background is ignored.

    Args:
        image_rgb: (H, W, 3) uint8, the network input; locations on the padding are left out.
        locations: R of one image.
        owners: (R,) int64 person, -1 for background.
        ignored: (R,) bool.

    Returns:
        RGB uint8 picture of the same size.
    """
    picture = np.ascontiguousarray(image_rgb).copy()
    rows = zip(
        locations.points.tolist(),
        locations.strides.tolist(),
        owners.tolist(),
        ignored.tolist(),
        strict=True,
    )
    for (x, y), stride, owner, is_ignored in rows:
        # Pixel i spans [i, i + 1).
        place = (int(x), int(y))
        if owner >= 0:
            color = [round(255 * c) for c in track_color(owner)]
            radius = max(round(_SHARE * stride), _LEAST)
            cv2.circle(picture, place, radius, color, thickness=cv2.FILLED)
        elif is_ignored and x < image_rgb.shape[1] and y < image_rgb.shape[0]:
            picture[place[1], place[0]] = IGNORED_COLOR
    return picture
