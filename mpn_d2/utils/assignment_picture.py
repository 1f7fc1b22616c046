"""A picture of one assignment: candidates and boxes, result, evidence of each box.

Letters: C candidates, P boxes of one image, B of them that take part, K keypoint types, h x w cells
of a box grid. Frame: continuous pixels of the image. What is drawn is a part of the image, enlarged
or reduced to one size, so that people large and small carry the same marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.utils.colormap import colormap

from mpn_d2.codecs import person_grid
from mpn_d2.structures.outputs import AssembledPoses, Candidates
from mpn_d2.structures.skeleton import Skeleton
from mpn_d2.utils.target_pictures import draw_grid, join, stack, type_colors

# Longer side of the overviews and height of an evidence panel, pixels.
SIDE = 720
_PANEL = 336
# Boxes whose evidence is drawn.
_MOST_BOXES = 24
# The image behind boxes and joints, as bright as this.
_DIM = 0.5
# What is shown around a box, share of its sides, and around everything, share of the longer side.
_AROUND_BOX = 0.25
_AROUND_ALL = 0.1
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
    """Candidates and boxes | result, over the evidence of each box that may claim a candidate.

    Keypoint types and boxes have a colour each. A grid shows at each cell the type that is furthest
    over the least of its cells (where a softmax says nowhere), and the candidates that the box may
    claim at the cells where they are read; without grids candidates are as large as their pair
    score. What the box got has a white ring, what belongs to somebody else a red cross.

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
    claims = (assignment.pair_scores > 0).any(dim=1).nonzero()[:, 0].tolist()
    shown = claims[:_MOST_BOXES]
    note = f"evidence of boxes that may claim a keypoint, {len(shown)} of {len(claims)}"
    rows.append(_text_bar(note, overview.shape[1]))
    panels = [_draw_evidence(image_rgb, assignment, row, skeleton) for row in shown]
    captions = [
        f"{int(assignment.rated[row]) + 1}: largest {_largest(assignment, row):.2g}"
        for row in shown
    ]
    columns = max(1, overview.shape[1] // (panels[0].shape[1] + 4)) if panels else 1
    for first in range(0, len(panels), columns):
        part = slice(first, first + columns)
        rows.append(join(panels[part], captions[part]))
    return stack(rows)


def draw_candidates(
    image_rgb: np.ndarray, assignment: Assignment, skeleton: Skeleton
) -> np.ndarray:
    """All candidates in the colour of their type, all boxes in that of their person."""
    picture, view = _overview(image_rgb, assignment)
    colors = _colors_of_types(skeleton)
    candidates = assignment.candidates
    places = view.pixels(candidates.points)
    for place, kind in zip(places, candidates.types.tolist(), strict=True):
        _dot(picture, place, colors[kind])
    return picture


def draw_result(image_rgb: np.ndarray, assignment: Assignment, skeleton: Skeleton) -> np.ndarray:
    """One skeleton a box in its colour; red crosses and, hollow, candidates that nobody got."""
    picture, view = _overview(image_rgb, assignment)
    poses = assignment.poses
    places = view.pixels(poses.keypoints[..., :2])
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
    for index, place in enumerate(view.pixels(assignment.candidates.points)):
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
    ids = assignment.poses.candidate_ids[slot]
    got = set(ids[ids >= 0].tolist())
    # Weak ones first, what the box got last: nothing important is covered.
    order = sorted(
        (scores > 0).nonzero()[:, 0].tolist(), key=lambda i: (i in got, float(scores[i]))
    )
    wrong = assignment.wrong()
    crossed = set() if wrong is None else set(ids[wrong[slot]].tolist())
    colors = _colors_of_types(skeleton)
    for index in order:
        color = colors[int(assignment.candidates.types[index])]
        ring = _WHITE if index in got else _BLACK
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
    cells = person_grid.points_to_cells(points, box[None], (grid.shape[1], grid.shape[2]))[0]
    places = _pixels((cells + 0.5) * scale)
    background = grid.amin(dim=(1, 2), keepdim=True)
    return draw_grid(grid - background, scale), places, [4] * len(places)


def _pair_panel(
    image_rgb: np.ndarray, assignment: Assignment, row: int
) -> tuple[np.ndarray, list[tuple[int, int]], list[int]]:
    """The image around the box; pixel and radius, by pair score, of every candidate in it."""
    box = assignment.boxes[assignment.rated[row]].double()
    around = _AROUND_BOX * (box[2:] - box[:2])
    region = torch.cat([box[:2] - around, box[2:] + around])
    view = _View.of(region, (_PANEL, 2 * _PANEL // 3))
    picture = view.picture(image_rgb)
    first, last = view.pixels(box.view(2, 2))
    cv2.rectangle(picture, first, last, _GREY, 1)
    places = view.pixels(assignment.candidates.points)
    scores = assignment.pair_scores[row]
    # Relative to the image's best pair, so that boxes compare; area as score.
    share = (scores / max(_maximum(assignment.pair_scores), 1e-12)).clamp(min=0).sqrt()
    return picture, places, (2 + 7 * share).round().int().tolist()


def _result_caption(assignment: Assignment) -> str:
    given = int((assignment.poses.candidate_ids >= 0).sum())
    wrong = assignment.wrong()
    if wrong is None:
        return f"result: {given} keypoints given"
    return f"result: {given} keypoints given, {int(wrong.sum())} to the wrong person"


def _largest(assignment: Assignment, row: int) -> float:
    """What is brightest or largest in the panel of a box."""
    return _maximum((assignment.pair_scores if assignment.grids is None else assignment.grids)[row])


def _maximum(values: torch.Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


@dataclass
class _View:
    """A part of the image as it is drawn: pixel = scale x point + shift.

    Attributes:
        scale: how many times larger.
        shift: (2,) x, y.
        size: (height, width) of the picture.
    """

    scale: float
    shift: torch.Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, region: torch.Tensor, size: tuple[int, int]) -> _View:
        """The view that shows x1, y1, x2, y2 in the middle, as large as fits."""
        region = region.double()
        room = torch.tensor([size[1], size[0]], dtype=torch.float64)
        scale = float((room / (region[2:] - region[:2]).clamp(min=1.0)).min())
        return cls(scale, room / 2 - scale * (region[:2] + region[2:]) / 2, size)

    def picture(self, image_rgb: np.ndarray) -> np.ndarray:
        """The image so, dimmed; black outside of it."""
        # OpenCV's pixel i has its centre at i, ours at i + 0.5.
        x, y = (self.shift + (self.scale - 1) / 2).tolist()
        matrix = np.array([[self.scale, 0, x], [0, self.scale, y]])
        part = cv2.warpAffine(image_rgb, matrix, self.size[::-1], borderMode=cv2.BORDER_REPLICATE)
        everywhere = np.full(image_rgb.shape[:2], 255, dtype=np.uint8)
        inside = cv2.warpAffine(everywhere, matrix, self.size[::-1], flags=cv2.INTER_NEAREST)
        return (_DIM * part * (inside[..., None] > 0)).astype(np.uint8)

    def pixels(self, points: torch.Tensor) -> list:
        """(..., 2) points of the image to nested lists of pixels (column, row)."""
        return _pixels(points.double() * self.scale + self.shift)


def _overview(image_rgb: np.ndarray, assignment: Assignment) -> tuple[np.ndarray, _View]:
    """The part of the image with boxes and candidates in it, all boxes drawn."""
    height, width = image_rgb.shape[:2]
    points = torch.cat([assignment.boxes.view(-1, 2), assignment.candidates.points]).double()
    whole = torch.tensor([0.0, 0.0, width, height], dtype=torch.float64)
    region = whole
    if len(points):
        low, high = points.amin(dim=0), points.amax(dim=0)
        around = _AROUND_ALL * (high - low).max() + 1
        region = torch.cat([low - around, high + around])
        limit = whole[2:].repeat(2)
        region = region.nan_to_num(0.0).clamp(min=0.0).minimum(limit)
        if not (region[2:] - region[:2] >= 1).all():
            region = whole
    sides = region[2:] - region[:2]
    # Not too narrow for the line of text above it.
    size = (sides * SIDE / sides.max()).round().int().clamp(min=SIDE // 2).tolist()
    view = _View.of(region, (size[1], size[0]))
    picture = view.picture(image_rgb)
    _draw_boxes(picture, assignment.boxes, view)
    return picture, view


def _draw_boxes(picture: np.ndarray, boxes: torch.Tensor, view: _View) -> None:
    corners, colors = view.pixels(boxes.view(-1, 2, 2)), _box_colors(len(boxes))
    for pair, color in zip(corners, colors, strict=True):
        cv2.rectangle(picture, pair[0], pair[1], color, 2)
    for number, (pair, color) in enumerate(zip(corners, colors, strict=True), start=1):
        left, top = (max(place, 0) for place in pair[0])
        last = (left + 4 + 8 * len(str(number)), top + 14)
        cv2.rectangle(picture, (left, top), last, color, -1)
        _write(picture, str(number), (left + 2, top + 11), _WHITE)


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
    cv2.drawMarker(picture, place, _WHITE, cv2.MARKER_TILTED_CROSS, 11, 4, cv2.LINE_AA)
    cv2.drawMarker(picture, place, WRONG_COLOR, cv2.MARKER_TILTED_CROSS, 11, 2, cv2.LINE_AA)


def _write(
    picture: np.ndarray, text: str, place: tuple[int, int], color: tuple[int, int, int]
) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, _BLACK, 3, cv2.LINE_AA)
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, 1, cv2.LINE_AA)


def _text_bar(text: str, width: int) -> np.ndarray:
    bar = np.zeros((_LEGEND_HEIGHT, width, 3), dtype=np.uint8)
    _write(bar, text, (2, 14), _WHITE)
    return bar


def _legend(skeleton: Skeleton, width: int) -> np.ndarray:
    """The names of the keypoint types beside their colours, as many lines as they need."""
    bars = [np.zeros((_LEGEND_HEIGHT, width, 3), dtype=np.uint8)]
    left = 2
    for name, color in zip(skeleton.keypoint_names, _colors_of_types(skeleton), strict=True):
        length = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0] + 24
        if left > 2 and left + length > width:
            bars.append(np.zeros_like(bars[0]))
            left = 2
        _dot(bars[-1], (left + 5, 10), color)
        _write(bars[-1], name, (left + 13, 14), _WHITE)
        left += length
    return np.concatenate(bars)


def _colors_of_types(skeleton: Skeleton) -> list[tuple[int, int, int]]:
    return [(r, g, b) for r, g, b in type_colors(skeleton.num_keypoints).tolist()]


def _box_colors(count: int) -> list[tuple[int, int, int]]:
    """As in utils/visualize.py."""
    colors = [(r, g, b) for r, g, b in colormap(rgb=True, maximum=255).tolist()]
    return [colors[i % len(colors)] for i in range(count)]


def _pixels(points: torch.Tensor) -> list:
    """(..., 2) continuous pixels to nested lists of pixels (column, row)."""
    # Far outside is outside all the same; OpenCV takes 32 bits.
    whole = points.nan_to_num(-1e4).clamp(-1e4, 1e4).floor().int().tolist()
    return _tuples(whole)


def _tuples(values: Sequence) -> Any:
    if values and not isinstance(values[0], list):
        return tuple(values)
    return [_tuples(value) for value in values]
