"""A picture of one assignment: candidates and boxes, result, evidence of each box.

Letters: C candidates, P boxes of one image, B of them that take part, K keypoint types, h x w cells
of a box grid. Frame: continuous pixels of the image; all drawn on it enlarged or reduced to one
size, so that large and small images show the same marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.utils.colormap import colormap

from mpn_d2.codecs import person_grid
from mpn_d2.structures.outputs import AssembledPoses, Candidates
from mpn_d2.structures.skeleton import Skeleton
from mpn_d2.utils.target_pictures import draw_grid, join, stack, type_colors

# Longer side of the image and height of an evidence panel, pixels.
SIDE = 720
_PANEL = 336
# Boxes whose evidence is drawn.
_MOST_BOXES = 24
# The image behind boxes and joints, as bright as this.
_DIM = 0.5
# Share of its sides that the picture of a box's pair scores shows around it.
_AROUND = 0.25
_WHITE = (255, 255, 255)
_GREY = (170, 170, 170)
_BLACK = (0, 0, 0)
WRONG_COLOR = (255, 0, 0)
_LEGEND_HEIGHT = 20


@dataclass
class Assignment:
    """What an assembler was given for one image, thought of it, and decided.

    Attributes:
        candidates: keypoints of everybody.
        boxes: (P, 4) x1, y1, x2, y2.
        poses: of all boxes.
        rated: (B,) int64 rows of the boxes that take part.
        pair_scores: (B, C) how well box and candidate fit, 0 where they may not match.
        grids: (B, K, h, w) what the evidence says of the cells of the boxes; None for evidence
            that rates candidates alone.
        owners: (C,) int64 annotated person of each candidate, -1 for none; None if not known.
        people: (P,) int64 annotated person of each box; None if not known.
    """

    candidates: Candidates
    boxes: torch.Tensor
    poses: AssembledPoses
    rated: torch.Tensor
    pair_scores: torch.Tensor
    grids: torch.Tensor | None = None
    owners: torch.Tensor | None = None
    people: torch.Tensor | None = None

    def wrong(self) -> torch.Tensor | None:
        """(P, K) bool: the joint belongs to somebody else, or to nobody; None if not known."""
        if self.owners is None or self.people is None:
            return None
        ids = self.poses.candidate_ids
        if not len(self.owners):
            return torch.zeros_like(ids, dtype=torch.bool)
        return (ids >= 0) & (self.owners[ids.clamp(min=0)] != self.people[:, None])


def draw_assignment(
    image_rgb: np.ndarray, assignment: Assignment, skeleton: Skeleton
) -> np.ndarray:
    """Candidates and boxes | result, over the evidence of each box that takes part.

    Keypoint types and boxes have a colour each. A grid shows the type of the largest evidence at
    each cell and the candidates that the box may claim at the cell where it is read; without grids
    candidates are as large as their pair score. What the box got has a white ring, what belongs to
    somebody else a red cross.

    Args:
        image_rgb: (H, W, 3) uint8.
        assignment: of this image.
        skeleton: of the keypoints.

    Returns:
        RGB uint8 picture.
    """
    overview = join(
        [
            draw_candidates(image_rgb, assignment, skeleton),
            draw_result(image_rgb, assignment, skeleton),
        ],
        [
            f"{len(assignment.candidates)} keypoints, {len(assignment.boxes)} boxes",
            _result_caption(assignment),
        ],
    )
    rows = [overview, _legend(skeleton, overview.shape[1])]
    shown = min(len(assignment.rated), _MOST_BOXES)
    panels = [_draw_evidence(image_rgb, assignment, row, skeleton) for row in range(shown)]
    captions = [
        f"{int(assignment.rated[row]) + 1}: best {_largest(assignment, row):.2g}"
        for row in range(shown)
    ]
    if panels:
        note = "evidence of each box"
        if shown < len(assignment.rated):
            note = f"evidence of the first {shown} of {len(assignment.rated)} boxes"
        rows.append(_text_bar(note, overview.shape[1]))
        columns = max(1, overview.shape[1] // (panels[0].shape[1] + 4))
        rows += [
            join(panels[i : i + columns], captions[i : i + columns])
            for i in range(0, shown, columns)
        ]
    return stack(rows)


def draw_candidates(
    image_rgb: np.ndarray, assignment: Assignment, skeleton: Skeleton
) -> np.ndarray:
    """All candidates in the colour of their type, all boxes in that of their person."""
    picture, scale = _canvas(image_rgb)
    _draw_boxes(picture, assignment.boxes, scale)
    _draw_points(picture, assignment.candidates.points * scale, assignment.candidates, skeleton)
    return picture


def draw_result(image_rgb: np.ndarray, assignment: Assignment, skeleton: Skeleton) -> np.ndarray:
    """One skeleton a box in its colour; red crosses and, hollow, candidates that nobody got."""
    picture, scale = _canvas(image_rgb)
    _draw_boxes(picture, assignment.boxes, scale)
    poses = assignment.poses
    places = _pixels(poses.keypoints[..., :2] * scale)
    # An unassigned joint is (0, 0, 0); a filled-in one has a place and score 0.
    there = (poses.keypoints != 0).any(dim=-1).tolist()
    for color, joints, has in zip(_box_colors(len(places)), places, there, strict=True):
        for a, b in skeleton.edge_indices:
            if has[a] and has[b]:
                cv2.line(picture, joints[a], joints[b], color, 2, cv2.LINE_AA)
        for place, drawn in zip(joints, has, strict=True):
            if drawn:
                _dot(picture, place, color)
    taken = set(poses.candidate_ids.flatten().tolist())
    for index, place in enumerate(_pixels(assignment.candidates.points * scale)):
        if index not in taken:
            cv2.circle(picture, place, 4, _GREY, 1, cv2.LINE_AA)
    wrong = assignment.wrong()
    if wrong is not None:
        for box, kind in wrong.nonzero().tolist():
            _cross(picture, places[box][kind])
    return picture


def _draw_evidence(
    image_rgb: np.ndarray, assignment: Assignment, row: int, skeleton: Skeleton
) -> np.ndarray:
    """The evidence of the row-th box that takes part, framed in the box's colour."""
    if assignment.grids is None:
        picture, places, radii = _pair_panel(image_rgb, assignment, row)
    else:
        picture, places, radii = _grid_panel(assignment, row)
    slot = int(assignment.rated[row])
    scores = assignment.pair_scores[row]
    may = (scores > 0).nonzero()[:, 0]
    chosen = assignment.candidates.types.new_zeros(len(scores), dtype=torch.bool)
    ids = assignment.poses.candidate_ids[slot]
    chosen[ids[ids >= 0]] = True
    # Weak ones first, what the box got last: nothing important is covered.
    order = may[torch.argsort(chosen[may] * (scores.max() + 1) + scores[may])]
    wrong = assignment.wrong()
    crossed = set() if wrong is None else set(ids[wrong[slot]].tolist())
    colors = _colors_of_types(skeleton)
    for index in order.tolist():
        color = colors[int(assignment.candidates.types[index])]
        ring = _WHITE if chosen[index] else _BLACK
        _dot(picture, places[index], color, radii[index], ring)
        if index in crossed:
            _cross(picture, places[index])
    color = _box_colors(len(assignment.boxes))[slot]
    last = (picture.shape[1] - 1, picture.shape[0] - 1)
    cv2.rectangle(picture, (0, 0), last, color, 3)
    return picture


def _grid_panel(
    assignment: Assignment, row: int
) -> tuple[np.ndarray, list[tuple[int, int]], list[int]]:
    """The box's grid; pixel and radius of every candidate in it."""
    grid = assignment.grids[row]
    scale = max(1, _PANEL // grid.shape[1])
    box = assignment.boxes[assignment.rated[row]]
    points = assignment.candidates.points[None]
    cells = person_grid.points_to_cells(points, box[None], tuple(grid.shape[1:]))[0]
    places = _pixels((cells + 0.5) * scale)
    return draw_grid(grid, scale), places, [4] * len(places)


def _pair_panel(
    image_rgb: np.ndarray, assignment: Assignment, row: int
) -> tuple[np.ndarray, list[tuple[int, int]], list[int]]:
    """The image around the box; pixel and radius, by pair score, of every candidate in it."""
    size = (_PANEL, 2 * _PANEL // 3)
    box = assignment.boxes[assignment.rated[row]].double().numpy()
    sides = np.maximum(box[2:] - box[:2], 1.0)
    scale = float((np.array(size[::-1]) / ((1 + 2 * _AROUND) * sides)).min())
    # The middle of the box lies in the middle of the panel.
    shift = np.array(size[::-1]) / 2 - scale * (box[:2] + box[2:]) / 2
    # OpenCV's pixel i has its centre at i, ours at i + 0.5.
    moved = shift + (scale - 1) / 2
    matrix = np.array([[scale, 0, moved[0]], [0, scale, moved[1]]])
    picture = _dimmed(cv2.warpAffine(image_rgb, matrix, size[::-1], flags=cv2.INTER_LINEAR))
    corners = _pixels(torch.from_numpy(box.reshape(2, 2) * scale + shift))
    cv2.rectangle(picture, *corners, _GREY, 1)
    places = _pixels(assignment.candidates.points.double() * scale + torch.from_numpy(shift))
    scores = assignment.pair_scores[row]
    # Relative to the image's best pair, so that boxes compare; area as score.
    share = (scores / assignment.pair_scores.max().clamp(min=1e-12)).clamp(min=0).sqrt()
    return picture, places, (2 + 7 * share).round().int().tolist()


def _result_caption(assignment: Assignment) -> str:
    given = int((assignment.poses.candidate_ids >= 0).sum())
    wrong = assignment.wrong()
    if wrong is None:
        return f"result: {given} keypoints given"
    return f"result: {given} keypoints given, {int(wrong.sum())} to the wrong person"


def _largest(assignment: Assignment, row: int) -> float:
    """What is brightest or largest in the panel of a box."""
    values = assignment.pair_scores[row] if assignment.grids is None else assignment.grids[row]
    return float(values.max()) if values.numel() else 0.0


def _canvas(image_rgb: np.ndarray) -> tuple[np.ndarray, float]:
    """The dimmed image with a longer side of SIDE, and how many times larger it is."""
    height, width = image_rgb.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return _dimmed(cv2.resize(image_rgb, size, interpolation=way)), scale


def _dimmed(image_rgb: np.ndarray) -> np.ndarray:
    return (_DIM * image_rgb).astype(np.uint8)


def _draw_boxes(picture: np.ndarray, boxes: torch.Tensor, scale: float) -> None:
    corners = _pixels(boxes.view(-1, 2, 2) * scale)
    for number, (color, pair) in enumerate(
        zip(_box_colors(len(boxes)), corners, strict=True), start=1
    ):
        cv2.rectangle(picture, *pair, color, 2)
        left, top = (max(place, 0) for place in pair[0])
        _write(picture, str(number), (left + 4, top + 16), color, 0.5)


def _draw_points(
    picture: np.ndarray, points: torch.Tensor, candidates: Candidates, skeleton: Skeleton
) -> None:
    colors = _colors_of_types(skeleton)
    for place, kind in zip(_pixels(points), candidates.types.tolist(), strict=True):
        _dot(picture, place, colors[kind])


def _dot(
    picture: np.ndarray,
    place: tuple[int, int],
    color: tuple[int, int, int],
    radius: int = 4,
    ring: tuple[int, int, int] = _BLACK,
) -> None:
    cv2.circle(picture, place, radius + 1, ring, -1, cv2.LINE_AA)
    cv2.circle(picture, place, radius - (ring == _WHITE), color, -1, cv2.LINE_AA)


def _cross(picture: np.ndarray, place: tuple[int, int]) -> None:
    cv2.drawMarker(picture, place, _WHITE, cv2.MARKER_TILTED_CROSS, 14, 4, cv2.LINE_AA)
    cv2.drawMarker(picture, place, WRONG_COLOR, cv2.MARKER_TILTED_CROSS, 14, 2, cv2.LINE_AA)


def _write(
    picture: np.ndarray,
    text: str,
    place: tuple[int, int],
    color: tuple[int, int, int],
    size: float = 0.4,
) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, _BLACK, 3, cv2.LINE_AA)
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)


def _text_bar(text: str, width: int) -> np.ndarray:
    bar = np.zeros((_LEGEND_HEIGHT, width, 3), dtype=np.uint8)
    _write(bar, text, (2, 14), _WHITE)
    return bar


def _legend(skeleton: Skeleton, width: int) -> np.ndarray:
    """The names of the keypoint types in their colours, as many lines as they need."""
    bars = [np.zeros((_LEGEND_HEIGHT, width, 3), dtype=np.uint8)]
    left = 2
    for name, color in zip(skeleton.keypoint_names, _colors_of_types(skeleton), strict=True):
        length = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0] + 10
        if left > 2 and left + length > width:
            bars.append(np.zeros_like(bars[0]))
            left = 2
        _write(bars[-1], name, (left, 14), color)
        left += length
    return np.concatenate(bars)


def _colors_of_types(skeleton: Skeleton) -> list[tuple[int, ...]]:
    return [tuple(color) for color in type_colors(skeleton.num_keypoints).tolist()]


def _box_colors(count: int) -> list[tuple[int, ...]]:
    """As in utils/visualize.py."""
    colors = colormap(rgb=True, maximum=255)
    return [tuple(colors[i % len(colors)].tolist()) for i in range(count)]


def _pixels(points: torch.Tensor) -> list:
    """(..., 2) continuous pixels to nested lists of pixels (column, row)."""
    # Far outside is outside all the same; OpenCV takes 32 bits.
    whole = points.nan_to_num(-1e4).clamp(-1e4, 1e4).floor().int().tolist()
    return _tuples(whole)


def _tuples(values: Sequence) -> list | tuple[int, int]:
    if values and not isinstance(values[0], list):
        return tuple(values)
    return [_tuples(value) for value in values]
