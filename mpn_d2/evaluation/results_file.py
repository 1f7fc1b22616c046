"""People of a COCO results file: read, checked, and scored without a model.

A row is a person: `image_id`, `category_id`, `score`, and `keypoints` (K times x, y, v) or `bbox`
(x, y, width, height) or both. Where a row has `pose_score` too, as those of tools/demo.py, `score`
is the box's and `pose_score` the pose's; else `score` rates both.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from mpn_d2.data.annotation_cache import read_json
from mpn_d2.data.coco_checks import are_numbers, check_id
from mpn_d2.data.coco_file import CocoSummary, check_coco_file
from mpn_d2.data.datasets import register_people
from mpn_d2.data.limits import FAR, TOO_FAR
from mpn_d2.data.shown import short
from mpn_d2.evaluation.pose_evaluator import PoseEvaluator
from mpn_d2.structures.skeleton import Skeleton

# Of a results file; rows have their figures under the same keys.
TASKS = ("bbox", "keypoints")
# The name that the annotations are registered under.
SCORED_FILE = "annotations-of-results"
_UNLISTED = "rows are of images that the annotations do not list (left out)"
_OTHERS = "rows are of other categories than people (left out)"
_ONE_SCORE = (
    "rows have one score for box and pose: boxes are those of poses, rated as these (a model's own "
    "boxes are in its coco_instances_results.json)"
)
_NO_JOINT = "rows have a box and no keypoint: no poses (left out of keypoints)"


@dataclass
class CocoResults:
    """Rows of people, as pycocotools takes them, by what is scored with them.

    Attributes:
        rows: "keypoints" and "bbox", each rated by its own `score`; a task that no row is for is
            missing, unless the file holds no row at all.
        notes: what was left out or means something special, to how often.
    """

    rows: dict[str, list[dict]]
    notes: Counter[str] = field(default_factory=Counter)


def read_coco_results(
    path: str | os.PathLike, images: Container, person_id: int, num_keypoints: int
) -> CocoResults:
    """Reads a results file, packed by gzip or not.

    Args:
        path: of the file.
        images: ids of the annotated images.
        person_id: `category_id` of people.
        num_keypoints: K.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no list of such rows; one line with file and row.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"results file {path} not found")
    content, _ = read_json(path)
    if not isinstance(content, list):
        raise ValueError(
            f"{path}: a list of results is needed, a row a person; this is "
            f"{'an object (annotations?)' if isinstance(content, dict) else 'something else'}"
        )
    found = CocoResults({task: [] for task in TASKS})
    for place, row in enumerate(content):
        _check_row(row, num_keypoints, f"{path}: row {place}")
        if row["category_id"] != person_id:
            found.notes[_OTHERS] += 1
        elif row["image_id"] not in images:
            found.notes[_UNLISTED] += 1
        else:
            _add(found, row)
    if content:
        has = {task for task in TASKS if any(row.get(task) for row in content)}
        found.rows = {task: rows for task, rows in found.rows.items() if task in has}
        if has == set(TASKS) and not any("pose_score" in row for row in content):
            found.notes[_ONE_SCORE] = len(content)
    if not all("bbox" in row for row in found.rows.get("keypoints", ())):
        # pycocotools takes the size of all poses either from boxes or from keypoints.
        for row in found.rows["keypoints"]:
            row.pop("bbox", None)
    return found


def load_results(
    results: str | os.PathLike,
    annotations: str | os.PathLike,
    skeleton: Skeleton,
    tasks: Sequence[str] | None = None,
    *,
    overlap_edges: Sequence[float] = (),
) -> tuple[PoseEvaluator, CocoResults]:
    """An evaluator of an annotation file and what it is to score, of `tasks` alone.

    Args:
        results: COCO results.
        annotations: COCO file of people, packed or not; no images are needed.
        skeleton: of both.
        tasks: of bbox and keypoints; None: what the results hold.
        overlap_edges: see PoseEvaluator.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: one is faulty, they have other keypoints than the skeleton, or the results have
            nothing for a task; one line.
    """
    summary = check_annotations(annotations, skeleton)
    register_people(
        SCORED_FILE, json_file=os.fspath(annotations), image_root=None, skeleton=skeleton
    )
    evaluator = PoseEvaluator(
        SCORED_FILE,
        tasks=TASKS,
        sigmas=skeleton.sigmas,
        distributed=False,
        overlap_edges=overlap_edges,
    )
    found = read_coco_results(
        results, evaluator.truth.imgs, summary.person_id, skeleton.num_keypoints
    )
    for task in tasks or ():
        if task not in found.rows:
            raise ValueError(f"{results}: no row has {task!r}, so it cannot be scored")
    found.rows = {task: rows for task, rows in found.rows.items() if tasks is None or task in tasks}
    return evaluator, found


def check_annotations(path: str | os.PathLike, skeleton: Skeleton) -> CocoSummary:
    """`check_coco_file`, with words about --skeleton where it does not fit."""
    summary = check_coco_file(path)
    if summary.keypoint_count not in (None, skeleton.num_keypoints):
        raise ValueError(
            f"{path}: people have {summary.keypoint_count} keypoints, skeleton {skeleton.name!r} "
            f"has {skeleton.num_keypoints}: give --skeleton the name or file of theirs"
        )
    return check_coco_file(path, skeleton.keypoint_names)


def _add(found: CocoResults, row: dict) -> None:
    """Files a checked row under what it is scored for."""
    common = {key: row[key] for key in ("image_id", "category_id", "score")}
    box, keypoints = row.get("bbox"), row.get("keypoints")
    if box:
        common["bbox"] = list(box)
        found.rows["bbox"].append(dict(common))
    if keypoints:
        if "pose_score" in row and not any(keypoints):
            found.notes[_NO_JOINT] += 1
            return
        score = row.get("pose_score", row["score"])
        found.rows["keypoints"].append({**common, "keypoints": list(keypoints), "score": score})


def _check_row(row: object, num_keypoints: int, where: str) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f'{where} is no {{"image_id", "category_id", "score", "keypoints"}}')
    for key in ("image_id", "category_id", "score"):
        if row.get(key) is None:
            raise ValueError(f"{where} has no {key!r}")
    for key in ("image_id", "category_id"):
        check_id(row[key], key, where)
    for key in ("score", "pose_score"):
        if key in row and not are_numbers([row[key]]):
            raise ValueError(f"{where} has {key} {short(row[key])}: a finite number is needed")
    box, keypoints = row.get("bbox"), row.get("keypoints")
    if not box and not keypoints:
        raise ValueError(f"{where} has neither 'keypoints' nor 'bbox'")
    if box:
        _check_box(box, where)
    if keypoints:
        _check_keypoints(keypoints, num_keypoints, where)


def _check_box(box: object, where: str) -> None:
    if not are_numbers(box, 4) or min(box[2:]) < 0:
        raise ValueError(
            f"{where} has bbox {short(box)}: four finite numbers x, y, width, height are needed, "
            "no size negative"
        )
    if max(map(abs, box)) > FAR:
        raise ValueError(f"{where} has bbox {short(box)}: {TOO_FAR}")


def _check_keypoints(keypoints: object, num_keypoints: int, where: str) -> None:
    if not are_numbers(keypoints):
        raise ValueError(f"{where} has keypoints that are no list of finite numbers x, y, v, ...")
    if len(keypoints) != 3 * num_keypoints:
        raise ValueError(
            f"{where} has {len(keypoints) / 3:g} keypoints, expected {num_keypoints}: give "
            "--skeleton the name or file of theirs"
        )
    # v too: pycocotools reads none of it, but NumPy makes objects of what no float can hold.
    far = max(keypoints, key=abs)
    if abs(far) > FAR:
        raise ValueError(f"{where} has a keypoint with {short(far)}: {TOO_FAR}")
