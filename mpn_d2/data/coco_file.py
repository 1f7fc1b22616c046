"""COCO annotation files: the one check before anybody reads them, and who in them is a person.

Loading and evaluation both come through `check_coco_file`; Detectron2 and pycocotools, which read
the same file afterwards, answer a broken one with a traceback or with wrong figures.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PERSON = "person"


@dataclass(frozen=True)
class CocoSummary:
    """What loading and evaluation ask of a checked file; "people" are of the person category.

    Attributes:
        person_id: `category_id` of people in the file.
        keypoint_count: K of everybody who has keypoints, None where nobody has.
        without_area: where the first person without `area` stands, None where all have one.
        people_per_image: image id to number of people, crowds included.
        dropped: image id to people whose polygons all have fewer than three points; Detectron2's
            loader leaves these out. Annotations as in the file: not to be changed.
    """

    person_id: int
    keypoint_count: int | None
    without_area: str | None
    people_per_image: dict[int, int]
    dropped: dict[int, list[dict]]


def check_coco_file(path: str | os.PathLike, num_keypoints: int | None = None) -> CocoSummary:
    """Reads and checks a COCO annotation file; once for as long as the file stays as it is.

    Args:
        path: of the JSON file.
        num_keypoints: K that the keypoints must have, None if any one number will do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line with file, image or annotation, and remedy.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"annotation file {path} not found")
    status = os.stat(path)
    summary = _summary(os.fspath(path), status.st_mtime_ns, status.st_size)
    if num_keypoints is not None and summary.keypoint_count not in (None, num_keypoints):
        raise ValueError(
            f"{path}: people have {summary.keypoint_count} keypoints, the dataset's skeleton "
            f"{num_keypoints}: correct keypoint_names or the skeleton it was registered with"
        )
    return summary


def people_only(content: dict, person_id: int) -> dict:
    """COCO `content` with the person category alone; its annotations are copies.

    They are numbered anew from 1, as pycocotools takes a match with id 0 for none.
    """
    people = [a for a in content.get("annotations", []) if a["category_id"] == person_id]
    return {
        **content,
        "categories": [c for c in content["categories"] if c["id"] == person_id],
        "annotations": [{**a, "id": i} for i, a in enumerate(people, start=1)],
    }


def person_class(names: Sequence[str], where: str) -> int:
    """Index of the person among category names: the one called person, or the only one.

    Raises:
        ValueError: there is none, or more than one; `where` begins the message.
    """
    found = [i for i, name in enumerate(names) if name == PERSON]
    if len(names) == 1:
        return 0
    if len(found) != 1:
        raise ValueError(
            f"{where}: of several categories ({', '.join(map(str, names))}) exactly one must be "
            f"called {PERSON!r}: rename the category of people"
        )
    return found[0]


# Small: it keeps summaries, not the files, which take gigabytes in memory.
@functools.lru_cache(maxsize=16)
def _summary(path: str, mtime: int, size: int) -> CocoSummary:
    """`mtime` and `size` are there to notice a changed file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not content.get("images"):
        raise ValueError(f"{path} lists no images (COCO format wanted)")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(f"{path}: {key!r} is no list of objects (COCO format wanted)")
    _check_images(content["images"], path)
    categories = _categories(content, path)
    person_id = list(categories)[person_class(list(categories.values()), path)]
    annotations = content.get("annotations", [])
    _check_annotations(annotations, categories, path)
    return _check_people([a for a in annotations if a["category_id"] == person_id], person_id, path)


def _check_images(images: list[dict], path: str) -> None:
    seen = set()
    for i, image in enumerate(images):
        where = f"{path}: image {image.get('id', f'number {i + 1}')}"
        for key in ("id", "file_name", "width", "height"):
            if image.get(key) is None:
                raise ValueError(f"{where} has no {key!r}: add it, Detectron2 needs it")
        size = [image["width"], image["height"]]
        if not _are_numbers(size) or min(size) <= 0:
            raise ValueError(f"{where} has width and height {size}: give its size in pixels")
        if image["id"] in seen:
            raise ValueError(f"{where} is there twice: give each image an id of its own")
        seen.add(image["id"])


def _categories(content: dict, path: str) -> dict[int, str]:
    """Category id to name."""
    categories = content.get("categories")
    if not categories:
        raise ValueError(
            f'{path} has no categories: add "categories": [{{"id": 1, "name": "{PERSON}"}}]'
        )
    if any(c.get("id") is None or c.get("name") is None for c in categories):
        raise ValueError(f"{path}: a category has no 'id' or no 'name': add it")
    if len({c["id"] for c in categories}) < len(categories):
        raise ValueError(f"{path}: two categories have one id: give each an id of its own")
    return {c["id"]: c["name"] for c in categories}


def _check_annotations(annotations: list[dict], categories: dict[int, str], path: str) -> None:
    """What Detectron2 and pycocotools ask of the annotations of any category."""
    seen = set()
    for i, annotation in enumerate(annotations):
        where = _where(annotation, path, i)
        for key in ("id", "image_id", "category_id"):
            if annotation.get(key) is None:
                raise ValueError(f"{where} has no {key!r}: add it")
        # COCO 2014's own minival files hold some twice; Detectron2 takes them too.
        if annotation["id"] in seen and "minival" not in path:
            raise ValueError(f"{where} is there twice: give each annotation an id of its own")
        seen.add(annotation["id"])
        if annotation["category_id"] not in categories:
            raise ValueError(
                f"{where} has category_id {annotation['category_id']!r}, which 'categories' does "
                f"not list: add it there or use one of {', '.join(map(str, categories))}"
            )


def _check_people(people: list[dict], person_id: int, path: str) -> CocoSummary:
    """Boxes and keypoints of people."""
    count = without_area = None
    per_image: dict[int, int] = {}
    dropped: dict[int, list[dict]] = {}
    for annotation in people:
        where = _where(annotation, path)
        box = annotation.get("bbox")
        if box is None:
            raise ValueError(f"{where} has no 'bbox': add x, y, width, height in pixels")
        if not _are_numbers(box, 4) or box[2] < 0 or box[3] < 0:
            raise ValueError(
                f"{where} has bbox {box!r}: give four finite numbers x, y, width, height, "
                "no size negative"
            )
        if annotation.get("keypoints"):
            count = _check_keypoints(annotation["keypoints"], count, where)
        if without_area is None and annotation.get("area") is None:
            without_area = where
        image_id = annotation["image_id"]
        per_image[image_id] = per_image.get(image_id, 0) + 1
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list) and not all(isinstance(p, list) for p in segmentation):
            raise ValueError(
                f"{where} has a segmentation that is no list of polygons: give [[x, y, x, y, ...]]"
            )
        if _is_dropped(segmentation):
            dropped.setdefault(image_id, []).append(annotation)
    return CocoSummary(person_id, count, without_area, per_image, dropped)


def _check_keypoints(keypoints: object, count: int | None, where: str) -> int:
    """Their number, which must be `count` unless that is None."""
    if not isinstance(keypoints, list) or len(keypoints) % 3 or not _are_numbers(keypoints):
        raise ValueError(f"{where} has keypoints that are no list of finite numbers x, y, v, ...")
    found = len(keypoints) // 3
    if count not in (None, found):
        raise ValueError(
            f"{where} has {found} keypoints, people before it have {count}: give all the same, "
            "0, 0, 0 for those not labelled"
        )
    return found


def _is_dropped(segmentation: object) -> bool:
    """Polygons, none of which Detectron2's loader takes."""
    if not isinstance(segmentation, list) or not segmentation:
        return False
    return not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation)


def _are_numbers(values: object, count: int | None = None) -> bool:
    try:
        right = count is None or len(values) == count
        return right and all(map(math.isfinite, values))
    except TypeError:
        return False


def _where(annotation: dict, path: str, place: int | None = None) -> str:
    number = annotation.get("id")
    if number is None and place is not None:
        number = f"number {place + 1}"
    return f"{path}: annotation {number} of image {annotation.get('image_id')}"
