"""Drawn people as datasets on disk: PNG images; exact keypoints, masks and boxes as COCO JSON."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util

from mpn_d2.data.drawn_coco import Layout, load_layouts
from mpn_d2.data.drawn_picture import DRAWN_DATASETS, PERSON_CATEGORY, SPLITS, draw_image
from mpn_d2.data.drawn_pose import SKELETON
from mpn_d2.utils.files import partial_beside
from mpn_d2.utils.parents import end_with_parent

logger = logging.getLogger(__name__)

_INFO = "drawn"  # key of the parameters in the JSON's "info"


def drawn_files() -> dict[str, dict[str, tuple[str, str]]]:
    """Dataset name to split to annotation file and image folder, under the datasets' folder."""
    return {
        name: {split: (f"{name}/annotations/{split}.json", f"{name}/{split}") for split in SPLITS}
        for name in DRAWN_DATASETS
    }


def write_dataset(
    name: str,
    split: str,
    output: str | os.PathLike,
    *,
    count: int | None = None,
    seed: int | None = None,
    workers: int = 1,
    layouts: str | os.PathLike | None = None,
) -> tuple[dict, bool]:
    """Draws a split into `output`/<name>/<split> and .../annotations/<split>.json.

    The JSON comes last and names the parameters: where it is there with the same ones and all its
    images, nothing is done, unless the first image, drawn again, differs: other code drew them.

    Args:
        name: key of DRAWN_DATASETS.
        split: "train" or "test".
        output: folder of the datasets.
        count: number of images, None for the version's.
        seed: None for the version's.
        workers: processes.
        layouts: folder of COCO annotations, for a dataset of COCO's layouts; None for the bundled
            ones. With more images than layouts these are drawn again, with other people.

    Returns:
        the COCO content, and whether anything was drawn.

    Raises:
        ValueError: unknown dataset or split, or a count below 1.
    """
    if name not in DRAWN_DATASETS:
        raise ValueError(f"unknown drawn dataset {name!r}; known: {', '.join(DRAWN_DATASETS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    scenes, named, standard = _scenes(name, split, layouts)
    count = standard if count is None else count
    seed = DRAWN_DATASETS[name].seed if seed is None else seed
    if count < 1 or workers < 1:
        raise ValueError(f"{count} images by {workers} processes: both must be 1 or more")
    folder = Path(output) / name / split
    json_file = Path(output) / name / "annotations" / f"{split}.json"
    parameters = {"dataset": name, "split": split, **named, "images": count, "seed": seed}
    tasks = [
        _Task(name, split, i, seed, str(folder), scenes[i % len(scenes)]) for i in range(count)
    ]
    content = _complete(json_file, parameters, tasks)
    if content is not None:
        return content, False

    json_file.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png*"):
        stale.unlink()
    content = _content(parameters, _map(tasks, workers))
    json_file.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(json_file, json.dumps(content).encode())
    return content, True


def _scenes(
    name: str, split: str, folder: str | os.PathLike | None
) -> tuple[list[Layout] | list[None], dict[str, str], int]:
    """What to draw in turn, the parameter that names it, and how many images are the version's."""
    dataset = DRAWN_DATASETS[name]
    standard = dataset.counts[split]
    if dataset.sample_people is None:
        scenes, named = load_layouts(split, folder)
        # For testing each layout once: a few more pictures of the same poses measure nothing new.
        standard = min(standard, len(scenes)) if split == "test" else standard
        return scenes, {"layouts": named}, standard
    if folder is not None:
        raise ValueError(f"{name} is not drawn from layouts: leave out --layouts")
    return [None], {}, standard


@dataclass(frozen=True)
class _Task:
    name: str
    split: str
    index: int
    seed: int
    folder: str
    layout: Layout | None

    @property
    def file_name(self) -> str:
        return f"{self.index + 1:06d}.png"

    def draw(self) -> tuple[np.ndarray, dict, list[dict]]:
        """The picture, its COCO image entry and annotations."""
        image, people = draw_image(self.name, self.split, self.index, self.seed, self.layout)
        entry = {"id": self.index + 1, "file_name": self.file_name}
        if self.layout is not None:
            entry["coco_image_id"] = self.layout.image_id
        return image, {**entry, "height": image.shape[0], "width": image.shape[1]}, people


def _draw_file(task: _Task) -> tuple[dict, list[dict]]:
    """Writes one PNG; its COCO image entry and annotations."""
    image, entry, people = task.draw()
    path = Path(task.folder) / task.file_name
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise ValueError(f"image {path} cannot be encoded as PNG")
    _write_whole(path, data.tobytes())
    return entry, people


def _write_whole(path: Path, content: bytes) -> None:
    """A file, whole or not at all; an OSError names it."""
    partial = partial_beside(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _map(tasks: list[_Task], workers: int) -> Iterator[tuple[dict, list[dict]]]:
    if workers == 1:
        yield from map(_draw_file, tasks)
        return
    # Not forked: a process that holds threads (torch, OpenCV) may hang in its copy. Not
    # multiprocessing's pool, which waits for ever for the work of a process that was killed.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    try:
        yield from pool.map(_draw_file, tasks, chunksize=16)
    finally:
        pool.shutdown(cancel_futures=True)


def _content(parameters: dict, drawn: Iterator[tuple[dict, list[dict]]]) -> dict:
    """COCO content of image entries and their annotations."""
    images: list[dict] = []
    annotations: list[dict] = []
    for image, people in drawn:
        images.append(image)
        for person in people:
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **person})
    return {
        "info": {"description": "drawn people of mpn_d2", _INFO: parameters},
        "images": images,
        "annotations": annotations,
        "categories": [
            {
                "id": PERSON_CATEGORY,
                "name": "person",
                "supercategory": "person",
                "keypoints": list(SKELETON.keypoint_names),
                "skeleton": [[a + 1, b + 1] for a, b in SKELETON.edge_indices],
            }
        ],
    }


def _complete(json_file: Path, parameters: dict, tasks: list[_Task]) -> dict | None:
    """The content of a finished dataset with these parameters, None where it must be drawn."""
    folder = Path(tasks[0].folder)
    names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
        if content["info"][_INFO] != parameters or len(content["images"]) != len(tasks):
            return None
        if not all(image["file_name"] in names for image in content["images"]):
            return None
        is_ours = _is_drawn_by_this_code(content, tasks[0])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # damaged
        return None
    if not is_ours:
        logger.warning(
            "%s: image %s or its annotations are not what this code draws: drawing all again",
            json_file,
            tasks[0].file_name,
        )
    return content if is_ours else None


def _is_drawn_by_this_code(content: dict, task: _Task) -> bool:
    """Whether the file and the annotations of one image are what the task draws."""
    image, entry, people = task.draw()
    stored = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
    stored = [{k: v for k, v in a.items() if k not in ("id", "image_id")} for a in stored]
    # None where the file is no image.
    pixels = cv2.imread(str(Path(task.folder) / task.file_name), cv2.IMREAD_UNCHANGED)
    return (
        content["images"][task.index] == entry
        and stored == json.loads(json.dumps(people))
        and pixels is not None
        and np.array_equal(pixels, image)
    )


def measure_difficulty(content: dict) -> dict[str, float]:
    """How hard the pictures are, from COCO content that `write_dataset` made.

    Returns:
        `images`, `people` (annotations), `mean_people` an image, `most_people`; of the people's
        outlines `min_height`, `max_height` in pixels; shares of people: `overlapping` (box IoU of
        0.2 or more with another's), `cut_or_covered` (5 % or more of the outline outside of the
        image, or covered), `unannotated` (no keypoints); `mean_largest_iou` of the boxes.
    """
    per_image: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        per_image[annotation["image_id"]].append(annotation)
    largest, cut, heights = [], [], []
    for people in per_image.values():
        boxes = np.array([p["bbox"] for p in people], dtype=np.float64).reshape(-1, 4)
        ious = mask_util.iou(boxes, boxes, [0] * len(boxes)) if len(boxes) else np.zeros((0, 0))
        ious = np.asarray(ious) * (1 - np.eye(len(boxes)))
        for i, person in enumerate(people):
            if "figure" in person:
                figure = person["figure"]
                seen = mask_util.area(person["segmentation"])
                cut.append(seen <= 0.95 * figure["pixels"])
                heights.append(figure["height"])
                largest.append(float(ious[i].max()))
    counts = [len(people) for people in per_image.values()]
    unknown = [a["num_keypoints"] == 0 for a in content["annotations"]]
    return {
        "images": len(per_image),
        "people": len(content["annotations"]),
        "mean_people": float(np.mean(counts)),
        "most_people": max(counts),
        "min_height": min(heights),
        "max_height": max(heights),
        "overlapping": float(np.mean(np.array(largest) >= 0.2)),
        "cut_or_covered": float(np.mean(cut)),
        "unannotated": float(np.mean(unknown)),
        "mean_largest_iou": float(np.mean(largest)),
    }
