"""Datasets that a config names: DATASETS.OWN (docs/own_data.md)."""

from __future__ import annotations

import difflib
import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mpn_d2.data.datasets import register_people
from mpn_d2.structures.skeleton import Skeleton, get_skeleton

# Of an entry: JSON file of the annotations, folder of the images, skeleton as MODEL.SKELETON.
_KEYS = ("JSON", "IMAGES", "SKELETON")
_registered: set[str] = set()


def register_own_datasets(cfg: CfgNode) -> None:
    """Registers the datasets of DATASETS.OWN and checks that skeletons fit; reads no annotations.

    May be called again: a name then means what the last config says. Relative paths start at the
    working folder. Call it after `register_pose_datasets`.

    Raises:
        ValueError: a faulty entry, a name that is taken, or a dataset of DATASETS.TRAIN or .TEST
            (of a stage too) whose keypoints are not those of MODEL.SKELETON.
        FileNotFoundError: a skeleton file is missing.
    """
    for name, entry in cfg.DATASETS.OWN.items():
        _register(name, entry, cfg.MODEL.SKELETON)
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    _check_used(cfg, skeleton, "")
    for stage, overlay in cfg.STAGES.items():
        if isinstance(overlay, CfgNode) and "SKELETON" not in overlay.get("MODEL", {}):
            _check_used(overlay, skeleton, f"STAGES.{stage}.")


def _register(name: str, entry: object, default_skeleton: str) -> None:
    where = f"DATASETS.OWN.{name}"
    if not isinstance(entry, CfgNode):
        raise ValueError(f"{where} is {entry!r}: a section with {', '.join(_KEYS)} is needed")
    for key, value in entry.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key.upper(), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_KEYS)}"
            raise ValueError(f"{where} has no key {key}; {hint}")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}.{key} is {value!r}: a text is needed")
    if "JSON" not in entry:
        raise ValueError(f"{where}.JSON is missing: name the annotation file (COCO format)")
    if name in DatasetCatalog.list() and name not in _registered:
        raise ValueError(f"{where}: another dataset is called {name!r} already; choose a new name")
    try:
        skeleton = get_skeleton(entry.get("SKELETON", default_skeleton))
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{where}.SKELETON: {error}") from error
    register_people(
        name,
        json_file=_path(entry.JSON),
        image_root=_path(entry.IMAGES) if "IMAGES" in entry else None,
        skeleton=skeleton,
        remedy=f"set JSON and IMAGES of {where} (relative paths start at the working folder, "
        f"{os.getcwd()})",
    )
    _registered.add(name)


def _path(given: str) -> str:
    return os.path.abspath(os.path.expanduser(given))


def _check_used(cfg: CfgNode, skeleton: Skeleton, prefix: str) -> None:
    """`cfg` may be the overlay of a stage, in which keys are missing."""
    for key in ("TRAIN", "TEST"):
        for name in cfg.get("DATASETS", {}).get(key, ()):
            if name not in DatasetCatalog.list():
                continue  # whoever loads it says so, with near names
            names = tuple(MetadataCatalog.get(name).get("keypoint_names") or ())
            if names and names != skeleton.keypoint_names:
                raise ValueError(
                    f"{prefix}DATASETS.{key}: {name!r} has {len(names)} keypoints "
                    f"({', '.join(names[:3])}, ...), MODEL.SKELETON {skeleton.name!r} has "
                    f"{skeleton.num_keypoints} ({', '.join(skeleton.keypoint_names[:3])}, ...): "
                    "train and test on datasets of one skeleton"
                )
