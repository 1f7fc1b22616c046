"""COCO annotation files: the one check before anybody reads them, and who in them is a person.

Loading and evaluation both come through `check_coco_file`; Detectron2 and pycocotools, which read
the file that it names afterwards, answer a broken one with a traceback or with wrong figures.
What users expect to be skipped is counted (`CocoSummary.notes`), what cannot be right is an error.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from mpn_d2.data.annotation_cache import cache_folder, complete, read_json, store_copy
from mpn_d2.data.limits import FAR, TOO_FAR, check_image_size, count_person

PERSON = "person"
# Files give rounded boxes; one that reaches this far outside its image (pixels) is as it should be.
_SLACK = 1.0
# What is counted, by the words that the log has for it.
CLIPPED = "boxes reach outside their image (clipped)"
OUTSIDE = "boxes have no area inside their image (left out of training)"
POINTS_OUTSIDE = "labelled keypoints lie outside their image (left out of training)"
SHORT = "polygons have fewer than three points (left out)"
NO_MASK_LEFT = "people have such polygons alone (their box counts)"
UNLISTED = "annotations are of images that the file does not list (left out)"


@dataclass(frozen=True)
class CocoSummary:
    """What loading and evaluation ask of a checked file; "people" are of the person category.

    Attributes:
        file: what Detectron2 and pycocotools are to read: the file itself, or its completed copy
            (see `mpn_d2.data.annotation_cache`).
        person_id: `category_id` of people in the file.
        keypoint_count: K of everybody who has keypoints, None where nobody has.
        keypoint_names: of the person category, None where the file has none.
        images: number of images.
        people: number of people who are no crowds.
        labelled: number of those with a labelled keypoint (v > 0).
        crowds: number of crowds.
        people_per_image: image id to number of people, crowds included.
        dropped: image id to people whose polygons all have fewer than three points; Detectron2's
            loader leaves these out. Annotations as in the file: not to be changed.
        notes: what is clipped or left out, to (how often, where first).
    """

    file: str
    person_id: int
    keypoint_count: int | None
    keypoint_names: tuple[str, ...] | None
    images: int
    people: int
    labelled: int
    crowds: int
    people_per_image: dict[int, int]
    dropped: dict[int, list[dict]]
    notes: dict[str, tuple[int, str]]

    def describe(self) -> str:
        """One line for the log: what the file holds and what of it is not used as it is."""
        text = (
            f"{self.images} images, {self.people} people ({self.labelled} with keypoints, "
            f"{self.people - self.labelled} without: ignored by the keypoint losses), "
            f"{self.crowds} crowds (ignored)"
        )
        for what, (count, first) in self.notes.items():
            text += f"; {count} {what}, first: {first}"
        return text


def check_coco_file(
    path: str | os.PathLike, keypoint_names: Sequence[str] | None = None
) -> CocoSummary:
    """Reads and checks a COCO annotation file; once for as long as the file stays as it is.

    Args:
        path: of the JSON file, packed by gzip (.json.gz) or not.
        keypoint_names: that the keypoints must have, None if any will do. Names that the file
            spells otherwise are no error, the same names in another order are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one line with file, image or annotation, and remedy.
        OSError: a copy is needed and the cache cannot be written.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"annotation file {path} not found")
    status = os.stat(path)
    key = (os.fspath(path), status.st_mtime_ns, status.st_size, str(cache_folder()))
    summary = _summary(*key)
    if not os.path.isfile(summary.file):  # a copy that was deleted since
        _summary.cache_clear()
        summary = _summary(*key)
    if keypoint_names is not None:
        _check_skeleton(summary, tuple(keypoint_names), path)
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


def _check_skeleton(summary: CocoSummary, names: tuple[str, ...], path: str | os.PathLike) -> None:
    if summary.keypoint_count not in (None, len(names)):
        raise ValueError(
            f"{path}: people have {summary.keypoint_count} keypoints, the dataset's skeleton "
            f"{len(names)}: correct keypoint_names or the skeleton it was registered with"
        )
    theirs = summary.keypoint_names
    if theirs is not None and theirs != names and sorted(theirs) == sorted(names):
        i = next(i for i, (a, b) in enumerate(zip(theirs, names, strict=True)) if a != b)
        raise ValueError(
            f"{path}: keypoint {i + 1} is {theirs[i]!r}, in the dataset's skeleton {names[i]!r}: "
            "give the skeleton the order of the file"
        )


# Small: it keeps summaries, not the files, which take gigabytes in memory.
@functools.lru_cache(maxsize=16)
def _summary(path: str, mtime: int, size: int, cache: str) -> CocoSummary:
    """`mtime` and `size` are there to notice a changed file, `cache` another folder of copies."""
    content, digest = read_json(path)
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
    people = [a for a in annotations if a["category_id"] == person_id]
    found = _check_people(people, content["images"], path)
    (names,) = (c.get("keypoints") for c in content["categories"] if c["id"] == person_id)
    copied = complete(content, person_id, path)
    return CocoSummary(
        file=store_copy(content, path, digest) if copied else path,
        person_id=person_id,
        keypoint_names=tuple(map(str, names)) if isinstance(names, list) and names else None,
        images=len(content["images"]),
        **found,
    )


def _check_images(images: list[dict], path: str) -> None:
    seen = set()
    for i, image in enumerate(images):
        where = f"{path}: image {image.get('id', f'number {i + 1}')}"
        for key in ("id", "file_name", "width", "height"):
            if image.get(key) is None:
                raise ValueError(f"{where} has no {key!r}: add it, Detectron2 needs it")
        _check_id(image, "id", where)
        if not isinstance(image["file_name"], str):
            raise ValueError(f"{where} has file_name {image['file_name']!r}: a text is needed")
        size = [image["width"], image["height"]]
        if not are_numbers(size) or min(size) <= 0:
            raise ValueError(f"{where} has width and height {size}: give its size in pixels")
        check_image_size(size[0], size[1], where)
        crowding = image.get("crowdIndex")
        if crowding is not None and not (are_numbers([crowding]) and 0 <= crowding <= 1):
            raise ValueError(f"{where} has crowdIndex {crowding!r}: it lies from 0 to 1")
        if image["id"] in seen:
            raise ValueError(f"{where} is there twice: give each image an id of its own")
        seen.add(image["id"])
    if len({isinstance(number, str) for number in seen}) > 1:
        raise ValueError(f"{path}: some image ids are texts, others numbers: give all the same")


def _categories(content: dict, path: str) -> dict[int, str]:
    """Category id to name."""
    categories = content.get("categories")
    if not categories:
        raise ValueError(
            f'{path} has no categories: add "categories": [{{"id": 1, "name": "{PERSON}"}}]'
        )
    if any(c.get("id") is None or not isinstance(c.get("name"), str) for c in categories):
        raise ValueError(f"{path}: a category has no 'id' or no 'name': add it")
    for category in categories:
        _check_id(category, "id", f"{path}: category {category['name']!r}")
    if len({c["id"] for c in categories}) < len(categories):
        raise ValueError(f"{path}: two categories have one id: give each an id of its own")
    return {c["id"]: c["name"] for c in categories}


def _check_annotations(annotations: list[dict], categories: dict[int, str], path: str) -> None:
    """What Detectron2 and pycocotools ask of the annotations of any category."""
    seen = set()
    for i, annotation in enumerate(annotations):
        where = f"{path}: {_where(annotation, i)}"
        for key in ("id", "image_id", "category_id"):
            if annotation.get(key) is None:
                raise ValueError(f"{where} has no {key!r}: add it")
            _check_id(annotation, key, where)
        # COCO 2014's own minival files hold some twice; Detectron2 takes them too.
        if annotation["id"] in seen and "minival" not in path:
            raise ValueError(f"{where} is there twice: give each annotation an id of its own")
        seen.add(annotation["id"])
        if annotation["category_id"] not in categories:
            raise ValueError(
                f"{where} has category_id {annotation['category_id']!r}, which 'categories' does "
                f"not list: add it there or use one of {', '.join(map(str, categories))}"
            )


def _check_people(people: list[dict], images: list[dict], path: str) -> dict:
    """Boxes, masks and keypoints of people; the fields of CocoSummary that they fill."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    count = None
    labelled = crowds = 0
    per_image: dict[int, int] = {}
    dropped: dict[int, list[dict]] = {}
    notes: dict[str, tuple[int, str]] = {}

    def note(what: str, annotation: dict, number: int = 1) -> None:
        before, first = notes.get(what, (0, _where(annotation)))
        notes[what] = (before + number, first)

    for annotation in people:
        where = f"{path}: {_where(annotation)}"
        _check_box(annotation.get("bbox"), where)
        _check_area_and_crowd(annotation, where)
        image_id, keypoints = annotation["image_id"], annotation.get("keypoints")
        if keypoints not in (None, []):
            count = _check_keypoints(keypoints, count, where)
        if annotation.get("iscrowd", 0):
            crowds += 1
        elif keypoints and any(keypoints[2::3]):
            labelled += 1
        count_person(per_image, image_id, path)
        size = sizes.get(image_id)
        short = _check_mask(annotation.get("segmentation"), size, where)
        if short:
            note(SHORT, annotation, short)
            if short == len(annotation["segmentation"]):
                note(NO_MASK_LEFT, annotation)
                dropped.setdefault(image_id, []).append(annotation)
        if size is None:
            note(UNLISTED, annotation)
            continue
        for what, number in _outside(annotation, size):
            note(what, annotation, number)
    return {
        "keypoint_count": count,
        "people": len(people) - crowds,
        "labelled": labelled,
        "crowds": crowds,
        "people_per_image": per_image,
        "dropped": dropped,
        "notes": notes,
    }


def _check_box(box: object, where: str) -> None:
    if box is None:
        raise ValueError(f"{where} has no 'bbox': add x, y, width, height in pixels")
    if not are_numbers(box, 4) or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{where} has bbox {box!r}: give four finite numbers x, y, width, height, "
            "no size negative"
        )
    if max(abs(box[0]), abs(box[1]), abs(box[0] + box[2]), abs(box[1] + box[3])) > FAR:
        raise ValueError(f"{where} has bbox {box!r}: {TOO_FAR}")


def _check_area_and_crowd(annotation: dict, where: str) -> None:
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    if area is not None and not (are_numbers([area]) and area >= 0):
        raise ValueError(f"{where} has area {area!r}: give square pixels, or leave it out")
    if crowd not in (None, 0, 1):
        raise ValueError(f"{where} has iscrowd {crowd!r}: give 0 (one person) or 1 (a crowd)")


def _check_keypoints(keypoints: object, count: int | None, where: str) -> int:
    """Their number, which must be `count` unless that is None."""
    if not isinstance(keypoints, list) or len(keypoints) % 3 or not are_numbers(keypoints):
        raise ValueError(f"{where} has keypoints that are no list of finite numbers x, y, v, ...")
    found = len(keypoints) // 3
    if count not in (None, found):
        raise ValueError(
            f"{where} has {found} keypoints, people before it have {count}: give all the same, "
            "0, 0, 0 for those not labelled"
        )
    wrong = sorted(set(keypoints[2::3]) - {0, 1, 2})
    if wrong:
        raise ValueError(
            f"{where} has a keypoint with v {wrong[0]}: give 0 (not labelled), 1 (labelled, "
            "hidden) or 2 (visible)"
        )
    return found


def _check_mask(segmentation: object, size: tuple[int, int] | None, where: str) -> int:
    """The number of polygons with fewer than three points; `size` (W, H) of the image if known."""
    if isinstance(segmentation, dict):
        mask_size, counts = segmentation.get("size"), segmentation.get("counts")
        if not are_numbers(mask_size, 2) or not isinstance(counts, list | str):
            raise ValueError(f"{where} has an RLE mask without 'size' and 'counts': add them")
        if size is not None and tuple(mask_size) != size[::-1]:
            raise ValueError(
                f"{where} has an RLE mask of size {list(mask_size)} (height, width) in an image "
                f"of {list(size[::-1])}: give the mask the size of its image"
            )
        if isinstance(counts, list) and not (
            are_numbers(counts)
            and min(counts, default=0) >= 0
            and sum(counts) <= mask_size[0] * mask_size[1]
        ):
            raise ValueError(
                f"{where} has an RLE mask whose counts are not lengths of runs in its "
                f"{mask_size[0]:g} x {mask_size[1]:g} pixels: encode it anew"
            )
        return 0
    if not segmentation:
        return 0
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        raise ValueError(
            f"{where} has a segmentation that is no list of polygons: give [[x, y, x, y, ...]]"
        )
    if not all(map(are_numbers, segmentation)):
        raise ValueError(f"{where} has a polygon that is no list of finite numbers x, y, ...")
    if any(polygon and max(max(polygon), -min(polygon)) > FAR for polygon in segmentation):
        raise ValueError(f"{where} has a polygon with a point too far away: {TOO_FAR}")
    # As Detectron2's loader, which takes the others.
    return sum(len(polygon) < 6 or len(polygon) % 2 != 0 for polygon in segmentation)


def _outside(annotation: dict, size: tuple[int, int]) -> list[tuple[str, int]]:
    """What of a person lies outside the image of `size` (W, H), and how many of it."""
    found = []
    x, y, width, height = annotation["bbox"]
    inside = [
        min(start + length, limit) - max(start, 0)
        for start, length, limit in ((x, width, size[0]), (y, height, size[1]))
    ]
    if min(inside) <= 0:
        found.append((OUTSIDE, 1))
    elif max(-x, -y, x + width - size[0], y + height - size[1]) > _SLACK:
        found.append((CLIPPED, 1))
    keypoints = annotation.get("keypoints") or []
    # Pixel indices: those of an image's last column and row are its size - 1.
    points = sum(
        v > 0 and not (-0.5 <= px <= size[0] - 0.5 and -0.5 <= py <= size[1] - 0.5)
        for px, py, v in zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=True)
    )
    return [*found, (POINTS_OUTSIDE, points)] if points else found


def are_numbers(values: Any, count: int | None = None) -> TypeGuard[Sequence[float]]:
    """Whether these are finite numbers, and so many unless None."""
    try:
        right = count is None or len(values) == count
        return right and all(map(math.isfinite, values))
    except (TypeError, OverflowError):
        return False


def _check_id(entry: dict, key: str, where: str) -> None:
    if not isinstance(entry[key], int | float | str):
        raise ValueError(f"{where} has {key} {entry[key]!r}: a number or a text is needed")


def _where(annotation: dict, place: int | None = None) -> str:
    number = annotation.get("id")
    if number is None and place is not None:
        number = f"number {place + 1}"
    return f"annotation {number} of image {annotation.get('image_id')}"
