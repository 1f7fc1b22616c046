"""COCO annotation files: the one check before anybody reads them, and who in them is a person.

Loading and evaluation both come through `check_coco_file`; Detectron2 and pycocotools, which read
the file that it names afterwards, answer a broken one with a traceback or with wrong figures.
What users expect to be skipped is counted (`CocoSummary.notes`), what cannot be right is an error.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from mpn_d2.data.annotation_cache import cache_folder, complete, read_json, store_copy
from mpn_d2.data.coco_checks import (
    check_area_and_crowd,
    check_box,
    check_id,
    check_images,
    check_keypoints,
    check_mask,
    leaves_folder,
    place_of,
)
from mpn_d2.data.limits import count_person
from mpn_d2.data.shown import listed, short

PERSON = "person"
# What Detectron2 writes into files that it makes of datasets of dicts: names are whole paths there.
_CONVERTED = "Automatically generated COCO json file for Detectron2."
# Files give rounded boxes; one that reaches this far outside its image (pixels) is as it should be.
_SLACK = 1.0
# What is counted, by the words that the log has for it.
CLIPPED = "boxes reach outside their image (clipped)"
OUTSIDE = "boxes have no area inside their image (left out of training)"
POINTS_OUTSIDE = "labelled keypoints lie outside their image (left out of training)"
SHORT = "polygons have fewer than three points (left out)"
NO_MASK_LEFT = "people have such polygons alone (their box counts)"
MISCOUNTED = "people's num_keypoints contradict their keypoints (counted anew)"
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
            f"{where}: of several categories ({listed(names)}) exactly one must be "
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
            f"{path}: keypoint {i + 1} is {short(theirs[i])}, in the dataset's skeleton "
            f"{short(names[i])}: give the skeleton the order of the file"
        )


# Small: it keeps summaries, not the files, which take gigabytes in memory.
@functools.lru_cache(maxsize=16)
def _summary(path: str, mtime: int, size: int, cache: str) -> CocoSummary:
    """`mtime` and `size` are there to notice a changed file, `cache` another folder of copies."""
    content, digest = read_json(path)
    _check_encoding(path)
    if not isinstance(content, dict) or not content.get("images"):
        raise ValueError(f"{path} lists no images (COCO format wanted)")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(f"{path}: {key!r} is no list of objects (COCO format wanted)")
    renamed = _shorten_names(content)
    check_images(content["images"], path)
    categories = _categories(content, path)
    person_id = list(categories)[person_class(list(categories.values()), path)]
    annotations = content.get("annotations", [])
    _check_annotations(annotations, categories, path)
    people = [a for a in annotations if a["category_id"] == person_id]
    found = _check_people(people, content["images"], path)
    (names,) = (c.get("keypoints") for c in content["categories"] if c["id"] == person_id)
    # By another name: one that was stored before these were corrected may be there.
    corrected = _correct(content["images"], people) or renamed
    copied = complete(content, person_id, path) or corrected
    digest += "-corrected" * corrected
    return CocoSummary(
        file=store_copy(content, path, digest) if copied else path,
        person_id=person_id,
        keypoint_names=tuple(map(str, names)) if isinstance(names, list) and names else None,
        images=len(content["images"]),
        **found,
    )


def _shorten_names(content: dict) -> bool:
    """Takes the folders off names that lead out of the image folder, in place; whether any did.

    Only in what Detectron2 converted for an evaluation: nobody reads images by these names.
    """
    info = content.get("info")
    if not isinstance(info, dict) or info.get("description") != _CONVERTED:
        return False
    changed = False
    for image in content["images"]:
        name = image.get("file_name")
        if isinstance(name, str) and leaves_folder(name):
            image["file_name"] = os.path.basename(name)
            changed = True
    return changed


def _correct(images: list[dict], people: list[dict]) -> bool:
    """Makes sizes such as 640.0 whole numbers and counts keypoints, in place; whether any changed.

    pycocotools draws no mask of the first, and scores nobody whose num_keypoints is 0.
    """
    changed = False
    for image in images:
        for key in ("width", "height"):
            if isinstance(image[key], float):
                image[key] = int(image[key])
                changed = True
    for person in filter(_is_miscounted, people):
        person["num_keypoints"] = _labelled(person)
        changed = True
    return changed


def _labelled(person: dict) -> int:
    return sum(v > 0 for v in (person.get("keypoints") or ())[2::3])


def _is_miscounted(person: dict) -> bool:
    """Whether num_keypoints is 0 and there are labelled ones, or the other way round.

    Another wrong number changes nothing, and CrowdPose's own files have many.
    """
    number = person.get("num_keypoints")
    return number is not None and (number == 0) != (_labelled(person) == 0)


def _check_encoding(path: str) -> None:
    """pycocotools reads the file again, and plain UTF-8 alone."""
    with open(path, "rb") as file:
        encoding = json.detect_encoding(file.read(4))
    if encoding != "utf-8":
        raise ValueError(f"{path} is JSON in {encoding}: save it as UTF-8 without BOM")


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
        check_id(category["id"], "id", f"{path}: category {short(category['name'])}")
    if len({c["id"] for c in categories}) < len(categories):
        raise ValueError(f"{path}: two categories have one id: give each an id of its own")
    return {c["id"]: c["name"] for c in categories}


def _check_annotations(annotations: list[dict], categories: dict[int, str], path: str) -> None:
    """What Detectron2 and pycocotools ask of the annotations of any category."""
    seen = set()
    for i, annotation in enumerate(annotations):
        where = f"{path}: {place_of(annotation, i)}"
        for key in ("id", "image_id", "category_id"):
            if annotation.get(key) is None:
                raise ValueError(f"{where} has no {key!r}: add it")
            check_id(annotation[key], key, where)
        # COCO 2014's own minival files hold some twice; Detectron2 takes them too.
        if annotation["id"] in seen and "minival" not in path:
            raise ValueError(f"{where} is there twice: give each annotation an id of its own")
        seen.add(annotation["id"])
        if annotation["category_id"] not in categories:
            raise ValueError(
                f"{where} has category_id {short(annotation['category_id'])}, which 'categories' "
                f"does not list: add it there or use one of {listed(categories)}"
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
        before, first = notes.get(what, (0, place_of(annotation)))
        notes[what] = (before + number, first)

    for annotation in people:
        where = f"{path}: {place_of(annotation)}"
        check_box(annotation.get("bbox"), where)
        check_area_and_crowd(annotation, where)
        image_id, keypoints = annotation["image_id"], annotation.get("keypoints")
        count = check_keypoints(annotation, count, where)
        if _is_miscounted(annotation):
            note(MISCOUNTED, annotation)
        if annotation.get("iscrowd", 0):
            crowds += 1
        elif keypoints and any(keypoints[2::3]):
            labelled += 1
        count_person(per_image, image_id, path)
        size = sizes.get(image_id)
        lines = check_mask(annotation.get("segmentation"), size, where)
        if lines:
            note(SHORT, annotation, lines)
            if lines == len(annotation["segmentation"]):
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
