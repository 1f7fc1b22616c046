"""PASCAL VOC 2012: people's pixels, for the person mask (spec 11 and E10).

No boxes and no keypoints: evaluated by `mpn_d2.evaluation.voc_segmentation`, not trained on.
"""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog, MetadataCatalog

# What metadata call the kind of evaluation.
VOC_PERSON = "voc_person"
# In DETECTRON2_DATASETS: Detectron2's place, then that of the unpacked archives.
_FOLDERS = ("VOC2012", os.path.join("VOCdevkit", "VOC2012"))
# Split to whether its truth is public.
_SPLITS = {"train": True, "val": True, "trainval": True, "test": False}
_REMEDY = (
    "DETECTRON2_DATASETS must name the folder that holds VOC2012 or VOCdevkit/VOC2012 (unpacked "
    "from host.robots.ox.ac.uk/pascal/VOC/voc2012; the test images are an archive of their own)"
)


def register_voc_people(root: str | os.PathLike) -> None:
    """Registers voc_2012_person_train, _val, _trainval and _test, anew if they are there.

    Reads no file; where both folders are missing, messages name the first.

    Args:
        root: folder of all datasets, DETECTRON2_DATASETS.
    """
    folders = [os.path.join(root, folder) for folder in _FOLDERS]
    folder = next(filter(os.path.isdir, folders), folders[0])
    for split, has_truth in _SPLITS.items():
        _register(f"voc_2012_person_{split}", folder, split, has_truth)


def _register(name: str, folder: str, split: str, has_truth: bool) -> None:
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: _load(name, folder, split, has_truth))
    MetadataCatalog.get(name).set(
        evaluator_type=VOC_PERSON,
        image_root=os.path.join(folder, "JPEGImages"),
        split=split,
        remedy=_REMEDY,
    )


def _load(name: str, folder: str, split: str, has_truth: bool) -> list[dict]:
    """One dict an image: `file_name`, `image_id` and, with truth, `sem_seg_file_name`.

    Sizes are those of the files, which nobody has to read twice for that.
    """
    listed = os.path.join(folder, "ImageSets", "Segmentation", f"{split}.txt")
    if not os.path.isfile(listed):
        raise FileNotFoundError(f"dataset {name!r}: list of images {listed} not found; {_REMEDY}")
    masks = os.path.join(folder, "SegmentationClass")
    if has_truth and not os.path.isdir(masks):
        raise FileNotFoundError(f"dataset {name!r}: folder of masks {masks} not found; {_REMEDY}")
    with open(listed, encoding="utf-8") as file:
        ids = file.read().split()
    records = []
    for image_id in ids:
        record = {
            "file_name": os.path.join(folder, "JPEGImages", f"{image_id}.jpg"),
            "image_id": image_id,
        }
        if has_truth:
            record["sem_seg_file_name"] = os.path.join(masks, f"{image_id}.png")
        records.append(record)
    return records
