"""How well people are found who stand close together: AP by overlap of poses, right counts.

Letters: K keypoint types. COCO annotations and results, pixels of the image.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpn_d2.structures.oks import self_oks

COUNT = "count_right"
# A pose less like anybody than this was written of nobody. OKS.
_OF_NOBODY = 0.1


def check_edges(edges: Sequence[float]) -> list[float]:
    """Bounds of groups of overlap, 0 and 1 added; a ValueError if they do not rise from 0 to 1.

    Args:
        edges: inner bounds, above 0 and below 1.
    """
    bounds = [0.0, *(float(edge) for edge in edges), 1.0]
    if any(low >= high for low, high in zip(bounds, bounds[1:])):
        raise ValueError(
            f"EVAL.OKS_OVERLAP is {list(edges)}: rising bounds above 0 and below 1 are needed"
        )
    return bounds


def pose_overlaps(truth: COCO, sigmas: Iterable[float]) -> dict[int, float]:
    """Annotation id to the largest OKS with another annotated person of the image, 0 to 1.

    The OKS of two annotated people compares the joints that both have, by the mean of their areas,
    and divides by the smaller number of joints (`self_oks`). Of everybody with a labelled joint
    but crowds.
    """
    found = {}
    for image_id in truth.imgs:
        people = [a for a in truth.imgToAnns[image_id] if _is_known(a)]
        if not people:
            continue
        poses = torch.tensor([a["keypoints"] for a in people], dtype=torch.float64)
        areas = torch.tensor([float(a["area"]) for a in people], dtype=torch.float64)
        poses = poses.view(len(people), -1, 3)
        alike = self_oks(poses, areas, torch.tensor(tuple(sigmas))).fill_diagonal_(0)
        largest = alike.amax(dim=1).tolist()
        found.update({a["id"]: value for a, value in zip(people, largest, strict=True)})
    return found


def truths_by_overlap(
    truth: COCO, sigmas: Iterable[float], edges: Sequence[float]
) -> dict[str, COCO]:
    """The truth once for each group of people by overlap: AP_overlap_<low>_<high>, [low, high).

    The last group holds 1, too. Everybody else has no keypoints there: pycocotools ignores them
    and who is matched to them, as it does with people without annotated joints. Poses that miss
    them stay: see `ignore_poses_of_others`.

    Args:
        truth: annotated people.
        sigmas: (K,) OKS constants.
        edges: see `check_edges`.
    """
    bounds, overlaps = check_edges(edges), pose_overlaps(truth, sigmas)
    groups = {}
    for low, high in zip(bounds, bounds[1:]):
        top = 2.0 if high == 1 else high
        inside = {a for a, overlap in overlaps.items() if low <= overlap < top}
        annotations = [
            a if a["id"] in inside else {**a, "num_keypoints": 0}
            for a in truth.dataset["annotations"]
        ]
        group = COCO()
        group.dataset = {**truth.dataset, "annotations": annotations}
        with contextlib.redirect_stdout(io.StringIO()):
            group.createIndex()
        groups[f"AP_overlap_{low:g}_{high:g}"] = group
    return groups


def ignore_poses_of_others(scorer: COCOeval) -> None:
    """Poses that match nobody count only in the group of the person whom they are most like.

    As pycocotools does with found people outside of its ranges of areas: how well others are found
    must not show in a group's precision. Poses of nobody (an OKS below 0.1 with everybody) and of
    people without joints count in all groups.

    Args:
        scorer: evaluated on one of `truths_by_overlap`, not accumulated; changed in place.
    """
    for entry in filter(None, scorer.evalImgs):
        key = entry["image_id"], entry["category_id"]
        alike = np.asarray(scorer.ious[key])
        if not alike.size:
            continue
        people = scorer._gts[key]
        others = np.array([a["ignore"] and not a["iscrowd"] and _has_joints(a) for a in people])
        of_others = others.astype(bool)[alike.argmax(axis=1)] & (alike.max(axis=1) >= _OF_NOBODY)
        found = len(entry["dtIds"])
        entry["dtIgnore"] |= (entry["dtMatches"] == 0) & of_others[:found]


def share_of_right_counts(
    truth: COCO, results: Sequence[dict], images: Sequence[int], min_score: float
) -> float:
    """Percentage of the images in which as many people were found as there are; NaN of no image.

    Of people without annotated joints any number may be found, and with a crowd any number more.

    Args:
        truth: annotated people.
        results: found poses, COCO results.
        images: ids that count.
        min_score: who scores less was not found.
    """
    found = Counter(row["image_id"] for row in results if row["score"] >= min_score)
    right = 0
    for image_id in images:
        people = truth.imgToAnns[image_id]
        known = sum(map(_is_known, people))
        most = len(people)
        if any(a.get("iscrowd", 0) for a in people):
            most = max(most, found[image_id])
        right += known <= found[image_id] <= most
    return 100 * right / len(images) if len(images) else float("nan")


def _has_joints(annotation: dict) -> bool:
    return any(v > 0 for v in annotation["keypoints"][2::3])


def _is_known(annotation: dict) -> bool:
    return not annotation.get("iscrowd", 0) and annotation.get("num_keypoints", 0) > 0
