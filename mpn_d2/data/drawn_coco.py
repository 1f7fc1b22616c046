"""Scenes as annotated in COCO: the layouts' files, and people drawn where they are annotated."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpn_d2.data.drawn_from_joints import figure_from_joints
from mpn_d2.data.drawn_layout import Occluder, Person, make_person
from mpn_d2.data.drawn_look import sample_color, sample_look
from mpn_d2.data.drawn_people import capsule, seen_joints
from mpn_d2.data.drawn_pose import JOINT, SIDES, SKELETON
from mpn_d2.data.drawn_random import Draws
from mpn_d2.data.limits import read_json_bytes

BUNDLED = Path(__file__).resolve().parent / "layouts"
# Of the two halves of COCO 2017: what is drawn for testing was never drawn for training.
_FILES = {
    "train": "person_keypoints_train2017.json.gz",
    "test": "person_keypoints_val2017_half.json.gz",
}
TEST_IMAGES = 300


@dataclass(frozen=True)
class Layout:
    """Who is where in one COCO picture.

    Attributes:
        image_id: COCO's.
        size: (H, W).
        people: COCO annotations with `bbox`, `keypoints`, `area`.
    """

    image_id: int
    size: tuple[int, int]
    people: list[dict]


def load_layouts(split: str, folder: str | os.PathLike | None = None) -> tuple[list[Layout], str]:
    """The pictures of a split, in the order in which they are drawn.

    train: all with people, shuffled by a fixed rule; test: TEST_IMAGES evenly spaced by image id
    (all, where there are fewer).

    Args:
        split: "train" (of train2017) or "test" (of val2017).
        folder: holds the gzipped COCO files, itself or in `annotations`; None for the bundled ones.

    Returns:
        the layouts, and what names them for good: folder's name, pictures and a hash of the file.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: the file is not gzipped COCO keypoints, or larger than the limit.
    """
    folder = BUNDLED if folder is None else Path(folder)
    places = [folder / _FILES[split], folder / "annotations" / _FILES[split]]
    found = [place for place in places if place.is_file()]
    if not found:
        raise FileNotFoundError(
            f"layouts {places[0]} not found (nor in annotations/): --layouts must name a folder "
            "with gzipped COCO person keypoints; without it the bundled ones are used"
        )
    data = found[0].read_bytes()
    try:
        with gzip.open(io.BytesIO(data)) as file:
            unpacked = read_json_bytes(file, found[0])
    except (OSError, EOFError, zlib.error) as error:
        raise _no_layouts(found[0], error) from error
    try:
        layouts = _layouts(json.loads(unpacked))
    except (ValueError, KeyError, TypeError) as error:
        raise _no_layouts(found[0], error) from error
    if not layouts:
        raise ValueError(f"{found[0]} has no annotated people")
    if split == "test" and len(layouts) > TEST_IMAGES:
        layouts = [layouts[i * len(layouts) // TEST_IMAGES] for i in range(TEST_IMAGES)]
    if split == "train":
        layouts.sort(key=lambda layout: hashlib.sha256(str(layout.image_id).encode()).digest())
    return layouts, f"{len(layouts)} pictures of {hashlib.sha256(data).hexdigest()[:16]}"


def _no_layouts(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no gzipped COCO keypoint file: {error!r}")


def _layouts(content: dict) -> list[Layout]:
    """Pictures with people who have keypoints, by image id."""
    people: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        keypoints = annotation["keypoints"]
        if len(keypoints) != 3 * SKELETON.num_keypoints:
            raise ValueError(f"annotation {annotation['id']} has {len(keypoints) / 3:g} keypoints")
        if any(keypoints[2::3]) and not annotation.get("iscrowd"):
            people.setdefault(annotation["image_id"], []).append(annotation)
    return [
        Layout(image["id"], (image["height"], image["width"]), people[image["id"]])
        for image in sorted(content["images"], key=lambda image: image["id"])
        if image["id"] in people
    ]


def people_of_layout(draws: Draws, layout: Layout) -> tuple[list[Person], list[dict]]:
    """The people drawn where they are annotated, and their annotations, furthest first."""
    people = []
    for annotation in layout.people:
        keypoints = joints_of(annotation)
        x, y, width, height = annotation["bbox"]
        box = np.array([x, y, x + width, y + height])
        figure = figure_from_joints(draws, keypoints, box)
        # A few are annotated with joints outside of their box.
        known = figure.joints[figure.known]
        reach = np.concatenate(
            [np.minimum(box[:2], known.min(axis=0) - 2), np.maximum(box[2:], known.max(axis=0) + 2)]
        )
        people.append(make_person(figure, sample_look(draws), reach))
    order = _order(people, layout)
    return [people[i] for i in order], [layout.people[i] for i in order]


def joints_of(annotation: dict) -> np.ndarray:
    """(K, 3) x, y, v of a COCO annotation, in continuous pixels."""
    keypoints = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
    keypoints[:, :2] += 0.5
    return keypoints


def _order(people: list[Person], layout: Layout) -> list[int]:
    """From back to front: by what covers hidden joints and spares visible ones, then by place."""
    count = len(people)
    # in_front[i, j]: how much speaks for i in front of j.
    in_front = np.zeros((count, count))
    joints = [joints_of(annotation) for annotation in layout.people]
    for i, person in enumerate(people):
        for j in range(count):
            if i == j:
                continue
            for x, y, v in joints[j]:
                if v > 0 and _covers(person, x, y):
                    in_front[i, j] += 1.0 if v == 1 else -1.0
    in_front -= in_front.T
    nearness = [a["bbox"][1] + 1.3 * a["bbox"][3] for a in layout.people]
    left, order = list(range(count)), []
    while left:
        # The one with least reason to be in front of the others.
        last = min(left, key=lambda i: (in_front[i, left].sum() > 0, nearness[i], i))
        order.append(last)
        left.remove(last)
    return order


def _covers(person: Person, x: float, y: float) -> bool:
    column, row = int(x) - person.corner[0], int(y) - person.corner[1]
    rows, columns = person.outline.shape
    return 0 <= row < rows and 0 <= column < columns and person.outline[row, column] > 0


def cover_hidden_joints(
    draws: Draws,
    person: Person,
    number: int,
    keypoints: np.ndarray,
    visible: np.ndarray,
    who: np.ndarray,
) -> Occluder | None:
    """Something in front of the limbs whose joints are annotated as hidden but would be seen.

    Shoulders and hips are left to clothing, and the face is not drawn where it is hidden.

    Args:
        draws: for the colour.
        person: painted as `number`.
        number: where `who` says so.
        keypoints: (K, 3) of the person.
        visible: (N, 2) x, y of joints that must stay visible.
        who: map of people, SCALE times larger than the image.
    """
    figure = person.figure
    shown = seen_joints(figure, number, who)
    color = sample_color(draws)
    shapes = []
    for side, _ in SIDES:
        for middle, end in (("elbow", "wrist"), ("knee", "ankle")):
            places = [JOINT[f"{side}_{name}"] for name in (middle, end)]
            bare = [i for i in places if shown[i] and keypoints[i, 2] == 1]
            if not bare:
                continue
            p, q = figure.joints[bare[0]], figure.joints[bare[-1]]
            near = _distance(visible, p, q)
            radius = min((0.06 if middle == "knee" else 0.045) * figure.stature, 0.7 * near)
            if radius >= 1:
                shapes.append((capsule(p, q, radius, radius), color))
    return Occluder(number, shapes) if shapes else None


def _distance(points: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    """Least distance of the (N, 2) points to the segment from p to q."""
    if len(points) == 0:
        return np.inf
    along = q - p
    share = ((points - p) @ along / max(float(along @ along), 1e-9)).clip(0, 1)
    return float(np.linalg.norm(points - p - share[:, None] * along, axis=1).min())
