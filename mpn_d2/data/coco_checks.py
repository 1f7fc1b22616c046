"""What the parts of a COCO annotation file must be: images, boxes, keypoints, masks, ids.

Each check raises a ValueError of one line that begins with `where`; see `mpn_d2.data.coco_file`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from mpn_d2.data.limits import FAR, TOO_FAR, check_image_size
from mpn_d2.data.outlines import (
    LONGEST_AROUND_IMAGE,
    LONGEST_OUTLINE,
    MOST_POINTS,
    around_image,
    outline_length,
)
from mpn_d2.data.shown import is_clean, plain, short

# Characters of `file_name`; systems take 255 of a file's name, 4,096 of a path.
_LONGEST_NAME = 1_000
# Ids are sorted by NumPy, which holds no larger number exactly.
_LARGEST_ID = 2**63
# Bits of a character of compressed RLE: value, whether more follow, sign in the last one.
_VALUE, _MORE, _SIGN = 0x1F, 0x20, 0x10
# Characters of one number there: 35 bits, more than an image has pixels.
_MOST_CHARACTERS = 7


def check_images(images: list[dict], path: str) -> None:
    """Ids, names and sizes of all images."""
    seen = set()
    for i, image in enumerate(images):
        number = image.get("id")
        where = f"{path}: image {f'number {i + 1}' if number is None else plain(number)}"
        for key in ("id", "file_name", "width", "height"):
            if image.get(key) is None:
                raise ValueError(f"{where} has no {key!r}: add it, Detectron2 needs it")
        check_id(image["id"], "id", where)
        _check_file_name(image["file_name"], where)
        size = [image["width"], image["height"]]
        if not are_numbers(size) or min(size) <= 0 or any(v != int(v) for v in size):
            raise ValueError(f"{where} has width and height {short(size)}: give its size in pixels")
        check_image_size(size[0], size[1], where)
        crowding = image.get("crowdIndex")
        if crowding is not None and not (are_numbers([crowding]) and 0 <= crowding <= 1):
            raise ValueError(f"{where} has crowdIndex {short(crowding)}: it lies from 0 to 1")
        if image["id"] in seen:
            raise ValueError(f"{where} is there twice: give each image an id of its own")
        seen.add(image["id"])
    if len({isinstance(number, str) for number in seen}) > 1:
        raise ValueError(f"{path}: some image ids are texts, others numbers: give all the same")


def leaves_folder(file_name: str) -> bool:
    """Whether a name leads out of the folder that it is in, or may do so."""
    return os.path.isabs(file_name) or ".." in file_name.replace("\\", "/").split("/")


def _check_file_name(name: object, where: str) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has file_name {short(name)}: a text is needed")
    if not is_clean(name):
        raise ValueError(f"{where} has control characters in file_name {short(name)}: rename it")
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"{where} has file_name {short(name)} of {len(name):,} characters: give at most "
            f"{_LONGEST_NAME:,}"
        )
    if leaves_folder(name):
        raise ValueError(
            f"{where} has file_name {short(name)}, which leaves the folder of the images: give a "
            "path inside it, without '..'"
        )


def check_id(number: object, key: str, where: str) -> None:
    """An id, or the id of another entry."""
    if isinstance(number, str):
        right = is_clean(number)
    else:
        right = are_numbers([number]) and abs(number) < _LARGEST_ID  # type: ignore[arg-type]
    if not right:
        raise ValueError(
            f"{where} has {key} {short(number)}: a number or a text is needed (finite, no control "
            "characters)"
        )


def check_box(box: object, where: str) -> None:
    """A person's `bbox`, which nobody may lack."""
    if box is None:
        raise ValueError(f"{where} has no 'bbox': add x, y, width, height in pixels")
    if not are_numbers(box, 4) or box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{where} has bbox {short(box)}: give four finite numbers x, y, width, height, "
            "no size negative"
        )
    if max(abs(box[0]), abs(box[1]), abs(box[0] + box[2]), abs(box[1] + box[3])) > FAR:
        raise ValueError(f"{where} has bbox {short(box)}: {TOO_FAR}")


def check_area_and_crowd(annotation: dict, where: str) -> None:
    """`area` and `iscrowd`, where the annotation has them."""
    area, crowd = annotation.get("area"), annotation.get("iscrowd")
    if area is not None and not (are_numbers([area]) and 0 <= area <= FAR**2):
        raise ValueError(f"{where} has area {short(area)}: give square pixels, or leave it out")
    if crowd not in (None, 0, 1):
        raise ValueError(f"{where} has iscrowd {short(crowd)}: give 0 (one person) or 1 (a crowd)")


def check_keypoints(annotation: dict, count: int | None, where: str) -> int | None:
    """A person's `keypoints` and `num_keypoints`; how many joints there are, else `count`.

    Args:
        annotation: of a person.
        count: of the people before, None where nobody had any.
        where: begins messages.
    """
    number = annotation.get("num_keypoints")
    if number is not None and not (are_numbers([number]) and number >= 0 and number % 1 == 0):
        raise ValueError(
            f"{where} has num_keypoints {short(number)}: give the number of labelled keypoints, "
            "or leave it out"
        )
    keypoints = annotation.get("keypoints")
    if keypoints in (None, []):
        return count
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
            f"{where} has a keypoint with v {short(wrong[0])}: give 0 (not labelled), 1 (labelled, "
            "hidden) or 2 (visible)"
        )
    # Those not labelled too: pycocotools calculates with all of them.
    if max(max(keypoints), -min(keypoints)) > FAR:
        far = max(keypoints, key=abs)
        raise ValueError(f"{where} has a keypoint at {short(far)}: {TOO_FAR}")
    return found


def check_mask(segmentation: object, size: tuple[int, int] | None, where: str) -> int:
    """The number of polygons with fewer than three points; `size` (W, H) of the image if known."""
    if isinstance(segmentation, dict):
        _check_rle(segmentation, size, where)
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
    drawn = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
    _check_outlines(drawn, size, where)
    return len(segmentation) - len(drawn)


def _check_outlines(polygons: list[list[float]], size: tuple[int, int] | None, where: str) -> None:
    points = sum(map(len, polygons)) // 2
    if points > MOST_POINTS:
        raise ValueError(
            f"{where} has polygons of {points:,} points: give at most {MOST_POINTS:,}, or an RLE"
        )
    around = math.inf if size is None else LONGEST_AROUND_IMAGE * sum(size)
    # No longer than that whatever way they go: nearly all, and at once.
    if sum(len(p) // 2 * (max(p) - min(p)) for p in polygons) <= min(around, LONGEST_OUTLINE):
        return
    corners = [np.array(p, dtype=np.float64).reshape(-1, 2) for p in polygons]
    length, limit = sum(map(outline_length, corners)), LONGEST_OUTLINE
    if length <= limit and size is not None:
        length, limit = sum(outline_length(around_image(p, size[::-1])) for p in corners), around
    if length > limit:
        raise ValueError(
            f"{where} has polygons with {length:,.0f} pixels of outline, more than {limit:,.0f}: "
            "give the outline of the person, or an RLE"
        )


def _check_rle(rle: dict, size: tuple[int, int] | None, where: str) -> None:
    mask_size, counts = rle.get("size"), rle.get("counts")
    if not are_numbers(mask_size, 2) or not isinstance(counts, list | str):
        raise ValueError(f"{where} has an RLE mask without 'size' and 'counts': add them")
    height, width = mask_size
    if size is not None and (height, width) != size[::-1]:
        raise ValueError(
            f"{where} has an RLE mask of size {short(list(mask_size))} (height, width) in an image "
            f"of {short(list(size[::-1]))}: give the mask the size of its image"
        )
    if not (isinstance(height, int) and isinstance(width, int) and min(mask_size) > 0):
        raise ValueError(
            f"{where} has an RLE mask of size {short(list(mask_size))} (height, width): give whole "
            "numbers of pixels"
        )
    runs = _runs(counts)
    # Exactly: of a mask that is cut off, pycocotools makes up the rest, or reads for ever.
    if runs is None or min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise ValueError(
            f"{where} has an RLE mask whose counts are not lengths of runs in its "
            f"{short(height)} x {short(width)} pixels: encode it anew"
        )


def _runs(counts: list | str) -> list[int] | None:
    """Lengths of runs of an RLE mask, compressed (a text) or not; None where they are none."""
    if isinstance(counts, list):
        whole = are_numbers(counts) and all(count % 1 == 0 for count in counts)
        return counts if whole else None
    if not counts.isascii():
        return None
    bits = np.frombuffer(counts.encode(), dtype=np.uint8).astype(np.int64) - ord("0")
    if not len(bits) or bits.min() < 0 or bits.max() > (_VALUE | _MORE) or bits[-1] & _MORE:
        return None
    ends = np.flatnonzero(bits & _MORE == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_CHARACTERS:
        return None
    places = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & _VALUE) << places, starts)
    runs -= np.where(bits[ends] & _SIGN, np.int64(1) << 5 * lengths, 0)
    # From the fourth on, they are differences from the last but one.
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs.tolist()


def are_numbers(values: Any, count: int | None = None) -> TypeGuard[Sequence[float]]:
    """Whether these are finite numbers as JSON has them (no true), and so many unless None."""
    try:
        right = count is None or len(values) == count
        return right and set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))
    except (TypeError, OverflowError):
        return False


def place_of(annotation: dict, place: int | None = None) -> str:
    """Words for an annotation, by its number in the file where it has no id."""
    number = annotation.get("id")
    if number is None and place is not None:
        return f"annotation number {place + 1} of image {plain(annotation.get('image_id'))}"
    return f"annotation {plain(number)} of image {plain(annotation.get('image_id'))}"
