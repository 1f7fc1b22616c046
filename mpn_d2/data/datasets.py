"""Pose datasets: registration by name, and loading with clear errors.

Detectron2's own names (keypoints_coco_2017_train ...) work as they are; it reads the folder that
holds them from DETECTRON2_DATASETS when it is imported. Datasets that a config names:
`mpn_d2.data.own_datasets`.
"""

from __future__ import annotations

import difflib
import logging
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
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.structures import BoxMode

from mpn_d2.data.coco_file import CocoSummary, check_coco_file, person_class
from mpn_d2.data.synthetic import drawn_files
from mpn_d2.data.voc import register_voc_people
from mpn_d2.structures.skeleton import Skeleton, get_skeleton

logger = logging.getLogger(__name__)

_SAMPLE_DIR = Path(__file__).resolve().parents[2] / "datasets" / "coco_sample"


def _annotation_files(folder: str, split: str) -> tuple[str, str]:
    """COCO's layout, packed or not."""
    file = f"{folder}/annotations/person_keypoints_{split}.json"
    return file, f"{file}.gz"


# Name -> skeleton, image folder, annotation file in the order of preference: the authors' layout,
# then mmpose's. All under DETECTRON2_DATASETS.
_PUBLIC = {
    **{
        f"crowdpose_{split}": (
            "crowdpose",
            "crowdpose/images",
            (
                f"crowdpose/json/crowdpose_{split}.json",
                f"crowdpose/annotations/mmpose_crowdpose_{split}.json",
            ),
        )
        for split in ("train", "val", "trainval", "test")
    },
    **{
        f"ochuman_{split}": (
            "coco",
            "OCHuman/images",
            (
                f"OCHuman/ochuman_coco_format_{split}_range_0.00_1.00.json",
                f"ochuman/annotations/ochuman_coco_format_{split}_range_0.00_1.00.json",
            ),
        )
        for split in ("val", "test")
    },
    # People without photographs, for the assembly.
    **{
        f"{folder}_{split}": ("coco", None, _annotation_files(folder, split))
        for folder, splits in (
            ("coco_poses", ("train", "val")),
            ("coco_poses_full", ("train2017", "val2017_half")),
        )
        for split in splits
    },
}


def register_pose_datasets(root: str | os.PathLike | None = None) -> None:
    """Registers what the package knows by name; reads no file.

    - the bundled photographs: `coco_sample_train`, `_val`, and two of train, `_two`;
    - drawn people, `drawn-v1-train`, `-test` and so on, which tools/make_synthetic.py writes;
    - CrowdPose (`crowdpose_train`, `_val`, `_trainval`, `_test`; 14 keypoints) and OCHuman
      (`ochuman_val`, `_test`; COCO's keypoints) in the folder DETECTRON2_DATASETS (default:
      datasets);
    - annotations without images, in the same folder: `coco_poses_train`, `_val` and
      `coco_poses_full_train2017`, `_val2017_half`;
    - masks of people without boxes or keypoints, in the same folder: PASCAL VOC 2012,
      `voc_2012_person_train`, `_val`, `_trainval`, `_test` (mpn_d2/data/voc.py).

    May be called again; what lies elsewhere now is then registered anew.

    Args:
        root: folder of the photographs with `train`, `val` and `annotations`; None for
            datasets/coco_sample of this repository.
    """
    root = _SAMPLE_DIR if root is None else Path(root)
    for split, folder in (("train", "train"), ("val", "val"), ("two", "train")):
        register_people(
            f"coco_sample_{split}",
            json_file=str(root / "annotations" / f"person_keypoints_{split}.json"),
            image_root=str(root / folder),
            skeleton=get_skeleton("coco"),
            remedy="run from the repository, or call register_pose_datasets(root)",
        )
    for name, (skeleton, images, files) in _PUBLIC.items():
        found = [file for file in map(_in_datasets, files) if os.path.isfile(file)]
        json_file = found[0] if found else _in_datasets(files[0])
        image_root = None
        if images is not None:
            folders = [_in_datasets(images), os.path.join(Path(json_file).parents[1], "images")]
            image_root = next(filter(os.path.isdir, folders), folders[0])
        register_people(
            name, json_file=json_file, image_root=image_root, skeleton=get_skeleton(skeleton)
        )
    _register_drawn()
    register_voc_people(_in_datasets(""))


def register_people(
    name: str,
    *,
    json_file: str,
    image_root: str | None,
    skeleton: Skeleton,
    remedy: str | None = None,
) -> None:
    """Registers people of a COCO JSON, packed (.json.gz) or not, in Detectron2's catalogs.

    A name that is registered already comes to mean this dataset.

    Args:
        name: of the dataset.
        json_file: annotations; read when the dataset is loaded.
        image_root: folder of the images; None: there are none, which is enough for the assembly.
        skeleton: of the keypoints.
        remedy: what the message says when a file is missing; None: about DETECTRON2_DATASETS.
    """
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: _load_coco(name, json_file, image_root or ""))
    metadata = {
        "json_file": json_file,
        "evaluator_type": "coco",
        "thing_classes": ["person"],
        "image_root": image_root or "",
        **skeleton.to_metadata(),
    }
    if remedy is not None:
        metadata["remedy"] = remedy
    MetadataCatalog.get(name).set(**metadata)


def load_pose_dicts(
    names: str | Sequence[str],
    *,
    is_train: bool,
    min_keypoints_per_image: int = 0,
    keep_empty: bool = False,
    need_images: bool = True,
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
        need_images: False: the images are not read (the assembly trains on annotations alone), and
            their folder need not be there.

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
        check_dataset(name, need_images=need_images)
        dicts += _load_one(name)
    # Not thing_classes: whatever else the files hold, people alone were loaded.
    if all(hasattr(MetadataCatalog.get(name), "keypoint_names") for name in names):
        check_metadata_consistency("keypoint_names", names)
    if not is_train:
        return dicts

    if not any(record.get("annotations") for record in dicts):
        raise ValueError(f"dataset {', '.join(names)}: nobody is annotated, nothing to train on")
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
        if min_keypoints_per_image == 0:
            raise ValueError(
                f"dataset {', '.join(names)}: all who are annotated are crowds, nothing to train on"
            )
        raise ValueError(
            f"dataset {', '.join(names)}: no image has {min_keypoints_per_image} labelled "
            "keypoints: lower INPUT.MIN_KEYPOINTS_PER_IMAGE"
        )
    return dicts


def check_dataset(name: str, *, need_images: bool = True) -> None:
    """Raises one clear line unless `name` is registered and its files are there.

    Args:
        name: of the dataset.
        need_images: whether the image folder must be there.

    Raises:
        ValueError: unknown name, near names are listed; or a dataset without images.
        FileNotFoundError: the annotation file or image folder is missing.
    """
    if name not in DatasetCatalog.list():
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=4, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see DatasetCatalog.list()"
        raise ValueError(f"dataset {name!r} is not registered; {hint}")
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    remedy = metadata.get("remedy") or (
        f"DETECTRON2_DATASETS={os.environ.get('DETECTRON2_DATASETS', '')!r} must name the folder "
        "of the datasets (COCO: coco/annotations, coco/train2017 ...)"
    )
    if json_file is not None and not os.path.isfile(json_file):
        raise FileNotFoundError(
            f"dataset {name!r}: annotation file {json_file} not found; {remedy}"
        )
    if not need_images or image_root is None or os.path.isdir(image_root):
        return
    if not image_root:
        raise ValueError(
            f"dataset {name!r} has no image folder, which all but the assembly needs; {remedy}"
        )
    raise FileNotFoundError(f"dataset {name!r}: image folder {image_root} not found; {remedy}")


def has_keypoints(annotation: dict) -> bool:
    """Whether any keypoint of the annotation is labelled (v > 0)."""
    keypoints = annotation.get("keypoints")
    return keypoints is not None and any(v > 0 for v in keypoints[2::3])


def _register_drawn() -> None:
    for name, splits in drawn_files().items():
        for split, (json_file, images) in splits.items():
            register_people(
                f"{name}-{split}",
                json_file=_in_datasets(json_file),
                image_root=_in_datasets(images),
                skeleton=get_skeleton("coco"),
                remedy="draw it: python tools/make_synthetic.py "
                f"--dataset {name} --output {_in_datasets('')}",
            )


def _in_datasets(path: str) -> str:
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    return os.path.join(os.path.expanduser(root), path)


def _load_coco(name: str, json_file: str, image_root: str) -> list[dict]:
    """People alone, of class 0, whatever the file calls them and holds beside them."""
    summary = check_coco_file(json_file)
    # Not under its name: Detectron2 would note the file's categories there, against "person".
    dicts = load_coco_json(summary.file, image_root)
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {summary.person_id: 0}
    return [_with_people_alone(record, summary.person_id) for record in dicts]


def _load_one(name: str) -> list[dict]:
    metadata = MetadataCatalog.get(name)
    json_file, summary = metadata.get("json_file"), None
    if json_file is not None:
        summary = check_coco_file(json_file, metadata.get("keypoint_names"))
        logger.info("dataset %s: %s", name, summary.describe())
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
