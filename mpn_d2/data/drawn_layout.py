"""Where drawn people stand: alone, in groups that cover each other, in crowds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpn_d2.data.drawn_look import Color, Look, sample_look
from mpn_d2.data.drawn_people import SCALE, Shape, body_shapes, clipped, fill_polygon, outline
from mpn_d2.data.drawn_pose import Figure, sample_figure
from mpn_d2.data.drawn_random import Draws
from mpn_d2.data.drawn_scenes import sample_occluder

# How much of somebody must be left to see, of the whole outline.
LEAST_VISIBLE = 0.15
LEAST_PIXELS = 20


@dataclass
class Occluder:
    """A thing in the picture: polygons with colours, painted after that many people."""

    after: int
    shapes: list[tuple[np.ndarray, Color]]

    def cut_out(self, who: np.ndarray, scale: int = SCALE) -> None:
        """Sets a map of people to 0 where the thing is."""
        for polygon, _ in self.shapes:
            fill_polygon(who, polygon, 0, scale)

    def paint(self, picture: np.ndarray) -> None:
        """Draws it into a picture SCALE times larger than the image."""
        for polygon, color in self.shapes:
            fill_polygon(picture, polygon, color, SCALE)


@dataclass
class Person:
    """Somebody in the picture.

    Attributes:
        shapes: in pixels of the image.
        outline: (h, w) uint8, all that the person covers with nothing in front.
        corner: (x, y) of the outline's first pixel.
        kind: "known" with keypoints, "unknown" without, "crowd" for members of a crowd.
    """

    figure: Figure
    look: Look
    shapes: list[Shape]
    outline: np.ndarray
    corner: tuple[int, int]
    kind: str = "known"

    @functools.cached_property
    def pixels(self) -> int:
        """Of the outline."""
        return int(self.outline.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 of the outline, the part outside of the image included."""
        x, y = self.corner
        return x, y, x + self.outline.shape[1], y + self.outline.shape[0]


def make_person(figure: Figure, look: Look, box: np.ndarray | None = None) -> Person:
    """`box` (x1, y1, x2, y2): what reaches out of it is cut off."""
    shapes = body_shapes(figure, look)
    if box is not None:
        cut = [s._replace(polygon=clipped(s.polygon, box)) for s in shapes]
        shapes = [s for s in cut if len(s.polygon) > 2]
    mask, corner = outline(shapes)
    return Person(figure, look, shapes, mask, corner)


def move(person: Person, x: float, bottom: float) -> Person:
    """The person with the middle of the outline at x and its lower edge at `bottom`."""
    x1, _, x2, y2 = person.box
    # Whole pixels: the outline stays as it is.
    dx, dy = round(x - (x1 + x2) / 2), round(bottom - y2)
    shapes = [shape._replace(polygon=shape.polygon + (dx, dy)) for shape in person.shapes]
    corner = (person.corner[0] + dx, person.corner[1] + dy)
    figure = person.figure.moved(dx, dy)
    return Person(figure, person.look, shapes, person.outline, corner, person.kind)


def visible_pixels(
    people: list[Person], size: tuple[int, int], occluders: Sequence[Occluder] = ()
) -> list[int]:
    """Of each person, those inside the image that nothing later covers."""
    who = np.zeros(size, dtype=np.uint8)
    for number, person in enumerate(people, start=1):
        window, part = _inside(person, size)
        np.copyto(who[window], np.uint8(number), where=part.view(bool))
        for occluder in occluders:
            if occluder.after == number:
                occluder.cut_out(who, scale=1)
    return np.bincount(who.ravel(), minlength=len(people) + 1)[1 : len(people) + 1].tolist()


def all_visible(
    people: list[Person],
    size: tuple[int, int],
    least: float,
    occluders: Sequence[Occluder] = (),
) -> bool:
    """Whether at least this share of everybody's outline is left to see."""
    return all(
        pixels >= max(least * person.pixels, LEAST_PIXELS)
        for person, pixels in zip(people, visible_pixels(people, size, occluders))
    )


def sample_occluders(
    draws: Draws, people: list[Person], size: tuple[int, int], chance: float = 0.12
) -> list[Occluder]:
    """Things in front of some of the people that leave enough of everybody to see."""
    found: list[Occluder] = []
    for place, person in enumerate(people, start=1):
        if draws.chance(chance):
            occluder = Occluder(place, sample_occluder(draws, size, person.box))
            if all_visible(people, size, 0.25, [*found, occluder]):
                found.append(occluder)
    return found


def from_back_to_front(people: list[Person]) -> list[Person]:
    """Who stands lower in the picture is nearer."""
    return sorted(people, key=lambda person: person.box[3])


def sample_groups(draws: Draws, size: tuple[int, int]) -> list[Person]:
    """1 to 8 people, many of them beside or behind somebody; a tenth without keypoints."""
    weights = {1: 0.06, 2: 0.14, 3: 0.2, 4: 0.2, 5: 0.16, 6: 0.11, 7: 0.07, 8: 0.06}
    count = draws.weighted(weights)
    base = draws.uniform(56, 270 if count < 5 else 200)
    people: list[Person] = []
    if count >= 4 and draws.chance(0.12):
        people += _crowd(draws, size)
    for _ in range(count - len(people)):
        partner = draws.choice(people) if people and draws.chance(0.3) else None
        if partner is not None and partner.kind == "crowd":
            partner = None
        if partner is not None:
            height = (partner.box[3] - partner.box[1]) * draws.uniform(0.8, 1.2)
        else:
            height = base * draws.uniform(0.7, 1.3)
        height = min(max(height, 42), 266)
        person = make_person(sample_figure(draws, height), sample_look(draws))
        person.kind = "unknown" if draws.chance(0.42 if height < 75 else 0.05) else "known"
        people = _placed(draws, size, people, person, partner, (0.2, 0.45), least=0.6)
    return from_back_to_front(people)


def sample_dense_groups(draws: Draws, size: tuple[int, int]) -> list[Person]:
    """3 to 10 people in groups in which everybody covers, or is covered by, somebody."""
    count = draws.integer(3, 10)
    base = draws.uniform(110, 270 if count < 6 else 210)
    people: list[Person] = []
    first = None  # of a group, whom the others join
    for i in range(count):
        # Groups of two to four about one of them.
        if first is None or (i < count - 1 and draws.chance(0.25)):
            partner, height = None, base * draws.uniform(0.8, 1.2)
        else:
            partner = first
            height = (partner.box[3] - partner.box[1]) * draws.uniform(0.94, 1.06)
        height = min(max(height, 60), 266)
        person = make_person(sample_figure(draws, height), sample_look(draws))
        person.kind = "unknown" if draws.chance(0.07) else "known"
        before = len(people)
        people = _placed(draws, size, people, person, partner, (0.03, 0.2), least=0.28)
        if partner is None and len(people) > before:
            first = people[-1]
    return from_back_to_front(people) if len(people) >= 3 else sample_dense_groups(draws, size)


def _placed(
    draws: Draws,
    size: tuple[int, int],
    people: list[Person],
    person: Person,
    partner: Person | None,
    offsets: tuple[float, float],
    least: float,
) -> list[Person]:
    """`people` with the person somewhere, last; without where no place was found.

    `offsets`: between the middles, of both widths; `least`: share of everybody left to see.
    """
    height, width = size
    tall, wide = person.outline.shape
    for _ in range(8):
        if partner is None:
            x = draws.uniform(0.05 * width, 0.95 * width)
            bottom = draws.uniform(min(tall, height), height + 0.1 * tall)
        else:
            x1, _, x2, y2 = partner.box
            offset = draws.uniform(*offsets) * draws.choice((-1, 1))
            x = (x1 + x2) / 2 + offset * (x2 - x1 + wide)
            bottom = y2 + draws.around(0, 0.12) * tall
        moved = move(person, x, bottom)
        if all_visible(from_back_to_front([*people, moved]), size, least):
            return [*people, moved]
    return people


def _crowd(draws: Draws, size: tuple[int, int]) -> list[Person]:
    """A row of small people, far away."""
    x, bottom = draws.uniform(0, size[1]), draws.uniform(0.2, 0.7) * size[0]
    tall = draws.uniform(42, 56)
    people = []
    for _ in range(draws.integer(3, 5)):
        height = max(tall * draws.uniform(0.9, 1.1), 41)
        person = make_person(sample_figure(draws, height), sample_look(draws))
        x += 0.6 * person.outline.shape[1]
        moved = move(person, x, bottom + draws.around(0, 3))
        moved.kind = "crowd"
        if all_visible([moved], size, 0.5):
            people.append(moved)
    return people


def _inside(person: Person, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """The window of the image that the outline touches, and the outline's part in it."""
    x1, y1, x2, y2 = person.box
    left, top = max(x1, 0), max(y1, 0)
    right, low = max(min(x2, size[1]), left), max(min(y2, size[0]), top)
    window = (slice(top, low), slice(left, right))
    return window, person.outline[top - y1 : low - y1, left - x1 : right - x1]
