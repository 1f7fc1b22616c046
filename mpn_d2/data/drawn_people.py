"""Drawn people: from joints in the picture to filled shapes in the order they cover each other.

Coordinates are continuous pixels. Everything is drawn SCALE times larger, without smoothing, into
a picture and into a map of who is where; both are then reduced to the size of the image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from mpn_d2.data.drawn_look import Color, Look, scaled, shaded
from mpn_d2.data.drawn_pose import JOINT, SIDES, Figure

SCALE = 2
# In the map a pixel is person * PARTS + part, 0 where nobody is.
PARTS = 16
TORSO, HEAD, NECK = 0, 1, 2
PART = {
    f"{side}_{name}": 3 + 6 * i + j
    for i, (side, _) in enumerate(SIDES)
    for j, name in enumerate(("upper_arm", "forearm", "hand", "thigh", "shin", "shoe"))
}

_FIXED_POINT_BITS = 4
_HALF_TURN = np.linspace(math.pi / 2, 3 * math.pi / 2, 7)
_FULL_TURN = np.linspace(0, 2 * math.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_FULL_TURN), np.sin(_FULL_TURN)], axis=1)


class Shape(NamedTuple):
    """A filled convex polygon, (n, 2) x, y; `order` grows towards the viewer."""

    order: float
    polygon: np.ndarray
    color: Color
    part: int


def body_shapes(figure: Figure, look: Look) -> list[Shape]:
    """The shapes of a figure, the furthest first."""
    shapes: list[Shape] = []
    unit = figure.stature * figure.girth
    trunk = _trunk_depth(figure)
    for side, _ in SIDES:
        shapes += _arm_shapes(figure, look, side, unit)
        shapes += _leg_shapes(figure, look, side, unit)
        shapes += _lone_joints(figure, look, side, unit)
    shapes += _trunk_shapes(figure, look, unit, trunk)
    if figure.head is not None:
        shapes += _head_shapes(figure, look, trunk)
    # A stable sort: what was made later covers what is as near.
    return sorted(shapes, key=lambda shape: shape.order)


def paint(
    shapes: list[Shape], person: int, picture: np.ndarray, who: np.ndarray, look: Look
) -> None:
    """Draws a person into picture and map.

    Args:
        shapes: of `body_shapes`, in pixels of the image.
        person: number from 1 on.
        picture: (SCALE H, SCALE W, 3) uint8 BGR, changed in place.
        who: (SCALE H, SCALE W) uint16 of person * PARTS + part, changed in place.
        look: for the stripes.
    """
    for shape in shapes:
        value = person * PARTS + shape.part
        fill_polygon(picture, shape.polygon, shape.color)
        fill_polygon(who, shape.polygon, value)
        if shape.part == TORSO and look.stripes is not None and shape.color == look.top:
            _paint_stripes(shape, value, picture, who, look)


def outline(shapes: list[Shape]) -> tuple[np.ndarray, tuple[int, int]]:
    """All that a figure covers, nothing in front of it, at the size of the image.

    Returns:
        (h, w) uint8 of 0 and 1, and the (x, y) of its first pixel.
    """
    every = np.concatenate([shape.polygon for shape in shapes] or [np.zeros((1, 2))])
    x0, y0 = np.floor(every.min(axis=0)).astype(int) - 1
    x1, y1 = np.ceil(every.max(axis=0)).astype(int) + 1
    mask = np.zeros((SCALE * (y1 - y0), SCALE * (x1 - x0)), dtype=np.uint8)
    for shape in shapes:
        fill_polygon(mask, shape.polygon - (x0, y0), 1)
    return reduced(mask), (int(x0), int(y0))


def reduced(who: np.ndarray) -> np.ndarray:
    """A map (SCALE H, SCALE W) to (H, W): of a pixel's four values the second smallest.

    So the edge, which cv2 counts in, goes to the background, and nothing is between two values.
    """
    a, b, c, d = who[0::2, 0::2], who[0::2, 1::2], who[1::2, 0::2], who[1::2, 1::2]
    low_a, high_a = np.minimum(a, b), np.maximum(a, b)
    low_b, high_b = np.minimum(c, d), np.maximum(c, d)
    return np.minimum(np.maximum(low_a, low_b), np.minimum(high_a, high_b))


def fill_polygon(
    image: np.ndarray, polygon: np.ndarray, value: Color | int, scale: int = SCALE
) -> None:
    """Fills a convex polygon (n, 2) x, y, in pixels of what is `scale` times smaller, in place."""
    # In fixed point; for cv2 the centres of pixels are whole numbers.
    points = np.rint((polygon * scale - 0.5) * (1 << _FIXED_POINT_BITS)).astype(np.int32)
    cv2.fillConvexPoly(image, points, value, shift=_FIXED_POINT_BITS)


def seen_joints(figure: Figure, person: int, who: np.ndarray) -> np.ndarray:
    """(K,) bool: nothing covers the joint, and it lies inside the image."""
    shown = np.zeros(len(figure.joints), dtype=bool)
    height, width = who.shape
    faces_viewer = face_normals(figure.head_axes)
    trunk = _trunk_depth(figure)
    for name, i in JOINT.items():
        x, y = np.floor(figure.joints[i] * SCALE).astype(int)
        if not figure.known[i] or not (0 <= x < width and 0 <= y < height):
            continue
        owner, part = divmod(int(who[y, x]), PARTS)
        if owner != person:
            continue
        if name in faces_viewer:
            shown[i] = part == HEAD and faces_viewer[name]
        else:
            shown[i] = part in _owners(name, figure.depth[i] - trunk)
    return shown


def face_normals(axes: np.ndarray) -> dict[str, bool]:
    """Whether nose, eyes and ears are on the side of the head that the viewer sees."""
    left, _, forward = axes[:, 2]
    return {
        "nose": forward > -0.1,
        "left_eye": 0.93 * forward + 0.37 * left > 0.1,
        "right_eye": 0.93 * forward - 0.37 * left > 0.1,
        "left_ear": left > -0.35,
        "right_ear": left < 0.35,
    }


def _owners(name: str, depth: float) -> tuple[int, ...]:
    """Parts on whose surface a joint is seen; `depth` is relative to the trunk."""
    side, joint = name.split("_")
    own = {
        "shoulder": ("upper_arm",),
        "elbow": ("upper_arm", "forearm"),
        "wrist": ("forearm", "hand"),
        "hip": ("thigh",),
        "knee": ("thigh", "shin"),
        "ankle": ("shin", "shoe"),
    }[joint]
    parts = tuple(PART[f"{side}_{part}"] for part in own)
    # A skirt is part of the trunk: what it covers counts as clothed, as trousers do.
    far = {"shoulder": -0.06, "hip": -0.035, "knee": -1.0}.get(joint)
    return parts + ((TORSO,) if far is not None and depth > far else ())


def _trunk_depth(figure: Figure) -> float:
    corners = [JOINT[f"{side}_{joint}"] for side, _ in SIDES for joint in ("shoulder", "hip")]
    known = [figure.depth[i] for i in corners if figure.known[i]]
    return float(np.mean(known)) if known else 0.0


def _arm_shapes(figure: Figure, look: Look, side: str, unit: float) -> list[Shape]:
    shoulder, elbow, wrist = (JOINT[f"{side}_{j}"] for j in ("shoulder", "elbow", "wrist"))
    shapes: list[Shape] = []
    if figure.known[shoulder] and figure.known[elbow]:
        color = look.skin if look.sleeves == "none" else look.top
        shapes += _limb(figure, (shoulder, elbow), (0.036, 0.029), unit, color, 0.02,
                        PART[f"{side}_upper_arm"])  # fmt: skip
    if figure.known[elbow] and figure.known[wrist]:
        color = look.top if look.sleeves == "long" else look.skin
        fore = _limb(figure, (elbow, wrist), (0.028, 0.02), unit, color, 0.03,
                     PART[f"{side}_forearm"])  # fmt: skip
        p, q = figure.joints[elbow], figure.joints[wrist]
        hand = q + 0.2 * (q - p)
        shade = shaded(look.skin, figure.depth[wrist])
        shapes += fore
        shapes.append(Shape(fore[-1].order + 0.001, capsule(q, hand, 0.019 * unit, 0.024 * unit),
                            shade, PART[f"{side}_hand"]))  # fmt: skip
    return shapes


def _leg_shapes(figure: Figure, look: Look, side: str, unit: float) -> list[Shape]:
    hip, knee, ankle = (JOINT[f"{side}_{j}"] for j in ("hip", "knee", "ankle"))
    shapes: list[Shape] = []
    if figure.known[hip] and figure.known[knee]:
        color = look.skin if look.legs == "skirt" else look.trousers
        shapes += _limb(figure, (hip, knee), (0.054, 0.04), unit, color, -0.07,
                        PART[f"{side}_thigh"])  # fmt: skip
    if figure.known[knee] and figure.known[ankle]:
        color = look.trousers if look.legs == "long" else look.skin
        shin = _limb(figure, (knee, ankle), (0.038, 0.026), unit, color, -0.06,
                     PART[f"{side}_shin"])  # fmt: skip
        shapes += shin
        toe = figure.toes.get(side)
        if toe is not None:
            at = figure.joints[ankle]
            heel = at + 0.22 * (at - figure.joints[knee]) / 2
            near = shin[-1].order + (0.001 if toe[1] >= at[1] else -0.03)
            polygon = capsule(heel, toe, 0.03 * unit, 0.026 * unit)
            shade = shaded(look.shoes, figure.depth[ankle])
            shapes.append(Shape(near, polygon, shade, PART[f"{side}_shoe"]))
    return shapes


def _lone_joints(figure: Figure, look: Look, side: str, unit: float) -> list[Shape]:
    """Discs for joints that no limb reaches, where only part of somebody is annotated."""
    shapes = []
    for joint, others, part, color, radius in (
        ("elbow", ("shoulder", "wrist"), "forearm", look.top, 0.03),
        ("wrist", ("elbow",), "hand", look.skin, 0.03),
        ("knee", ("hip", "ankle"), "shin", look.trousers, 0.042),
        ("ankle", ("knee",), "shoe", look.shoes, 0.035),
    ):
        i = JOINT[f"{side}_{joint}"]
        if figure.known[i] and not any(figure.known[JOINT[f"{side}_{o}"]] for o in others):
            disc = _disc(figure.joints[i], radius * unit)
            shapes.append(Shape(figure.depth[i], disc, color, PART[f"{side}_{part}"]))
    return shapes


def _limb(
    figure: Figure,
    ends: tuple[int, int],
    radii: tuple[float, float],
    unit: float,
    color: Color,
    nearer: float,
    part: int,
) -> list[Shape]:
    """A tapered limb with a darker rim, which parts it from the trunk in the same colour."""
    p, q = figure.joints[ends[0]], figure.joints[ends[1]]
    depth = (figure.depth[ends[0]] + figure.depth[ends[1]]) / 2
    order = depth + nearer
    shade = shaded(color, depth)
    r, s = radii[0] * unit, radii[1] * unit
    return [
        Shape(order, capsule(p, q, r, s), scaled(shade, 0.75), part),
        Shape(order, capsule(p, q, 0.7 * r, 0.7 * s), shade, part),
    ]


def _trunk_shapes(figure: Figure, look: Look, unit: float, trunk: float) -> list[Shape]:
    def known(joint: str) -> list[np.ndarray]:
        places = [JOINT[f"{side}_{joint}"] for side, _ in SIDES]
        return [figure.joints[i] for i in places if figure.known[i]]

    shoulders, hips, knees = known("shoulder"), known("hip"), known("knee")
    shapes: list[Shape] = []
    if hips:
        circles = [(p, 0.056 * unit) for p in hips] + [(np.mean(hips, axis=0), 0.068 * unit)]
        if look.legs == "skirt" and len(hips) == len(knees) == 2:
            circles += [(h + 0.6 * (k - h), 0.06 * unit) for h, k in zip(hips, knees)]
        shapes.append(Shape(trunk - 0.002, hull(circles), look.trousers, TORSO))
    shoulders = shoulders or figure.guessed.get("shoulder", [])
    hips = hips or figure.guessed.get("hip", [])
    if shoulders:
        centre = np.mean(shoulders, axis=0)
        circles = [(p, 0.036 * unit) for p in shoulders] + [(centre, 0.06 * unit)]
        if hips:
            # The hem leaves the lower half of the hips to the trousers.
            low = [h + 0.1 * (centre - h) for h in hips]
            circles += [(p, 0.048 * unit) for p in low] + [(np.mean(low, axis=0), 0.062 * unit)]
            rim = scaled(look.top, 0.8)
            inner = [(c, 0.8 * r) for c, r in circles]
            shapes.append(Shape(trunk - 0.001, hull(circles), rim, TORSO))
            shapes.append(Shape(trunk, hull(inner), look.top, TORSO))
        else:
            shapes.append(Shape(trunk, hull(circles), look.top, TORSO))
        if figure.head is not None:
            order = trunk + (0.001 if figure.head_axes[2, 2] > 0 else -0.001)
            chin = figure.head + 0.4 * (centre - figure.head)
            neck = capsule(centre, chin, 0.036 * unit, 0.034 * unit)
            shapes.append(Shape(order, neck, scaled(look.skin, 0.82), NECK))
    return shapes


def _head_shapes(figure: Figure, look: Look, trunk: float) -> list[Shape]:
    """Hair all around, the face on its side of it, and what belongs to the face."""
    centre, radius, axes = figure.head, figure.head_radius, figure.head_axes
    order = trunk + 0.03 + 0.3 * float(np.clip(axes[1, 2], -0.5, 0.5))
    up, forward = axes[1, :2], axes[2, :2]
    shown = face_normals(axes)
    at = figure.face
    shapes: list[Shape] = []

    def add(polygon: np.ndarray, color: Color) -> None:
        shapes.append(Shape(order, polygon, color, HEAD))

    def ears(in_front: bool) -> None:
        for side, sign in SIDES:
            if f"{side}_ear" in at and (sign * axes[0, 2] > 0.15) == in_front:
                add(_disc(at[f"{side}_ear"], 0.2 * radius), scaled(look.skin, 0.88))

    ears(in_front=False)
    hair = look.skin if look.bald else look.hair
    back = centre + radius * (0.08 * up - 0.12 * forward)
    if look.long_hair and not look.bald:
        add(capsule(back, back - radius * (0.9 * up + 0.3 * forward), 0.95 * radius, 0.7 * radius),
            scaled(hair, 0.9))  # fmt: skip
    add(_ellipse(back, up, 0.97 * radius, 0.86 * radius), hair)
    # From -1 (seen from behind) to 1 (from the front).
    front = float(axes[2, 2])
    if front > -0.35:
        width = radius * (0.5 + 0.22 * max(front, 0.0))
        face = centre + radius * (0.34 * forward - 0.12 * up)
        add(_ellipse(face, up, 0.78 * radius, width), look.skin)
    ears(in_front=True)
    for side in ("left", "right"):
        if shown[f"{side}_eye"] and f"{side}_eye" in at:
            add(_disc(at[f"{side}_eye"], 0.17 * radius), (245, 245, 245))
            add(_disc(at[f"{side}_eye"], 0.1 * radius), (30, 25, 25))
    if shown["nose"] and "nose" in at:
        add(_disc(at["nose"], 0.14 * radius), scaled(look.skin, 0.72))
    if front > 0.2:
        mouth = centre + radius * (0.7 * forward - 0.5 * up)
        along = radius * 0.22 * front * np.array([-up[1], up[0]])
        add(capsule(mouth - along, mouth + along, 0.06 * radius, 0.06 * radius), (70, 60, 160))
    return shapes


def _paint_stripes(
    shape: Shape, value: int, picture: np.ndarray, who: np.ndarray, look: Look
) -> None:
    low = np.floor(shape.polygon.min(axis=0) * SCALE).astype(int).clip(0)
    high = np.ceil(shape.polygon.max(axis=0) * SCALE).astype(int).clip(0)
    crop = (slice(low[1], high[1]), slice(low[0], high[0]))
    inside = who[crop] == value
    if inside.size == 0:
        return
    rows, columns = inside.shape
    size = max((high - low).max() // 12, 2)
    on = (np.arange(rows if look.stripes_across else columns) // size) % 2 == 1
    inside &= on[:, None] if look.stripes_across else on[None, :]
    picture[crop][inside] = look.stripes


def capsule(p: np.ndarray, q: np.ndarray, r: float, s: float) -> np.ndarray:
    """Outline of a thick line from a circle of radius r about p to one of radius s about q."""
    angle = math.atan2(q[1] - p[1], q[0] - p[0]) + _HALF_TURN
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([p + r * arc, q - s * arc])


def hull(circles: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Convex outline around circles (centre, radius)."""
    points = np.concatenate([centre + radius * _CIRCLE for centre, radius in circles])
    # On 1/16 pixels in integers: the hull then is the same everywhere.
    return cv2.convexHull(np.rint(points * 16).astype(np.int32))[:, 0] / 16.0


def clipped(polygon: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What of a convex polygon (n, 2) lies in a box x1, y1, x2, y2; (m, 2), perhaps empty."""
    for axis, limit, sign in ((0, box[0], 1), (0, box[2], -1), (1, box[1], 1), (1, box[3], -1)):
        inside = sign * (polygon[:, axis] - limit) >= 0
        if inside.all():
            continue
        kept = []
        for i in range(len(polygon)):
            p, q = polygon[i - 1], polygon[i]
            if inside[i - 1] != inside[i]:
                kept.append(p + (limit - p[axis]) / (q[axis] - p[axis]) * (q - p))
            if inside[i]:
                kept.append(q)
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


def _disc(centre: np.ndarray, radius: float) -> np.ndarray:
    return centre + max(radius, 0.3) * _CIRCLE


def _ellipse(centre: np.ndarray, up: np.ndarray, along: float, across: float) -> np.ndarray:
    length = math.hypot(up[0], up[1])
    direction = up / length if length > 1e-6 else np.array([0.0, -1.0])
    side = np.array([-direction[1], direction[0]])
    return centre + along * _CIRCLE[:, :1] * direction + across * _CIRCLE[:, 1:] * side
