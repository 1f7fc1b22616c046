"""People of one annotation file, for commands that need no images."""

from __future__ import annotations

from detectron2.data import MetadataCatalog

from mpn_d2.data.coco_file import check_coco_file
from mpn_d2.data.datasets import load_pose_dicts, register_people
from mpn_d2.structures.skeleton import Skeleton

# The name that the file is registered under, for evaluators.
PEOPLE_FILE = "annotations-of-a-command"


def load_people_file(path: str, skeleton: Skeleton, image_root: str | None = None) -> list[dict]:
    """Dataset dicts of all images of a COCO keypoint JSON, those without people included.

    Prints a line for each thing in it that is not used as it is.

    Args:
        path: the file, packed (.json.gz) or not.
        skeleton: of its keypoints.
        image_root: folder that their `file_name` begins with; nothing in it is looked at.

    Raises:
        ValueError, FileNotFoundError: as `load_pose_dicts`.
    """
    register_people(
        PEOPLE_FILE,
        json_file=path,
        image_root=image_root,
        skeleton=skeleton,
        remedy="give --annotations the path of a COCO keypoint JSON",
    )
    dicts = load_pose_dicts([PEOPLE_FILE], is_train=False, need_images=False)
    for what, (count, first) in check_coco_file(path).notes.items():
        print(f"{path}: {count} {what}, first: {first}")
    return dicts


def person_id() -> int:
    """Category of people in the file that was loaded last."""
    (found,) = MetadataCatalog.get(PEOPLE_FILE).thing_dataset_id_to_contiguous_id
    return found
