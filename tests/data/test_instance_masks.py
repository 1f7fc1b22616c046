"""Masks of people one by one out of the mapper: moved with the image, kept with their people."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, PolygonMasks
from mapper_cases import drawn, square, without_mask

from mpn_d2.data import PoseDatasetMapper
from mpn_d2.structures.skeleton import get_skeleton

SIZE = (24, 32)


def mapped(tmp_path, *annotations, is_train: bool = True):
    mapper = PoseDatasetMapper(
        is_train=is_train,
        # Twice as large, mirrored.
        augmentations=[T.ResizeTransform(*SIZE, 48, 64), T.HFlipTransform(64)],
        image_format="BGR",
        skeleton=get_skeleton("coco"),
        with_annotations=True,
        with_masks=True,
    )
    return mapper(drawn(tmp_path, *annotations))["instances"]


def test_polygons_move_with_the_image(tmp_path):
    people = mapped(tmp_path, square(2, 4, 10, 20), without_mask(12, 4, 20, 10))
    assert isinstance(people.gt_masks, PolygonMasks)
    assert people.gt_has_mask.tolist() == [True, False]
    (polygon,) = people.gt_masks.polygons[0]
    # x of 2 and 10 become 64 - 4 and 64 - 20.
    assert {tuple(p) for p in polygon.reshape(-1, 2)} == {(60, 8), (44, 8), (44, 40), (60, 40)}
    assert people.gt_masks.polygons[1] == []
    inside = people.gt_masks.crop_and_resize(people.gt_boxes.tensor, 8)
    assert inside[0].all() and not inside[1].any()


def test_an_rle_makes_bitmaps_of_all(tmp_path):
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[4:20, 2:10] = 1
    rle = mask_util.encode(mask)
    person = square(2, 4, 10, 20, segmentation=rle)
    people = mapped(tmp_path, person, square(2, 4, 10, 20), without_mask(12, 4, 20, 10))
    assert isinstance(people.gt_masks, BitMasks)
    expected = torch.zeros(48, 64, dtype=torch.bool)
    expected[8:40, 44:60] = True
    assert torch.equal(people.gt_masks.tensor[0], expected)
    assert torch.equal(people.gt_masks.tensor[1], expected)
    assert people.gt_has_mask.tolist() == [True, True, False]


def test_masks_stay_with_their_people(tmp_path):
    outside = square(40, 2, 50, 9)
    crowd = square(0, 0, 30, 20, iscrowd=1)
    people = mapped(tmp_path, without_mask(1, 1, 9, 9), outside, crowd, square(12, 4, 20, 10))
    assert len(people) == 2 and people.gt_has_mask.tolist() == [False, True]
    assert people.gt_masks.polygons[0] == [] and len(people.gt_masks.polygons[1]) == 1
    assert len(mapped(tmp_path).gt_masks) == 0


def test_no_masks_at_test_time(tmp_path):
    assert not mapped(tmp_path, square(2, 4, 10, 20), is_train=False).has("gt_masks")
