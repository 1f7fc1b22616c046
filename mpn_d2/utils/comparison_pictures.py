"""Annotated and found people of an image side by side, each pair in one colour.

Letters: P annotated people, F found ones, M ignored ones. Frame: pixels of the image, continuous.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import cv2
import matplotlib
import numpy as np
import torch
from detectron2.structures import Boxes, Instances, Keypoints

from mpn_d2.structures.skeleton import Skeleton
from mpn_d2.utils.target_pictures import join
from mpn_d2.utils.visualize import draw_annotations, draw_people

MISSED_COLOR = (255, 40, 40)
FALSE_COLOR = (255, 255, 255)
IGNORED_COLOR = (150, 150, 150)
# Longer side of a panel, pixels: smaller images are enlarged, larger ones reduced.
_LEAST_SIDE, _MOST_SIDE = 720, 960
_FONT, _FONT_SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


def draw_comparison(
    image_rgb: np.ndarray,
    truth: Instances,
    found: Instances,
    pose_of: Sequence[int | None],
    oks: Sequence[float],
    skeleton: Skeleton,
    *,
    ignored_boxes: torch.Tensor | None = None,
    excused: Collection[int] = (),
) -> np.ndarray:
    """Truth on the left, what was found on the right.

    Edges have the colours of their sides; box and joints of a person and her pose one colour, and
    one number (her place, from 1). People without a pose are red, poses of nobody white, ignored
    people and the poses that hit them grey.

    Args:
        image_rgb: (H, W, 3) uint8.
        truth: P people, `gt_boxes` and `gt_keypoints` (P, K, 3) x, y, v.
        found: F people, `pred_boxes`, `scores` and `pred_keypoints` (F, K, 3); joints 0, 0, 0 are
            not drawn, all others are, whatever their score.
        pose_of: P places among the found, None for none.
        oks: P numbers, shown with the poses.
        skeleton: of both.
        ignored_boxes: (M, 4) x1, y1, x2, y2 of people who do not count.
        excused: places of found poses that belong to these.

    Returns:
        RGB uint8 picture with captions.
    """
    scale = _scale(image_rgb)
    image = _resized(image_rgb, scale)
    people = _scaled(truth, "gt", scale)
    left = draw_annotations(image, people, skeleton).copy()
    people_found = _scaled(found, "pred", scale)
    people_found.pred_keypoints[..., 2] = (people_found.pred_keypoints != 0).any(dim=-1).float()
    least = float(people_found.scores.min()) if len(people_found) else 0.0
    right = draw_people(image, people_found, skeleton, score_threshold=least).copy()

    colors, owners = pair_colors(len(truth)), {pose: i for i, pose in enumerate(pose_of)}
    marks = _Marks(left)
    for box in [] if ignored_boxes is None else ignored_boxes * scale:
        marks.add(box, IGNORED_COLOR)
    for i, (box, joints) in enumerate(zip(people.gt_boxes, people.gt_keypoints.tensor)):
        if pose_of[i] is None:
            marks.add(box, MISSED_COLOR, f"{i + 1} missed", joints)
        else:
            marks.add(box, colors[i], str(i + 1), joints)
    marks.write_tags()
    marks = _Marks(right)
    # Those of nobody first: pairs stay visible.
    places = sorted(range(len(found)), key=lambda pose: pose in owners)
    for pose in places:
        box = people_found.pred_boxes.tensor[pose]
        joints = people_found.pred_keypoints[pose]
        if pose in owners:
            i = owners[pose]
            marks.add(box, colors[i], f"{i + 1}: OKS {oks[i]:.2f}", joints)
        elif pose in excused:
            marks.add(box, IGNORED_COLOR)
        else:
            marks.add(box, FALSE_COLOR, "false", joints)
    marks.write_tags()
    return join([left, right], [f"truth: {len(truth)} people", f"found: {len(found)} people"])


def pair_colors(count: int) -> list[tuple[int, int, int]]:
    """RGB 0 to 255 of so many pairs, far from each other and from red."""
    hues = np.linspace(0.1, 0.9, max(count, 2))[:count]
    colors = np.rint(255 * matplotlib.colormaps["hsv"](hues)[:, :3]).astype(int)
    return [tuple(color) for color in colors.tolist()]


def _scale(image: np.ndarray) -> float:
    side = max(image.shape[:2])
    return min(max(side, _LEAST_SIDE), _MOST_SIDE) / side


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return np.ascontiguousarray(image)
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def _scaled(instances: Instances, kind: str, scale: float) -> Instances:
    """A copy on the CPU, boxes and keypoints as in the scaled image."""
    copy = Instances(instances.image_size, **instances.to("cpu").get_fields())
    copy.set(f"{kind}_boxes", Boxes(copy.get(f"{kind}_boxes").tensor * scale))
    keypoints = copy.get(f"{kind}_keypoints")
    is_structure = isinstance(keypoints, Keypoints)
    moved = (keypoints.tensor if is_structure else keypoints).clone()
    moved[..., :2] *= scale
    copy.set(f"{kind}_keypoints", Keypoints(moved) if is_structure else moved)
    return copy


class _Marks:
    """Boxes, joints and tags in the colours of pairs, on a picture that is changed."""

    def __init__(self, picture: np.ndarray) -> None:
        self._picture = picture
        self._tags: list[tuple[int, int, str]] = []

    def add(
        self,
        box: torch.Tensor,
        color: tuple[int, ...],
        text: str = "",
        joints: torch.Tensor | None = None,
    ) -> None:
        """Draws a box (4,) and the joints (K, 3) whose third value is above 0; keeps the text."""
        height, width = self._picture.shape[:2]
        limits = torch.tensor([width - 1, height - 1] * 2)
        x1, y1, x2, y2 = box.clamp(min=0).minimum(limits).round().int().tolist()
        cv2.rectangle(self._picture, (x1, y1), (x2, y2), color, 2)
        if text:
            self._tags.append((x1, y2, text))
        for x, y, given in [] if joints is None else joints.tolist():
            if given > 0 and 0 <= x < width and 0 <= y < height:
                cv2.circle(self._picture, (int(x), int(y)), 5, (0, 0, 0), -1)
                cv2.circle(self._picture, (int(x), int(y)), 4, color, -1)

    def write_tags(self) -> None:
        """White on black in the lower left corner of each box, higher where one is already."""
        taken: list[tuple[int, int, int, int]] = []
        for x, y, text in self._tags:
            (width, height), below = cv2.getTextSize(text, _FONT, _FONT_SIZE, 1)
            height += below
            x = max(0, min(x, self._picture.shape[1] - width))
            y = max(height, y)
            while y > 2 * height and any(
                x < right and left < x + width and y - height < bottom and top < y
                for left, top, right, bottom in taken
            ):
                y -= height
            taken.append((x, y - height, x + width, y))
            cv2.rectangle(self._picture, (x, y - height), (x + width, y), (0, 0, 0), -1)
            place = (x, y - below)
            cv2.putText(self._picture, text, place, _FONT, _FONT_SIZE, (255, 255, 255), 1)
