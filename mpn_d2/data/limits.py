"""The largest inputs that are read; docs/limits.md has all limits, and the memory that they take.

Checked before memory is taken: by an image's header, an annotation's numbers, a file's size.
"""

from __future__ import annotations

import gzip
import math
import os
from typing import IO

from PIL import Image

# Pixels of an image's longer side: what a JPEG can have.
MOST_SIDE = 65_535
# People of one image of an annotation file, crowds included: training compares each with each
# anchor (a number per pair; 200,000 anchors in an image of 1333 x 800 pixels).
MOST_PEOPLE = 1_000
# Pixels that boxes and polygons may reach; what is further is a mistake, and pycocotools would walk
# all the way.
FAR = 1e5
TOO_FAR = f"it must lie within {FAR:,.0f} pixels: give the pixels of its image"
# Bytes of annotations or results, unpacked: four times those of COCO train2017's instances.
MOST_JSON_BYTES = 2 * 2**30
_CHUNK = 2**24


def most_pixels() -> float:
    """Pixels of an image: Pillow's limit, which a program may move (Image.MAX_IMAGE_PIXELS)."""
    limit = Image.MAX_IMAGE_PIXELS
    # Up to its limit Pillow is silent, up to twice that it warns.
    return math.inf if limit is None else 2 * limit


def check_image_size(width: float, height: float, where: str) -> None:
    """Raises a ValueError that begins with `where` for an image that is larger than the limits."""
    if max(width, height) > MOST_SIDE:
        raise ValueError(f"{where} has a side of more than {MOST_SIDE:,} pixels: reduce or cut it")
    if width * height > most_pixels():
        raise ValueError(f"{where} is larger than {most_pixels() / 1e6:.0f} megapixels: reduce it")


def count_person(per_image: dict[int, int], image_id: int, path: str | os.PathLike) -> None:
    """Adds one to an image's people; ValueError, naming the file, where these are too many."""
    per_image[image_id] = per_image.get(image_id, 0) + 1
    if per_image[image_id] > MOST_PEOPLE:
        raise ValueError(
            f"{path}: image {image_id} has more than {MOST_PEOPLE:,} people: cut it into several, "
            "or cover a crowd by one annotation with iscrowd 1"
        )


def read_json_bytes(file: IO[bytes] | gzip.GzipFile, path: str | os.PathLike) -> bytearray:
    """All bytes of an open file, which may be packed so well that no memory is enough for them.

    Raises:
        ValueError: there are more than MOST_JSON_BYTES; `path` is named.
    """
    data = bytearray()
    while chunk := file.read(_CHUNK):
        data += chunk
        if len(data) > MOST_JSON_BYTES:
            raise ValueError(
                f"{path} holds more than {MOST_JSON_BYTES:,} bytes of JSON: split it into "
                "several files"
            )
    return data
