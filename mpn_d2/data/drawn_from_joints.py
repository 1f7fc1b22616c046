"""Figures to draw from annotated joints in the picture: depth, head and scale are inferred."""

from __future__ import annotations

import itertools
import math

import numpy as np

from mpn_d2.data.drawn_people import face_normals
from mpn_d2.data.drawn_pose import (
    JOINT,
    SIDES,
    Figure,
    face_points,
    head_rotation,
)
from mpn_d2.data.drawn_random import Draws

# Lengths on an upright adult in units of the stature; in a picture they are that or shorter.
_BODY_LENGTHS = {
    ("shoulder", "hip"): 0.295,
    ("shoulder", "elbow"): 0.165,
    ("elbow", "wrist"): 0.15,
    ("hip", "knee"): 0.245,
    ("knee", "ankle"): 0.24,
}
_WIDTHS = {"shoulder": 0.216, "hip": 0.13, "ear": 0.12, "eye": 0.055}
_HEAD = 0.08  # half height of the head
_FACE = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
_FACE_INDICES = [JOINT[name] for name in _FACE]


def figure_from_joints(draws: Draws, keypoints: np.ndarray, box: np.ndarray) -> Figure:
    """What has to be known to draw an annotated person.

    Args:
        draws: for what the annotation does not say.
        keypoints: (K, 3) x, y, v in continuous pixels, v = 0 where not labelled.
        box: (4,) x1, y1, x2, y2.
    """
    joints, known = keypoints[:, :2].copy(), keypoints[:, 2] > 0
    stature = _stature(joints, known, box)
    up = _up(joints, known)
    head, radius, axes = _head(keypoints, stature, up)
    depth = _depth(keypoints, stature, axes)
    face = {name: joints[JOINT[name]] for name in _FACE if keypoints[JOINT[name], 2] == 2}
    figure = Figure(
        joints=joints,
        known=known,
        depth=depth,
        stature=stature,
        girth=draws.around(1.05, 0.2),
        head=head,
        head_radius=radius,
        head_axes=axes,
        face=face,
    )
    _guess_trunk(figure, up)
    if figure.head is None:
        _guess_head(figure, up, box)
    for side, sign in SIDES:
        knee, ankle = JOINT[f"{side}_knee"], JOINT[f"{side}_ankle"]
        if known[knee] and known[ankle]:
            ahead = axes[2, 0] + 0.3 * sign * axes[2, 2]
            figure.toes[side] = joints[ankle] + stature * np.array([0.07 * ahead, 0.035])
    return figure


def _stature(joints: np.ndarray, known: np.ndarray, box: np.ndarray) -> float:
    """Pixels from head to foot when standing, from the lengths that foreshortening left longest."""

    def length(a: str, b: str) -> float | None:
        i, j = JOINT[a], JOINT[b]
        both = known[i] and known[j]
        return float(math.dist(joints[i], joints[j])) if both else None

    estimates = []
    for (a, b), part in _BODY_LENGTHS.items():
        for side, _ in SIDES:
            found = length(f"{side}_{a}", f"{side}_{b}")
            if found is not None:
                estimates.append(found / part)
    for name, part in _WIDTHS.items():
        # The head says little where limbs can be measured: children's are large.
        if name in ("ear", "eye") and len(estimates) > 2:
            continue
        found = length(f"left_{name}", f"right_{name}")
        if found is not None:
            estimates.append(found / part)
    largest = float(max(box[2] - box[0], box[3] - box[1], 4.0))
    if not estimates:
        return largest
    estimates.sort(reverse=True)
    # The second: one misplaced joint makes no giant.
    return min(max(estimates[min(1, len(estimates) - 1)], 0.5 * largest), 4 * largest)


def _middle(joints: np.ndarray, known: np.ndarray, name: str) -> np.ndarray | None:
    found = [joints[JOINT[f"{s}_{name}"]] for s, _ in SIDES if known[JOINT[f"{s}_{name}"]]]
    return np.mean(found, axis=0) if found else None


def _up(joints: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Unit vector along the trunk towards the head."""
    low, high = _middle(joints, known, "hip"), _middle(joints, known, "shoulder")
    face = [joints[i] for i in _FACE_INDICES if known[i]]
    if high is not None and low is None and face:
        low, high = high, np.mean(face, axis=0)
    if low is None or high is None or math.dist(low, high) < 2:
        return np.array([0.0, -1.0])
    return (high - low) / math.dist(low, high)


def _head_choices() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Axes (M, 3, 3) of upright heads, points (M, 5, 2), which are shown, how unusual (M,)."""
    turns = itertools.product(range(-180, 180, 15), (-25, 0, 25), (-40, -20, 0, 20, 40))
    axes, points, shown, cost = [], [], [], []
    for yaw, pitch, roll in turns:
        matrix = head_rotation(yaw, pitch, roll)
        axes.append(matrix)
        at = face_points(np.zeros(3), 1.0, matrix)
        points.append([at[name][:2] for name in _FACE])
        visible = face_normals(matrix)
        shown.append([visible[name] for name in _FACE])
        cost.append(0.03 * abs(pitch) / 25 + 0.03 * abs(roll) / 20)
    return np.array(axes), np.array(points), np.array(shown), np.array(cost)


_HEAD_AXES, _HEAD_POINTS, _HEAD_SHOWN, _HEAD_COST = _head_choices()


def _head(
    keypoints: np.ndarray, stature: float, up: np.ndarray
) -> tuple[np.ndarray | None, float, np.ndarray]:
    """Centre (None without a labelled point of the face), radius and axes of the head."""
    face = keypoints[_FACE_INDICES]
    labelled = face[:, 2] > 0
    expected = _HEAD * stature
    # Turned so that the body is upright, and back afterwards.
    turn = np.array([[-up[1], up[0]], [-up[0], -up[1]]])
    cost = _HEAD_COST + 0.25 * (_HEAD_SHOWN & ~labelled).sum(axis=1)
    cost = cost + 0.5 * (~_HEAD_SHOWN & (face[:, 2] == 2)).sum(axis=1)
    cost = cost + _facing_cost(keypoints, stature, turn)
    if not labelled.any():
        axes = _HEAD_AXES[_cheapest(cost)]
        return None, expected, _turned(axes, turn)
    points = face[labelled, :2] @ turn.T
    model = _HEAD_POINTS[:, labelled]
    middle, model_middle = points.mean(axis=0), model.mean(axis=1, keepdims=True)
    centred, moved = points - middle, model - model_middle
    square = (moved**2).sum(axis=(1, 2))
    scale = (moved * centred).sum(axis=(1, 2)) / np.maximum(square, 1e-9)
    scale = np.clip(scale, 0.6 * expected, 1.5 * expected)
    misfit = ((scale[:, None, None] * moved - centred) ** 2).sum(axis=(1, 2)) / expected**2
    best = _cheapest(cost + 4 * misfit)
    # With few points the scale is a guess: keep near what the body says.
    radius = float(scale[best]) if labelled.sum() > 2 else expected
    centre = (middle - radius * model_middle[best, 0]) @ turn
    return centre, radius, _turned(_HEAD_AXES[best], turn)


def _cheapest(cost: np.ndarray) -> int:
    """The first of the best: ties, as of mirrored heads, must not hang on a machine's last bit."""
    return int(np.argmin(np.round(cost, 9)))


def _facing_cost(keypoints: np.ndarray, stature: float, turn: np.ndarray) -> np.ndarray:
    """(M,) what it costs to look elsewhere than the shoulders say."""
    left, right = keypoints[JOINT["left_shoulder"]], keypoints[JOINT["right_shoulder"]]
    if left[2] == 0 or right[2] == 0:
        return np.zeros(len(_HEAD_AXES))
    across = float(((left - right)[:2] @ turn.T)[0]) / (_WIDTHS["shoulder"] * stature)
    across = min(max(across, -1.0), 1.0)
    return 0.15 * np.abs(_HEAD_AXES[:, 0, 0] - across)


def _turned(axes: np.ndarray, turn: np.ndarray) -> np.ndarray:
    return np.concatenate([axes[:, :2] @ turn, axes[:, 2:]], axis=1)


def _depth(keypoints: np.ndarray, stature: float, axes: np.ndarray) -> np.ndarray:
    """(K,) towards the viewer, in statures: the near side of the body, then what is visible."""
    known = keypoints[:, 2] > 0
    left, right = JOINT["left_shoulder"], JOINT["right_shoulder"]
    if not (known[left] and known[right]):
        left, right = JOINT["left_hip"], JOINT["right_hip"]
    sideways = 0.0
    if known[left] and known[right]:
        across = abs(keypoints[left, 0] - keypoints[right, 0]) / (0.2 * stature)
        sideways = math.sqrt(max(1 - across**2, 0.0))
    # Who looks to the viewer's right has the left side away.
    sideways *= math.copysign(min(abs(2 * axes[2, 0]), 1.0), axes[2, 0])
    depth = np.zeros(len(keypoints))
    for side, sign in SIDES:
        for joint, half in (("shoulder", 0.1), ("hip", 0.06)):
            depth[JOINT[f"{side}_{joint}"]] = -sign * half * sideways
        for joint, near, root in (
            ("elbow", 0.03, "shoulder"),
            ("wrist", 0.05, "shoulder"),
            ("knee", 0.0, "hip"),
            ("ankle", 0.0, "hip"),
        ):
            i = JOINT[f"{side}_{joint}"]
            depth[i] = depth[JOINT[f"{side}_{root}"]] + near
            if keypoints[i, 2] == 1:
                depth[i] -= 0.25
        hip, knee = JOINT[f"{side}_hip"], JOINT[f"{side}_knee"]
        short = math.dist(keypoints[hip, :2], keypoints[knee, :2]) < 0.17 * stature
        if known[hip] and keypoints[knee, 2] == 2 and short and axes[2, 2] > 0:
            depth[knee] += 0.2  # somebody who sits facing the viewer
    return depth


def _guess_trunk(figure: Figure, up: np.ndarray) -> None:
    """Fills in `guessed`, so that a trunk is drawn where one end or both are not labelled."""
    shoulder, hip = (_middle(figure.joints, figure.known, n) for n in ("shoulder", "hip"))
    across = np.array([-up[1], up[0]])
    size = figure.stature
    if shoulder is None and hip is not None:
        middle = hip + 0.29 * size * up
        figure.guessed["shoulder"] = [middle + s * 0.09 * size * across for s in (-1, 1)]
    elif shoulder is None and figure.head is not None:
        shoulder = figure.head - (0.05 * size + figure.head_radius) * up
        figure.guessed["shoulder"] = [shoulder + s * 0.1 * size * across for s in (-1, 1)]
    if hip is None and shoulder is not None:
        middle = shoulder - 0.29 * size * up
        figure.guessed["hip"] = [middle + s * 0.06 * size * across for s in (-1, 1)]


def _guess_head(figure: Figure, up: np.ndarray, box: np.ndarray) -> None:
    """A head on shoulders whose box goes on above them: the face is not to be seen."""
    shoulder = _middle(figure.joints, figure.known, "shoulder")
    if shoulder is None:
        return
    centre = shoulder + (0.045 * figure.stature + figure.head_radius) * up
    if box[0] <= centre[0] <= box[2] and box[1] <= centre[1] <= box[3]:
        figure.head = centre
