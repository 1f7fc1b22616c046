"""Person mask and ignore region against decoding pixel by pixel, and drawn cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from mapper_cases import COCO, block, cells, decoded, drawn, make_mapper, square, without_mask

from mpn_d2.data import MASK_STRIDE, PoseDatasetMapper


def test_masks_against_decoding_at_the_files_size(sample: list[dict]) -> None:
    """No resize: cells are counted pixel by pixel from each annotation's own mask."""
    mapper = make_mapper()
    for record in sample[:4]:
        out = mapper(record)
        size = record["height"], record["width"]
        people = record["annotations"]
        known = [not a["iscrowd"] and any(v > 0 for v in a["keypoints"][2::3]) for a in people]
        labelled = decoded([a for a, k in zip(people, known) if k], size)
        others = decoded([a for a, k in zip(people, known) if not k], size)
        for key, mask in (("person_mask", labelled | others), ("ignore_mask", others & ~labelled)):
            assert out[key].dtype == torch.uint8
            assert out[key].shape == (-(-size[0] // MASK_STRIDE), -(-size[1] // MASK_STRIDE))
            for y in range(0, size[0], 4 * MASK_STRIDE):
                for x in range(0, size[1], MASK_STRIDE):
                    share = mask[y : y + MASK_STRIDE, x : x + MASK_STRIDE].mean()
                    assert out[key][y // MASK_STRIDE, x // MASK_STRIDE] == (share >= 0.5)


def test_resized_masks_cover_what_the_file_shows(sample: list[dict], cfg: CfgNode) -> None:
    """At another size the areas agree with those of the file's pixels."""
    cfg.INPUT.MIN_SIZE_TRAIN = (203,)
    cfg.INPUT.FLIP_PROB = 0.0
    mapper = PoseDatasetMapper(cfg, is_train=True)
    full = make_mapper()
    for record in sample:
        small, large = mapper(record), full(record)
        for key in ("person_mask", "ignore_mask"):
            difference = small[key].float().mean() - large[key].float().mean()
            assert abs(float(difference)) < 0.01, (record["file_name"], key)


def test_rle_follows_the_transform_and_is_checked(tmp_path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8, order="F")
    mask[4:12, 8:16] = 1
    packed = mask_util.encode(mask)
    counts = [8 * 24 + 4, 8] + [16, 8] * 7 + [16 * 24 - 4 + 8]
    counts[-1] = 24 * 32 - sum(counts[:-1])
    for rle in (packed, {"size": [24, 32], "counts": counts}):
        crowd = square(8, 4, 16, 12, iscrowd=1, segmentation=rle)
        out = make_mapper(T.RandomFlip(prob=1.0))(drawn(tmp_path, crowd))
        assert cells(out["person_mask"]) == block(1, 4, 3, 6)
        assert cells(out["ignore_mask"]) == block(1, 4, 3, 6)
        assert out["crowd_boxes"].tolist() == [[16, 4, 24, 12]]
    with pytest.raises(ValueError, match=r"drawn\.png \(image_id 3\): RLE mask of size \(24, 32\)"):
        make_mapper()(drawn(tmp_path, crowd, size=(24, 28)))


def test_ignore_region_cases(tmp_path: Path) -> None:
    annotated = square(0, 0, 8, 8)
    crowd = square(4, 0, 16, 8, iscrowd=1, joints=0)
    unlabelled = square(4, 4, 16, 16, joints=0)
    no_mask = without_mask(20, 12, 28, 20, joints=0)

    def regions(*annotations: dict) -> tuple[set, set]:
        out = make_mapper()(drawn(tmp_path, *annotations))
        assert not (out["ignore_mask"] == 2).any()
        return cells(out["person_mask"]), cells(out["ignore_mask"])

    assert regions() == (set(), set())
    assert regions(annotated) == (block(0, 0, 2, 2), set())
    assert regions(crowd) == (block(0, 1, 2, 4), block(0, 1, 2, 4))
    # An annotated person wins over crowds and over people without keypoints.
    assert regions(annotated, crowd) == (block(0, 0, 2, 4), block(0, 2, 2, 4))
    assert regions(unlabelled, annotated) == (
        block(0, 0, 2, 2) | block(1, 1, 4, 4),
        block(1, 1, 4, 4) - {(1, 1)},
    )
    # Without a mask the box is ignored; the person mask shows masks alone.
    assert regions(no_mask) == (set(), block(3, 5, 5, 7))
    # A two-point "polygon" is no mask.
    point = square(20, 12, 28, 20, joints=0, segmentation=[[20, 12, 28, 20]])
    assert regions(point) == (set(), block(3, 5, 5, 7))
    without_list = {k: v for k, v in unlabelled.items() if k != "keypoints"}
    assert regions(without_list) == (block(1, 1, 4, 4), block(1, 1, 4, 4))


def test_joints_known_but_no_mask(tmp_path: Path) -> None:
    """Ignored for the person mask (2), not for the heatmaps (1)."""

    def ignored(*annotations: dict) -> tuple[set, set, set]:
        out = make_mapper()(drawn(tmp_path, *annotations))
        assert out["ignore_mask"].dtype == torch.uint8
        both = (cells(out["ignore_mask"] == value) for value in (1, 2))
        return cells(out["person_mask"]), *both

    known = without_mask(20, 0, 28, 8)
    assert ignored(known) == (set(), set(), block(0, 5, 2, 7))
    two_points = square(20, 0, 28, 8, segmentation=[[20, 0, 28, 8]])
    assert ignored(two_points) == (set(), set(), block(0, 5, 2, 7))
    # Masks of people with joints are known to be people, whoever else's box is there.
    with_mask = square(24, 0, 32, 4)
    assert ignored(known, with_mask) == (
        block(0, 6, 1, 8),
        set(),
        block(0, 5, 2, 7) - {(0, 6)},
    )
    # What heatmaps ignore wins: crowds and people without joints, with a mask and without.
    for other in (
        square(24, 4, 32, 12, joints=0),
        square(24, 4, 32, 12, iscrowd=1),
        without_mask(24, 4, 32, 12, joints=0),
    ):
        person = set() if "segmentation" not in other else block(1, 6, 3, 8)
        assert ignored(known, other) == (
            person,
            block(1, 6, 3, 8),
            block(0, 5, 2, 7) - {(1, 6)},
        )
    # A quarter of the cell for both, a quarter for the mask alone: half of it for the mask.
    parts = without_mask(0, 0, 2, 2, joints=0), without_mask(2, 0, 4, 2)
    assert ignored(*parts) == (set(), set(), {(0, 0)})
    flipped = make_mapper(T.RandomFlip(prob=1.0))(drawn(tmp_path, known))
    assert cells(flipped["ignore_mask"] == 2) == block(0, 1, 2, 3)


def test_joints_without_a_box_are_ignored(tmp_path: Path) -> None:
    def ignored(*annotations: dict, crop: T.Transform | None = None) -> tuple[int, set, set]:
        out = make_mapper(crop or T.NoOpTransform())(drawn(tmp_path, *annotations, size=(96, 128)))
        assert not (out["ignore_mask"] == 2).any()
        return len(out["instances"]), cells(out["person_mask"]), cells(out["ignore_mask"])

    def joints(*points: tuple[float, float]) -> dict:
        """Somebody with these joints, without a mask and with a box of no area."""
        keypoints = [value for x, y in points for value in (x, y, 2)]
        keypoints += [0, 0, 0] * (COCO.num_keypoints - len(points))
        return without_mask(60, 40, 60, 90, keypoints=keypoints)

    # By the mask where there is one, wherever the box is.
    for box in ([8, 8, 8, 24], [130, 8, 150, 24], [-9, 8, 0, 24]):
        with_mask = square(8, 8, 24, 24, bbox=box)
        assert ignored(with_mask) == (0, block(2, 2, 6, 6), block(2, 2, 6, 6))
    # Else 16 pixels around the joints; those outside of the image do not count.
    assert ignored(joints((40, 40))) == (0, set(), block(6, 6, 14, 14))
    assert ignored(joints((40, 40), (64, 48), (300, 40))) == (0, set(), block(6, 6, 16, 20))
    assert ignored(joints((4, 92))) == (0, set(), block(19, 0, 24, 5))
    assert ignored(joints((-4, 40), (300, 40))) == (0, set(), set())
    assert ignored(joints()) == (0, set(), set())
    # Masks of people with box and joints win.
    assert ignored(square(32, 32, 48, 48), joints((40, 40))) == (
        1,
        block(8, 8, 12, 12),
        block(6, 6, 14, 14) - block(8, 8, 12, 12),
    )
    # A crop that leaves somebody out knows that no joint is there; one outside of their box may be.
    crop = T.CropTransform(64, 0, 64, 96)
    apart = without_mask(20, 20, 62, 90)
    assert ignored(apart, crop=crop) == (0, set(), set())
    apart["keypoints"][:3] = [104, 40, 1]
    assert ignored(apart, crop=crop) == (0, set(), block(6, 6, 14, 14))
    assert ignored(apart | {"keypoints": None}, crop=crop) == (0, set(), set())
