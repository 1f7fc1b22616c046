"""Images held out of a training set: what choices are made on, so that test images stay unseen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from zlib import crc32

from mpn_d2.data.annotation_cache import read_json
from mpn_d2.utils.files import write_text_atomically


def hold_out(json_file: str | os.PathLike, folder: str | os.PathLike, one_in: int) -> None:
    """Writes fit.json and dev.json, two COCO files of all images of one, unless they are there.

    Which images are held out depends on their ids alone: the same for everybody.

    Args:
        json_file: COCO keypoint annotations, packed (.json.gz) or not.
        folder: of the two files, made where it does not exist.
        one_in: an image is held out with probability 1 / one_in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON.
    """
    paths = {part: Path(folder) / f"{part}.json" for part in ("fit", "dev")}
    if all(path.is_file() for path in paths.values()):
        return
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"{json_file} not found: DETECTRON2_DATASETS must name its folder")
    content = read_json(json_file)[0]
    held = {i["id"] for i in content["images"] if crc32(str(i["id"]).encode()) % one_in == 0}
    for part, path in paths.items():
        chosen = dict(content)
        for key, name in (("images", "id"), ("annotations", "image_id")):
            chosen[key] = [x for x in content[key] if (x[name] in held) == (part == "dev")]
        write_text_atomically(path, json.dumps(chosen))
