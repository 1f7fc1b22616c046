"""Pose datasets: registration of the bundled sample, and loading with clear errors.

Detectron2's own names (keypoints_coco_2017_train ...) work as they are; it reads the folder that
holds them from DETECTRON2_DATASETS when it is imported.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.structures import BoxMode

from mpn_d2.data.coco_file import CocoSummary, check_coco_file, person_class
from mpn_d2.structures.skeleton import Skeleton, get_skeleton

_SAMPLE_PREFIX = "coco_sample_"
_SAMPLE_DIR = Path(__file__).resolve().parents[2] / "datasets" / "coco_sample"


def register_pose_datasets(root: str | os.PathLike | None = None) -> None:
    """Registers the bundled photographs: `coco_sample_train`, `_val`, and two of train, `_two`.

    May be called again; the sample is then registered anew where `root` differs.

    Args:
        root: folder with `train`, `val` and `annotations`; None for datasets/coco_sample of this
            repository.
    """
    root = _SAMPLE_DIR if root is None else Path(root)
    for split, folder in (("train", "train"), ("val", "val"), ("two", "train")):
        _register_coco_json(
            f"{_SAMPLE_PREFIX}{split}",
            json_file=str(root / "annotations" / f"person_keypoints_{split}.json"),
            image_root=str(root / folder),
            skeleton=get_skeleton("coco"),
        )


def load_pose_dicts(
    names: str | Sequence[str],
    *,
    is_train: bool,
    min_keypoints_per_image: int = 0,
    keep_empty: bool = False,
) -> list[dict]:
    """Loads the people of registered datasets in Detectron2's format, one dict an image.

    People are the annotations of the category called person, or of the only one; they get
    `category_id` 0, and annotations of other categories are left out. Without keypoints (none or
    null in the file) they have no `keypoints`.

    People that Detectron2's COCO loader drops (all polygons under three points) are put back,
    with box and keypoints, without `segmentation`: the ignore region and the detector must see
    them (design 4.7).

    Args:
        names: registered dataset names.
        is_train: leave out images as the next two arguments say, and ask for keypoints.
        min_keypoints_per_image: images with fewer labelled keypoints are left out.
        keep_empty: keep images without any non-crowd person.

    Raises:
        ValueError: an unknown name, an unreadable, empty or faulty file (see `check_coco_file`),
            no category that must be the person's, no image or keypoint to train on.
        FileNotFoundError: the annotation file or image folder of a dataset is missing.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("no dataset named: set DATASETS.TRAIN or DATASETS.TEST")
    dicts: list[dict] = []
    for name in names:
        check_dataset(name)
        dicts += _load_one(name)
    # Not thing_classes: whatever else the files hold, people alone were loaded.
    if all(hasattr(MetadataCatalog.get(name), "keypoint_names") for name in names):
        check_metadata_consistency("keypoint_names", names)
    if not is_train:
        return dicts

    if not any(has_keypoints(a) for record in dicts for a in record.get("annotations", [])):
        raise ValueError(
            f"dataset {', '.join(names)}: no keypoints annotated, nothing to train on "
            "(COCO keypoints are in person_keypoints_*.json)"
        )
    if not keep_empty:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if min_keypoints_per_image > 0:
        dicts = filter_images_with_few_keypoints(dicts, min_keypoints_per_image)
    if not dicts:
        raise ValueError(
            f"dataset {', '.join(names)}: no image has {min_keypoints_per_image} labelled "
            "keypoints: lower INPUT.MIN_KEYPOINTS_PER_IMAGE"
        )
    return dicts


def check_dataset(name: str) -> None:
    """Raises one clear line unless `name` is registered and its files are there.

    Raises:
        ValueError: unknown name; near names are listed.
        FileNotFoundError: the annotation file or image folder is missing.
    """
    if name not in DatasetCatalog.list():
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see DatasetCatalog.list()"
        raise ValueError(f"dataset {name!r} is not registered; {hint}")
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    for what, path, found in (
        ("annotation file", json_file, json_file is None or os.path.isfile(json_file)),
        ("image folder", image_root, image_root is None or os.path.isdir(image_root)),
    ):
        if not found and name.startswith(_SAMPLE_PREFIX):
            raise FileNotFoundError(
                f"dataset {name!r}: {what} {path} not found; run from the repository, or call "
                "register_pose_datasets(root)"
            )
        if not found:
            root = os.environ.get("DETECTRON2_DATASETS", "")
            raise FileNotFoundError(
                f"dataset {name!r}: {what} {path} not found; DETECTRON2_DATASETS={root!r} must "
                "name the folder of the datasets (COCO: coco/annotations, coco/train2017 ...)"
            )


def has_keypoints(annotation: dict) -> bool:
    """Whether any keypoint of the annotation is labelled (v > 0)."""
    keypoints = annotation.get("keypoints")
    return keypoints is not None and any(v > 0 for v in keypoints[2::3])


def _register_coco_json(name: str, json_file: str, image_root: str, skeleton: Skeleton) -> None:
    # register_coco_instances asserts on a known name.
    if name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if (metadata.get("json_file"), metadata.get("image_root")) == (json_file, image_root):
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    metadata = {
        "thing_classes": ["person"],
        "keypoint_names": skeleton.keypoint_names,
        "keypoint_flip_map": skeleton.keypoint_flip_map,
        "keypoint_connection_rules": skeleton.keypoint_connection_rules,
    }
    register_coco_instances(name, metadata, json_file, image_root)


def _load_one(name: str) -> list[dict]:
    metadata = MetadataCatalog.get(name)
    json_file, summary = metadata.get("json_file"), None
    if json_file is not None:
        keypoint_names = metadata.get("keypoint_names")
        summary = check_coco_file(json_file, len(keypoint_names) if keypoint_names else None)
    try:
        dicts = get_detection_dataset_dicts(name, filter_empty=False)
    except AssertionError as error:  # of Detectron2's: metadata that differ, "ignore", no image
        raise ValueError(f"dataset {name!r}: {' '.join(str(error).split())}") from error
    person = _class_of_people(name, summary)
    dicts = [_with_people_alone(record, person) for record in dicts]
    if summary is not None:
        _put_back_dropped(dicts, summary)
    return dicts


def _class_of_people(name: str, summary: CocoSummary | None) -> int:
    """`category_id` of people in the dicts of a loaded dataset."""
    metadata = MetadataCatalog.get(name)
    to_class = metadata.get("thing_dataset_id_to_contiguous_id")
    if summary is not None and to_class:
        return to_class[summary.person_id]
    classes = metadata.get("thing_classes")
    return person_class(classes, f"dataset {name!r}") if classes else 0


def _with_people_alone(record: dict, person: int) -> dict:
    # Copies: a dataset function may hand out the same dicts each time.
    people = [
        {**a, "category_id": 0} for a in record.get("annotations", []) if a["category_id"] == person
    ]
    for annotation in people:
        keypoints = annotation.get("keypoints")
        if keypoints is None or len(keypoints) == 0:
            annotation.pop("keypoints", None)
    return {**record, "annotations": people}


def _put_back_dropped(dicts: list[dict], summary: CocoSummary) -> None:
    """Adds to `dicts`, in place, the people that the COCO loader left out."""
    for record in dicts:
        image_id = record["image_id"]
        if len(record["annotations"]) == summary.people_per_image.get(image_id, 0):
            continue
        for annotation in summary.dropped.get(image_id, ()):
            person = {
                "iscrowd": annotation.get("iscrowd", 0),
                "bbox": list(annotation["bbox"]),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
            }
            if annotation.get("keypoints"):
                # Integers are read here: pixel index to continuous (design 4.1).
                person["keypoints"] = [
                    value if i % 3 == 2 else value + 0.5
                    for i, value in enumerate(annotation["keypoints"])
                ]
            record["annotations"].append(person)
