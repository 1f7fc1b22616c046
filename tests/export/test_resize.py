"""Resizing in tensors against Pillow and Detectron2 themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from mpn_d2.export.resize import resize_as_pillow, shorter_side_size


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    found = resize_as_pillow(tensor, torch.tensor(height), torch.tensor(width))
    assert found.dtype == torch.float32
    return found.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("together", [True, False], ids=["both sides alike", "any size"])
def test_every_byte_is_pillows(together):
    rng = np.random.default_rng(int(together))
    for _ in range(60):
        height, width, new_height, new_width = rng.integers(1, 60, 4).tolist()
        if together:
            factor = rng.uniform(0.3, 1.5)
            new_height, new_width = (max(round(x * factor), 1) for x in (height, width))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        size = (new_width, new_height)
        expected = np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR))
        np.testing.assert_array_equal(resized(image, new_height, new_width), expected)


# The first and the last become 397.49999999999994 and 157.49999999999997 before rounding.
@pytest.mark.parametrize(
    "size", [(424, 640), (480, 640), (641, 480), (150, 61), (2000, 90), (7, 2000), (84, 320)]
)
@pytest.mark.parametrize("bounds", [(400, 600), (800, 1333), (64, 64)])
def test_sizes_are_detectron2s(size, bounds):
    found = shorter_side_size(*(torch.tensor(x) for x in size), *bounds)
    expected = T.ResizeShortestEdge.get_output_shape(*size, *bounds)
    assert tuple(map(int, found)) == tuple(max(x, 1) for x in expected)


def test_a_side_keeps_one_pixel():
    assert int(shorter_side_size(torch.tensor(5000), torch.tensor(1), 64, 96)[1]) == 1


def test_the_size_that_it_has_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resized(image, 31, 17), image)
