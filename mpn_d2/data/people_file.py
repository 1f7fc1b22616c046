"""People of one annotation file, for commands that need no images."""

from __future__ import annotations

from mpn_d2.data.datasets import load_pose_dicts, register_people
from mpn_d2.structures.skeleton import Skeleton

# The name that the file is registered under, for evaluators.
PEOPLE_FILE = "annotations-of-a-command"


def load_people_file(path: str, skeleton: Skeleton, image_root: str | None = None) -> list[dict]:
    """Dataset dicts of all images of a COCO keypoint JSON, those without people included.

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
    return load_pose_dicts([PEOPLE_FILE], is_train=False, need_images=False)
