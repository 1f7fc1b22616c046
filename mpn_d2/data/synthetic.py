"""Drawn people as datasets: images with exact keypoints, masks and boxes as COCO JSON.

Each image is a function of (dataset, split, seed, index) alone: the same on every machine, in any
order, by any number of processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util

from mpn_d2.data.drawn_coco import (
    TEST_IMAGES,
    Layout,
    cover_hidden_joints,
    joints_of,
    load_layouts,
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
_INFO = "drawn"  # key of the parameters in the JSON's "info"


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


def drawn_files() -> dict[str, dict[str, tuple[str, str]]]:
    """Dataset name to split to annotation file and image folder, under the datasets' folder."""
    return {
        name: {split: (f"{name}/annotations/{split}.json", f"{name}/{split}") for split in SPLITS}
        for name in DRAWN_DATASETS
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


def _annotation(mask: np.ndarray, keypoints: list[float], person: Person | None) -> dict:
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


@dataclass(frozen=True)
class _Task:
    name: str
    split: str
    index: int
    seed: int
    folder: str
    layout: Layout | None


def _draw_file(task: _Task) -> tuple[dict, list[dict]]:
    """Writes one PNG; its COCO image entry and annotations."""
    image, annotations = draw_image(task.name, task.split, task.index, task.seed, task.layout)
    number = task.index + 1
    file_name = f"{number:06d}.png"
    path = os.path.join(task.folder, file_name)
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise ValueError(f"image {path} cannot be encoded as PNG")
    Path(path).write_bytes(data.tobytes())
    entry = {"id": number, "file_name": file_name}
    if task.layout is not None:
        entry["coco_image_id"] = task.layout.image_id
    return {**entry, "height": image.shape[0], "width": image.shape[1]}, annotations


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
    images, nothing is done.

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
    dataset = DRAWN_DATASETS[name]
    scenes: list[Layout] | list[None] = [None]
    parameters: dict[str, str | int] = {"dataset": name, "split": split}
    standard = dataset.counts[split]
    if dataset.sample_people is None:
        scenes, parameters["layouts"] = load_layouts(split, layouts)
        # For testing each layout once: a few more pictures of the same poses measure nothing new.
        standard = min(standard, len(scenes)) if split == "test" else standard
    elif layouts is not None:
        raise ValueError(f"{name} is not drawn from layouts: leave out --layouts")
    count = standard if count is None else count
    seed = dataset.seed if seed is None else seed
    if count < 1 or workers < 1:
        raise ValueError(f"{count} images by {workers} processes: both must be 1 or more")
    folder = Path(output) / name / split
    json_file = Path(output) / name / "annotations" / f"{split}.json"
    parameters.update(images=count, seed=seed)
    content = _complete(json_file, folder, parameters)
    if content is not None:
        return content, False

    json_file.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    tasks = [
        _Task(name, split, i, seed, str(folder), scenes[i % len(scenes)]) for i in range(count)
    ]
    images, annotations = [], []
    for image, people in _map(tasks, workers):
        images.append(image)
        for person in people:
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **person})
    content = {
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
    json_file.parent.mkdir(parents=True, exist_ok=True)
    partial = json_file.with_name(f"{json_file.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, json_file)  # whole or not at all
    return content, True


def _map(tasks: list[_Task], workers: int) -> Iterator[tuple[dict, list[dict]]]:
    if workers == 1:
        yield from map(_draw_file, tasks)
        return
    # Not forked: a process that holds threads (torch, OpenCV) may hang in its copy.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_draw_file, tasks, chunksize=16)


def _complete(json_file: Path, folder: Path, parameters: dict) -> dict | None:
    """The content of a finished dataset with these parameters, None where it must be drawn."""
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if content.get("info", {}).get(_INFO) != parameters:
        return None
    names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    return content if all(image["file_name"] in names for image in content["images"]) else None


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
