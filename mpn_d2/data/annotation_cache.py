"""Annotation files as Detectron2 and pycocotools want them (design 7.9).

Both read plain JSON and miss what they do not find. A file that is packed (.gz), or whose people
lack `area`, `iscrowd` or `num_keypoints`, is therefore read through a completed copy in
$MPN_CACHE/annotations (default: ~/.cache/mpn_d2/annotations). The copy is named after the
content of the file, so a changed file gets another one; copies may be deleted at any time.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

from mpn_d2.data.limits import read_json_bytes
from mpn_d2.structures.oks import AREA_OF_BOX
from mpn_d2.utils.files import partial_beside

_GZIP_START = b"\x1f\x8b"
# Part of the copies' names: counts up when they come to hold something else.
_VERSION = 1


def cache_folder() -> Path:
    """Where completed copies lie; need not exist."""
    root = os.environ.get("MPN_CACHE") or os.path.join("~", ".cache", "mpn_d2")
    return Path(root).expanduser() / "annotations"


def read_json(path: str | os.PathLike) -> tuple[Any, str]:
    """The content of a JSON file, packed by gzip or not, and a digest of its bytes.

    Raises:
        ValueError: it is no JSON, larger than MOST_JSON_BYTES, or the packed file is broken.
    """
    with open(path, "rb") as file:
        data = read_json_bytes(file, path)
    digest = hashlib.sha256(data).hexdigest()[:20]
    if data.startswith(_GZIP_START):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = read_json_bytes(file, path)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a broken gzip file: {error}") from error
    try:
        return json.loads(data), digest
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is not JSON: {error}") from error


def complete(content: dict, person_id: int, path: str | os.PathLike) -> bool:
    """Adds to checked COCO content, in place, what pycocotools and Detectron2 ask for.

    - people without `area` get AREA_OF_BOX of their box's (square pixels), without `iscrowd` 0,
      with keypoints but without `num_keypoints` the number of labelled ones;
    - edges of the person category (`skeleton`, counted from 1) that name no keypoint go.

    Returns:
        whether a copy is needed, as something was missing or the file at `path` is packed.
    """
    changed = is_packed(path)
    for person in content.get("annotations", ()):
        if person["category_id"] != person_id:
            continue
        if person.get("area") is None:
            person["area"] = AREA_OF_BOX * person["bbox"][2] * person["bbox"][3]
            changed = True
        if person.get("iscrowd") is None:
            person["iscrowd"] = 0
            changed = True
        if person.get("keypoints") and person.get("num_keypoints") is None:
            person["num_keypoints"] = sum(v > 0 for v in person["keypoints"][2::3])
            changed = True
    for category in content["categories"]:
        edges, names = category.get("skeleton"), category.get("keypoints")
        if category["id"] == person_id and isinstance(edges, list) and isinstance(names, list):
            ends = range(1, len(names) + 1)
            kept = [e for e in edges if isinstance(e, list) and all(end in ends for end in e)]
            changed = changed or len(kept) < len(edges)
            category["skeleton"] = kept
    return changed


def is_packed(path: str | os.PathLike) -> bool:
    """Whether a file is packed by gzip."""
    with open(path, "rb") as file:
        return file.read(len(_GZIP_START)) == _GZIP_START


def store_copy(content: dict, path: str | os.PathLike, digest: str) -> str:
    """Writes the completed `content` of the file at `path` to the cache unless it is there.

    Several processes may do so at once; a reader never sees half a file.

    Returns:
        the path of the copy.

    Raises:
        OSError: the cache cannot be written; the message names the remedy.
    """
    folder = cache_folder()
    stem = Path(path).name.removesuffix(".gz").removesuffix(".json")
    target = folder / f"{stem}-{digest}-v{_VERSION}.json"
    if target.is_file():
        return str(target)
    partial = partial_beside(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # Not json.dump, which is several times slower.
            partial.write_text(json.dumps(content), encoding="utf-8")
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"the annotation cache {folder} cannot be written ({error.strerror}): set MPN_CACHE "
            "to a folder that can"
        ) from error
    return str(target)
