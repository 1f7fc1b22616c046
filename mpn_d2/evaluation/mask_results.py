"""Masks of people one by one in COCO's formats: results, and what of the truth can be scored."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Instances
from pycocotools.coco import COCO

from mpn_d2.data.person_masks import has_mask, valid_polygons


def encode_masks(masks: torch.Tensor) -> list[dict]:
    """(P, H, W) bool masks as compressed RLE that JSON takes: {"size", "counts"}."""
    encoded = []
    for mask in masks.cpu().numpy():
        rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
        encoded.append({"size": rle["size"], "counts": rle["counts"].decode("ascii")})
    return encoded


def export_masks(instances: Instances, image_id: int) -> list[dict]:
    """Predicted masks of one image as COCO results, rated by `scores`.

    Without `bbox`: pycocotools takes sizes from the masks then. `category_id` is the model's class.

    Args:
        instances: image frame: `pred_masks` (P, H, W) bool, `scores`, `pred_classes`.
        image_id: of the image.
    """
    rows = zip(
        encode_masks(instances.pred_masks),
        instances.scores.tolist(),
        instances.pred_classes.tolist(),
        strict=True,
    )
    return [
        {"image_id": image_id, "category_id": label, "segmentation": mask, "score": score}
        for mask, score, label in rows
    ]


def truth_of_masks(truth: COCO) -> COCO:
    """The truth for masks: people without one become a crowd as large as their box.

    Which pixels are theirs is not known: whatever mask is found there is neither right nor wrong.
    Polygons of fewer than three points are left out, as in training: pycocotools takes one of two
    points for a box, and fails. `truth` itself where there is nothing to change; it is left as it
    is.
    """
    known = [_known_mask(a) for a in truth.dataset["annotations"]]
    content = dict(truth.dataset)
    content["annotations"] = known
    if all(a is b for a, b in zip(known, truth.dataset["annotations"], strict=True)):
        return truth
    with_boxes = COCO()
    with_boxes.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        with_boxes.createIndex()
    return with_boxes


def _known_mask(person: dict) -> dict:
    """The annotation as it can be scored, see `truth_of_masks`; itself where it can be as it is."""
    segmentation = person.get("segmentation")
    if not has_mask(person):
        return {**person, "iscrowd": 1, "segmentation": [_box_polygon(person["bbox"])]}
    polygons = valid_polygons(segmentation)
    if isinstance(segmentation, dict) or len(polygons) == len(segmentation):
        return person
    return {**person, "segmentation": [p.reshape(-1).tolist() for p in polygons]}


def _box_polygon(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]
