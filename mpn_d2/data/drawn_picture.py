"""One picture of drawn people, with their COCO annotations; and the datasets made of such.

A picture is a function of (dataset, split, seed, index) alone: the same on every machine, in any
order, by any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pycocotools.mask as mask_util

from mpn_d2.data.drawn_coco import (
    TEST_IMAGES,
    Layout,
    cover_hidden_joints,
    joints_of,
    people_of_layout,
)
from mpn_d2.data.drawn_layout import (
    LEAST_PIXELS,
    LEAST_VISIBLE,
    Occluder,
    Person,
    sample_dense_groups,
    sample_groups,
    sample_occluders,
)
from mpn_d2.data.drawn_people import PARTS, SCALE, face_normals, paint, reduced, seen_joints
from mpn_d2.data.drawn_pose import JOINT, SKELETON
from mpn_d2.data.drawn_random import Draws
from mpn_d2.data.drawn_scenes import draw_background, finish

SPLITS = ("train", "test")
PERSON_CATEGORY = 1
IMAGE_SIZE = (320, 320)


@dataclass(frozen=True)
class DrawnDataset:
    """A dataset of drawn people; its name ends in a version, which fixes what is drawn.

    Attributes:
        number: part of every image's seed, so that datasets share no pictures.
        seed: of the version.
        counts: images of each split.
        sample_people: who is where, from the furthest to the nearest; None: as COCO's layouts say.
    """

    name: str
    number: int
    seed: int
    counts: dict[str, int]
    sample_people: Callable[[Draws, tuple[int, int]], list[Person]] | None


DRAWN_DATASETS = {
    d.name: d
    for d in (
        DrawnDataset("drawn-v1", 1, 1, {"train": 8000, "test": 200}, sample_groups),
        DrawnDataset("drawn-crowd-v1", 2, 1, {"train": 4000, "test": 200}, sample_dense_groups),
        DrawnDataset("drawn-coco-v1", 3, 1, {"train": 4000, "test": TEST_IMAGES}, None),
    )
}


def draw_image(
    name: str, split: str, index: int, seed: int, layout: Layout | None = None
) -> tuple[np.ndarray, list[dict]]:
    """One picture and its people.

    Args:
        name: key of DRAWN_DATASETS.
        split: "train" or "test".
        index: from 0 on.
        seed: of the dataset.
        layout: for a dataset of COCO's layouts.

    Returns:
        (H, W, 3) uint8 BGR, and COCO annotations without ids.
    """
    dataset = DRAWN_DATASETS[name]
    draws = Draws(seed, dataset.number, SPLITS.index(split), index)
    if layout is not None:
        return _draw_layout(draws, layout)
    background = draw_background(draws, IMAGE_SIZE)
    people: list[Person] = []
    while not any(person.kind == "known" for person in people):
        people = dataset.sample_people(draws, IMAGE_SIZE)
    occluders = sample_occluders(draws, people, IMAGE_SIZE)
    while True:
        picture, who = _compose(background, people, occluders)
        annotations, hidden = _annotate(people, who)
        if not hidden or len(hidden) == len(people):
            return finish(draws, picture), annotations
        people = [p for i, p in enumerate(people) if i not in hidden]


def _draw_layout(draws: Draws, layout: Layout) -> tuple[np.ndarray, list[dict]]:
    """The picture; keypoints, boxes and areas stay COCO's, the masks are what was drawn."""
    background = draw_background(draws, layout.size)
    people, sources = people_of_layout(draws, layout)
    for _ in range(3):
        picture, who = _compose(background, people, [])
        counts = np.bincount((reduced(who) // PARTS).ravel(), minlength=len(people) + 1)[1:]
        # Who would not be seen at all comes to the front.
        order = sorted(range(len(people)), key=lambda i: counts[i] < LEAST_PIXELS)
        if order == list(range(len(people))):
            break
        people, sources = [people[i] for i in order], [sources[i] for i in order]
    joints = [joints_of(source) for source in sources]
    visible = np.concatenate([k[k[:, 2] == 2, :2] for k in joints])
    for number, (person, keypoints) in enumerate(zip(people, joints), start=1):
        occluder = cover_hidden_joints(draws, person, number, keypoints, visible, who)
        if occluder is not None:
            occluder.paint(picture)
            occluder.cut_out(who)
    owners = reduced(who) // PARTS
    annotations = []
    for number, (person, source) in enumerate(zip(people, sources), start=1):
        mask = owners == number
        if mask.any():
            annotation = _annotation(mask, source["keypoints"], person)
            annotations.append({**annotation, "bbox": source["bbox"], "area": source["area"]})
    return finish(draws, picture), annotations


def _compose(
    background: np.ndarray, people: list[Person], occluders: list[Occluder]
) -> tuple[np.ndarray, np.ndarray]:
    """The picture and the map of who is where, both SCALE times larger."""
    size = (background.shape[1] * SCALE, background.shape[0] * SCALE)
    picture = cv2.resize(background, size, interpolation=cv2.INTER_NEAREST)
    who = np.zeros(picture.shape[:2], dtype=np.uint16)
    for number, person in enumerate(people, start=1):
        paint(person.shapes, number, picture, who, person.look)
        for occluder in occluders:
            if occluder.after == number:
                occluder.paint(picture)
                occluder.cut_out(who)
    return picture, who


def _annotate(people: list[Person], who: np.ndarray) -> tuple[list[dict], set[int]]:
    """COCO annotations of people seen well enough, and the places of the others."""
    owners = reduced(who) // PARTS
    annotations, hidden = [], set()
    crowd = np.zeros(owners.shape, dtype=bool)
    for number, person in enumerate(people, start=1):
        mask = owners == number
        pixels = int(mask.sum())
        if pixels < max(LEAST_VISIBLE * person.pixels, LEAST_PIXELS):
            hidden.add(number - 1)
        elif person.kind == "crowd":
            crowd |= mask
        else:
            keypoints = _keypoints(person, number, who)
            if person.kind == "unknown" or not any(keypoints[2::3]):
                keypoints = [0] * len(keypoints)
            annotations.append(_annotation(mask, keypoints, person))
    if crowd.any():
        annotations.append(_annotation(crowd, [0] * 3 * SKELETON.num_keypoints, None))
    return annotations, hidden


def _keypoints(person: Person, number: int, who: np.ndarray) -> list[float]:
    """x, y, v of all joints, in pixel indices as COCO stores them.

    Points of a face that the head itself hides are not labelled, as in COCO.
    """
    figure = person.figure
    shown = seen_joints(figure, number, who)
    away = {JOINT[n] for n, faces in face_normals(figure.head_axes).items() if not faces}
    keypoints: list[float] = []
    for i, ((x, y), is_shown) in enumerate(zip(figure.joints, shown)):
        if i not in away and 0 <= x < who.shape[1] / SCALE and 0 <= y < who.shape[0] / SCALE:
            keypoints += [round(float(x) - 0.5, 4), round(float(y) - 0.5, 4), 2 if is_shown else 1]
        else:
            keypoints += [0, 0, 0]
    return keypoints


def _annotation(mask: np.ndarray, keypoints: Sequence[float], person: Person | None) -> dict:
    """`person` is None for a crowd."""
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    annotation = {
        "category_id": PERSON_CATEGORY,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "iscrowd": int(person is None),
        "keypoints": keypoints,
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
    }
    if person is not None:
        x, y = person.corner
        rows, columns = np.nonzero(person.outline)
        inside = (rows + y >= 0) & (rows + y < mask.shape[0])
        inside &= (columns + x >= 0) & (columns + x < mask.shape[1])
        # Ours, to measure the difficulty: how tall the whole outline is, its pixels, and those
        # inside the image.
        annotation["figure"] = {
            "height": int(rows.max() - rows.min() + 1),
            "pixels": len(rows),
            "pixels_in_image": int(inside.sum()),
        }
    return annotation
