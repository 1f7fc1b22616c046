"""Forward kinematics of a person: joint angles in natural ranges to joints in the picture.

Person's axes: left, up, forward; lengths in units of the stature. The viewer's: x to the right,
y down, depth towards the viewer. Someone who faces the viewer has the left side at larger x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from mpn_d2.data.drawn_random import Draws
from mpn_d2.structures.skeleton import get_skeleton

SKELETON = get_skeleton("coco")
JOINT = {name: i for i, name in enumerate(SKELETON.keypoint_names)}
SIDES = (("left", 1.0), ("right", -1.0))


@dataclass
class Proportions:
    """Lengths in units of the stature; `girth` scales how thick everything is."""

    head: float  # half height of the head
    shoulder: float  # half distances of the two joints
    hip: float
    torso: float
    upper_arm: float
    forearm: float
    thigh: float
    shin: float
    girth: float


@dataclass
class Figure:
    """A person in the picture, in pixels; K joints in COCO's order.

    Attributes:
        joints: (K, 2) x, y; anything where not `known`.
        known: (K,) bool.
        depth: (K,) towards the viewer, in units of the stature; the torso is about 0.
        stature: height in pixels when standing upright.
        girth: thickness, 1 on average.
        head: (2,) centre of the head, None where it is not drawn.
        head_radius: half height of the head, pixels.
        head_axes: (3, 3), rows left, up, forward of the head, columns x, y, depth.
        face: where nose, eyes and ears are drawn, by name; those without are left out.
        toes: tips of the left and right foot, where known.
        guessed: for "shoulder" or "hip", where neither is known: points that the trunk reaches.
    """

    joints: np.ndarray
    known: np.ndarray
    depth: np.ndarray
    stature: float
    girth: float
    head: np.ndarray | None
    head_radius: float
    head_axes: np.ndarray
    face: dict[str, np.ndarray] = field(default_factory=dict)
    toes: dict[str, np.ndarray] = field(default_factory=dict)
    guessed: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def moved(self, dx: float, dy: float) -> Figure:
        """The same figure elsewhere."""
        shift = np.array([dx, dy])
        return replace(
            self,
            joints=self.joints + shift,
            head=None if self.head is None else self.head + shift,
            face={name: point + shift for name, point in self.face.items()},
            toes={side: toe + shift for side, toe in self.toes.items()},
            guessed={name: [p + shift for p in ps] for name, ps in self.guessed.items()},
        )


def sample_proportions(draws: Draws) -> Proportions:
    """From a small child (a fifth of the people) to an adult."""
    child = draws.uniform(0.3, 1.0) if draws.chance(0.2) else 0.0
    return Proportions(
        head=0.074 + 0.034 * child + draws.around(0, 0.006),
        shoulder=0.108 - 0.012 * child + draws.around(0, 0.012),
        hip=0.058 + draws.around(0, 0.008),
        torso=0.295 + draws.around(0, 0.02),
        upper_arm=0.165 - 0.02 * child + draws.around(0, 0.012),
        forearm=0.15 - 0.02 * child + draws.around(0, 0.012),
        thigh=0.245 - 0.04 * child + draws.around(0, 0.015),
        shin=0.24 - 0.045 * child + draws.around(0, 0.015),
        girth=draws.around(1.0, 0.25) + 0.1 * child,
    )


def sample_figure(draws: Draws, height: float) -> Figure:
    """A person in a random pose, `height` pixels from top to bottom, centred at (0, 0)."""
    sizes = sample_proportions(draws)
    posture = draws.weighted(
        {"stand": 0.36, "walk": 0.3, "sit": 0.17, "crouch": 0.09, "bend": 0.08}
    )
    turn = draws.weighted({"front": 0.45, "back": 0.2, "left": 0.175, "right": 0.175})
    yaw = {"front": 0, "back": 180, "left": 90, "right": -90}[turn] + draws.around(0, 60)
    world = _pitch(draws.around(5, 12)) @ _yaw(yaw)
    points = _pose(draws, sizes, posture)
    return _project(points, sizes, world, height)


def _pose(draws: Draws, sizes: Proportions, posture: str) -> dict[str, np.ndarray]:
    """Joints, toes and head (`head`, `head_left`, `head_up`, `head_forward`), person's axes."""
    lean = {"sit": (5, 20), "crouch": (35, 20), "bend": (50, 25)}.get(posture, (3, 10))
    trunk = _yaw(draws.around(0, 20)) @ _pitch(draws.around(*lean)) @ _roll(draws.around(0, 9))
    points: dict[str, np.ndarray] = {}
    phase = draws.choice((-1.0, 1.0))
    for side, sign in SIDES:
        hip = np.array([sign * sizes.hip, 0.0, 0.0])
        flexion, spread, knee = _leg_angles(draws, posture, sign * phase)
        thigh, forward, _ = _limb_axes(sign, spread, flexion)
        shin = math.cos(knee) * thigh - math.sin(knee) * forward
        foot = flexion - knee
        points[f"{side}_hip"] = hip
        points[f"{side}_knee"] = hip + sizes.thigh * thigh
        points[f"{side}_ankle"] = points[f"{side}_knee"] + sizes.shin * shin
        toe = np.array([sign * 0.25, math.sin(foot) - 0.3, math.cos(foot)])
        points[f"{side}_toe"] = points[f"{side}_ankle"] + 0.095 * toe

    top = trunk @ np.array([0.0, sizes.torso, 0.0])
    arms = draws.weighted({"free": 0.8, "up": 0.13, "hips": 0.07})
    for side, sign in SIDES:
        shoulder = top + trunk @ np.array([sign * sizes.shoulder, 0.0, 0.0])
        flexion, spread, elbow, inward = _arm_angles(draws, posture, arms, -sign * phase)
        upper, ahead, medial = _limb_axes(sign, spread, flexion)
        bend = math.cos(inward) * ahead + math.sin(inward) * medial
        fore = math.cos(elbow) * upper + math.sin(elbow) * bend
        points[f"{side}_shoulder"] = shoulder
        points[f"{side}_elbow"] = shoulder + sizes.upper_arm * (trunk @ upper)
        points[f"{side}_wrist"] = points[f"{side}_elbow"] + sizes.forearm * (trunk @ fore)

    # Looking ahead: the neck takes back some of what the trunk leans.
    nod = _pitch(draws.around(0, 22) - 0.6 * lean[0])
    skull = trunk @ _yaw(draws.around(0, 55)) @ nod @ _roll(draws.around(0, 12))
    points["head"] = top + (0.045 + sizes.head) * (0.5 * (trunk + skull) @ np.array([0.0, 1, 0.12]))
    for name, axis in zip(("head_left", "head_up", "head_forward"), skull.T):
        points[name] = axis
    return points


def _leg_angles(draws: Draws, posture: str, swing: float) -> tuple[float, float, float]:
    """Flexion, spread, knee bend of one leg, radians."""
    if posture == "walk":
        flexion = draws.around(swing * 24, 10)
        knee = draws.around(12, 10) if swing > 0 else draws.around(30, 22)
        spread = draws.around(3, 4)
    elif posture == "sit":
        flexion, knee, spread = draws.around(82, 20), draws.around(80, 30), draws.around(8, 12)
    elif posture == "crouch":
        flexion, knee, spread = draws.around(105, 25), draws.around(120, 22), draws.around(14, 14)
    else:
        flexion, knee, spread = draws.around(2, 9), draws.around(6, 8), draws.around(5, 6)
        if draws.chance(0.08):  # a knee lifted
            flexion, knee = draws.around(60, 30), draws.around(75, 35)
    return math.radians(flexion), math.radians(spread), math.radians(max(knee, 0))


def _arm_angles(
    draws: Draws, posture: str, arms: str, swing: float
) -> tuple[float, float, float, float]:
    """Flexion, spread, elbow bend and inward turn of one arm, radians."""
    if arms == "up":
        flexion, spread = draws.around(0, 20), draws.around(145, 30)
        elbow, inward = draws.around(30, 40), draws.around(-75, 40)
    elif arms == "hips":
        flexion, spread = draws.around(-15, 10), draws.around(42, 8)
        elbow, inward = draws.around(95, 15), draws.around(80, 15)
    elif posture == "walk" and draws.chance(0.7):
        flexion, spread = draws.around(swing * 25, 15), draws.around(8, 8)
        elbow, inward = draws.around(25, 25), draws.around(15, 15)
    else:
        kind = draws.weighted({"hang": 0.5, "ahead": 0.25, "bent": 0.2, "aside": 0.1})
        if kind == "hang":
            flexion, spread = draws.around(5, 20), draws.around(12, 12)
            elbow, inward = draws.around(20, 20), draws.around(20, 40)
        elif kind == "ahead":
            flexion, spread = draws.around(60, 40), draws.around(10, 20)
            elbow, inward = draws.around(35, 35), draws.around(10, 40)
        elif kind == "bent":
            flexion, spread = draws.around(15, 25), draws.around(15, 12)
            elbow, inward = draws.around(95, 35), draws.around(30, 40)
        else:
            flexion, spread = draws.around(0, 25), draws.around(75, 30)
            elbow, inward = draws.around(30, 30), draws.around(-20, 70)
    radians = math.radians
    return radians(flexion), radians(spread), radians(max(elbow, 0)), radians(inward)


def _project(
    points: dict[str, np.ndarray], sizes: Proportions, world: np.ndarray, height: float
) -> Figure:
    """Parallel projection, scaled to `height` and centred on the figure's extent."""
    names = [name for name in points if not name.startswith("head_")]
    seen = np.stack([world @ points[name] for name in names]) * np.array([1.0, -1.0, 1.0])
    axes = np.stack([world @ points[f"head_{a}"] for a in ("left", "up", "forward")])
    axes = axes * np.array([1.0, -1.0, 1.0])
    at = dict(zip(names, seen))
    # Half of how thick head and feet are, so that `height` is that of the outline.
    reach = np.array([sizes.head if name == "head" else 0.02 for name in names])
    top, bottom = (seen[:, 1] - reach).min(), (seen[:, 1] + reach).max()
    left, right = seen[:, 0].min(), seen[:, 0].max()
    scale = height / (bottom - top)
    centre = np.array([(left + right) / 2, (top + bottom) / 2])

    joints = np.zeros((SKELETON.num_keypoints, 2))
    depth = np.zeros(SKELETON.num_keypoints)
    face = face_points(at["head"], sizes.head, axes)
    for name, i in JOINT.items():
        point = face[name] if name in face else at[name]
        # On 1/16 pixels: what the last bits of sine and cosine are does not matter.
        joints[i] = np.rint((point[:2] - centre) * scale * 16) / 16
        depth[i] = point[2]
    head = (at["head"][:2] - centre) * scale
    drawn = face_points(np.append(head, 0.0), sizes.head * scale, axes)
    return Figure(
        joints=joints,
        known=np.ones(len(joints), dtype=bool),
        depth=depth,
        stature=scale,
        girth=sizes.girth,
        head=head,
        head_radius=sizes.head * scale,
        head_axes=axes,
        face={name: point[:2] for name, point in drawn.items()},
        toes={side: (at[f"{side}_toe"][:2] - centre) * scale for side, _ in SIDES},
    )


def face_points(centre: np.ndarray, radius: float, axes: np.ndarray) -> dict[str, np.ndarray]:
    """Nose, eyes and ears on a head: (left, up, forward) in units of its half height."""
    places = {"nose": (0.0, -0.12, 0.92)}
    for side, sign in SIDES:
        places[f"{side}_eye"] = (sign * 0.34, 0.12, 0.74)
        places[f"{side}_ear"] = (sign * 0.76, -0.02, -0.05)
    return {name: centre + radius * (np.array(p) @ axes) for name, p in places.items()}


def head_rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) rows left, up, forward, columns x, y, depth; degrees, all 0: facing the viewer."""
    matrix = _yaw(yaw) @ _pitch(pitch) @ _roll(roll)
    return matrix.T * np.array([1.0, -1.0, 1.0])


def _limb_axes(
    sign: float, spread: float, flexion: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a limb, ahead of it and inwards of it; hanging down at 0, 0."""
    cs, ss, cf, sf = math.cos(spread), math.sin(spread), math.cos(flexion), math.sin(flexion)
    along = np.array([sign * ss, -cs * cf, cs * sf])
    ahead = np.array([0.0, sf, cf])
    inward = np.array([-sign * cs, -ss * cf, ss * sf])
    return along, ahead, inward


def _pitch(degrees: float) -> np.ndarray:
    """Lean forward; of the whole world: seen from above."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


def _yaw(degrees: float) -> np.ndarray:
    """Turn to the own left."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, 0, s], [0, 1.0, 0], [-s, 0, c]])


def _roll(degrees: float) -> np.ndarray:
    """Lean to the own left."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
