"""Files for COCO's evaluation server, which alone knows the truth of test-dev.

Format: cocodataset.org/#format-results and #upload. One JSON called
<type>_<test set>_<algorithm>_results.json, in a zip of the same name without folders.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import defaultdict
from pathlib import Path

from mpn_d2.utils.files import replaced_when_done, write_text_atomically

# Task to what the server calls it, and to the most results of one image that it looks at.
_TYPES = {"bbox": "detections", "segm": "detections", "keypoints": "person_keypoints"}
_MOST = {"bbox": 100, "segm": 100, "keypoints": 20}
# COCO suggests tenths of a pixel for boxes, and whole pixels for keypoints: these cost AP where
# people are small, tenths do not, so keypoints have tenths too. [ours]
_DECIMALS = 1
_SCORE_DECIMALS = 7
_PACKING = zipfile.ZIP_DEFLATED
_ALGORITHM = re.compile(r"[\w.-]+", re.ASCII)
_PREFIX = re.compile(r"^(image_info|person_keypoints|instances)_")


def check_algorithm_name(name: str) -> str:
    """`name` if files may be called so.

    Raises:
        ValueError: it is empty or has other signs than letters, digits, "_", "-" and ".".
    """
    if not _ALGORITHM.fullmatch(name):
        raise ValueError(
            f"EVAL.ALGORITHM_NAME is {name!r}: it becomes part of file names, give letters, "
            "digits, _, - and . alone"
        )
    return name


def test_set_name(json_file: str | os.PathLike) -> str:
    """What COCO calls the images of a file: test-dev2017 of image_info_test-dev2017.json."""
    stem = Path(json_file).name.removesuffix(".gz").removesuffix(".json")
    return _PREFIX.sub("", stem)


def write_submission(
    folder: str | os.PathLike, task: str, rows: list[dict], test_set: str, algorithm: str
) -> str:
    """Writes the JSON and its zip, both whole or not at all.

    Args:
        folder: made where it does not exist.
        task: bbox, segm or keypoints. The server calls the first two by one name: the file of
            masks gets the algorithm <algorithm>-segm.
        rows: COCO results of people. The best of each image are written, as many as the server
            looks at, with the fields that it asks for; keypoints that were not found stay 0, 0,
            all others get the flag 1 (the server reads no flag).
        test_set: see `test_set_name`.
        algorithm: EVAL.ALGORITHM_NAME.

    Returns:
        path of the zip.

    Raises:
        ValueError: a faulty algorithm name.
    """
    algorithm = check_algorithm_name(algorithm) + ("-segm" if task == "segm" else "")
    stem = f"{_TYPES[task]}_{test_set}_{algorithm}_results"
    content = json.dumps(_for_server(task, rows), allow_nan=False, separators=(",", ":"))
    write_text_atomically(Path(folder, f"{stem}.json"), content)
    path = Path(folder, f"{stem}.zip")
    with replaced_when_done(path) as partial, zipfile.ZipFile(partial, "w", _PACKING) as file:
        file.writestr(f"{stem}.json", content)
    return str(path)


def _for_server(task: str, rows: list[dict]) -> list[dict]:
    of_image: dict[int | str, list[dict]] = defaultdict(list)
    for row in rows:
        of_image[row["image_id"]].append(row)
    kept = []
    for found in of_image.values():
        best = sorted(found, key=lambda row: -row["score"])[: _MOST[task]]
        kept += [_row_for_server(task, row) for row in best]
    return kept


def _row_for_server(task: str, row: dict) -> dict:
    if task == "keypoints":
        place = [
            (round(x, _DECIMALS), round(y, _DECIMALS), 1) if (x, y, v) != (0, 0, 0) else (0, 0, 0)
            for x, y, v in zip(*(row["keypoints"][i::3] for i in range(3)), strict=True)
        ]
        what = {"keypoints": [value for joint in place for value in joint]}
    elif task == "segm":
        what = {"segmentation": row["segmentation"]}
    else:
        what = {"bbox": [round(value, _DECIMALS) for value in row["bbox"]]}
    return {
        "image_id": row["image_id"],
        "category_id": row["category_id"],
        **what,
        "score": round(row["score"], _SCORE_DECIMALS),
    }
