"""What is around drawn people: backgrounds, things in front of them, the camera's noise."""

from __future__ import annotations

import cv2
import numpy as np

from mpn_d2.data.drawn_look import SKIN, Color, sample_color
from mpn_d2.data.drawn_people import SCALE, capsule, fill_polygon, hull
from mpn_d2.data.drawn_random import Draws


def draw_background(draws: Draws, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 BGR for `size` (H, W): noise at several scales, a floor, random things."""
    height, width = size
    total = np.zeros((height, width, 3), dtype=np.int16)
    centre = draws.integer(60, 190)
    for cells, share in ((2, 1.0), (draws.integer(3, 8), 0.5), (draws.integer(12, 40), 0.22)):
        spread = int(share * draws.integer(20, 110))
        grid = draws.grid(cells, cells, 0, 2 * spread)
        if draws.chance(0.6):  # mostly of one hue
            grid[..., 1:] = grid[..., :1] // 2 + grid[..., 1:] // 2
        coarse = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        total += coarse.astype(np.int16) - spread
    image = (total + centre).clip(0, 255).astype(np.uint8)
    if draws.chance(0.6):
        _draw_floor(draws, image)
    for _ in range(draws.integer(0, 14)):
        _draw_thing(draws, image)
    return image


def _draw_floor(draws: Draws, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    top = int(height * draws.uniform(0.35, 0.85))
    floor = image[top:]
    color = np.array(sample_color(draws), dtype=np.uint16)
    floor[:] = ((floor.astype(np.uint16) + 2 * color) // 3).astype(np.uint8)
    if draws.chance(0.4):
        line = sample_color(draws)
        for _ in range(draws.integer(2, 7)):
            x = draws.integer(-width, 2 * width)
            cv2.line(image, (width // 2 + (x - width // 2) // 4, top), (x, height), line,
                     draws.integer(1, 3))  # fmt: skip


def _draw_thing(draws: Draws, image: np.ndarray) -> None:
    """Something that is no person, though some are coloured or shaped like parts of one."""
    height, width = image.shape[:2]
    color = draws.choice(SKIN) if draws.chance(0.2) else sample_color(draws)
    centre = np.array([draws.uniform(0, width), draws.uniform(0, height)])
    extent = np.array([draws.uniform(4, width / 4), draws.uniform(4, height / 4)])
    kind = draws.choice(("box", "box", "stripes", "blob", "pole", "limb", "frame"))
    if kind == "limb":
        far = centre + extent * draws.choice((-1, 1)) * np.array([0.4, 1.0])
        radius = draws.uniform(2, 12)
        _fill(image, capsule(centre, far, radius, radius * draws.uniform(0.6, 1.0)), color)
    elif kind == "blob":
        _fill(image, _blob(centre, extent), color)
    elif kind == "pole":
        half = draws.uniform(1, 8)
        _fill(image, _box(centre[0] - half, -1, centre[0] + half, height * draws.uniform(0.4, 1)),
              color)  # fmt: skip
    elif kind == "stripes":
        for i in range(draws.integer(2, 6)):
            x = centre[0] + i * extent[0] / 3
            _fill(image, _box(x, centre[1] - extent[1], x + extent[0] / 6, centre[1] + extent[1]),
                  color)  # fmt: skip
    else:
        low, high = centre - extent, centre + extent
        _fill(image, _box(*low, *high), color)
        if kind == "frame":
            rim = draws.uniform(2, 6)
            _fill(image, _box(*(low + rim), *(high - rim)), sample_color(draws))


def _darker(color: Color) -> Color:
    red, green, blue = (c * 3 // 4 for c in color)
    return red, green, blue


def sample_occluder(
    draws: Draws, size: tuple[int, int], box: tuple[float, float, float, float]
) -> list[tuple[np.ndarray, Color]]:
    """Coloured convex polygons of a thing in front of `box` (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    x, y = draws.uniform(x1, x2), draws.uniform(y1 + 0.2 * height, y2)
    color = sample_color(draws)
    kind = draws.weighted({"table": 0.3, "pole": 0.25, "box": 0.25, "bush": 0.2})
    if kind == "table":
        top, reach = y1 + height * draws.uniform(0.5, 0.85), width * draws.uniform(0.5, 1.1)
        thick = height * draws.uniform(0.04, 0.12)
        low = min(float(size[0] + 1), y2 + 0.1 * height)
        shapes = [(_box(x - reach, top, x + reach, top + thick), color)]
        if draws.chance(0.5):  # closed below, a counter
            dark = _darker(color)
            shapes.append((_box(x - 0.95 * reach, top + thick, x + 0.95 * reach, low), dark))
        else:
            leg = reach * 0.06 + 1
            for at in (x - 0.9 * reach, x + 0.9 * reach):
                shapes.append((_box(at - leg, top + thick, at + leg, low), color))
        return shapes
    if kind == "pole":
        half = width * draws.uniform(0.04, 0.16) + 1
        shade = _darker(color)
        return [
            (_box(x - half, -1, x + half, size[0] + 1), shade),
            (_box(x - 0.5 * half, -1, x + half, size[0] + 1), color),
        ]
    extent = np.array([width * draws.uniform(0.2, 0.5), height * draws.uniform(0.08, 0.25)])
    centre = np.array([x, y])
    if kind == "bush":
        return [(_blob(centre, extent), color)]
    return [(_box(*(centre - extent), *(centre + extent)), color)]


def finish(draws: Draws, picture: np.ndarray) -> np.ndarray:
    """Reduces the picture by SCALE and adds what a camera adds: blur, contrast, noise."""
    height, width = picture.shape[0] // SCALE, picture.shape[1] // SCALE
    image = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    if draws.chance(0.25):
        image = cv2.GaussianBlur(image, (3, 3), 0)
    gain, offset = draws.integer(200, 290), draws.integer(-20, 20)
    table = ((np.arange(256) * gain // 256) + offset).clip(0, 255)
    image = table.astype(np.uint8)[image]
    if draws.chance(0.6):
        amount = draws.integer(1, 7)
        noise = np.floor(draws.generator.random(image.shape) * (2 * amount + 1)).astype(np.int16)
        image = np.clip(image.astype(np.int16) + noise - amount, 0, 255).astype(np.uint8)
    return image


def _fill(image: np.ndarray, polygon: np.ndarray, color: Color) -> None:
    fill_polygon(image, polygon, color, scale=1)


def _box(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def _blob(centre: np.ndarray, extent: np.ndarray) -> np.ndarray:
    return centre + (hull([(np.zeros(2), 1.0)])) * extent
