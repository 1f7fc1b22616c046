"""Random crops of photographs: image, joints, boxes and masks move together."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from mapper_cases import COCO, decoded, drawn, make_mapper, turn, without_mask

from mpn_d2.data import MASK_STRIDE, PoseDatasetMapper
from mpn_d2.data.augmentations import build_augmentations


@pytest.fixture
def cfg(cfg: CfgNode) -> CfgNode:
    cfg.INPUT.AUGMENTATION = "crop"
    cfg.INPUT.CROP_SIZE = 237  # odd, and no multiple of the stride
    cfg.INPUT.PERSON_HEIGHT = 150.0
    return cfg


class _Recorded(T.Augmentation):
    """Does what another augmentation does and keeps the transform."""

    def __init__(self, inner: T.Augmentation) -> None:
        super().__init__()
        self.inner = inner
        self.last: T.Transform | None = None

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        self.last = self.inner(aug_input)
        return self.last


def _recording_mapper(cfg: CfgNode) -> tuple[PoseDatasetMapper, _Recorded]:
    recorded = _Recorded(T.AugmentationList(build_augmentations(cfg, is_train=True)))
    return make_mapper(recorded), recorded


def test_image_joints_boxes_and_masks_stay_together(sample: list[dict], cfg: CfgNode) -> None:
    """Random crops of photographs against the annotations moved by hand, cell by cell."""
    np.random.seed(3)
    mapper, recorded = _recording_mapper(cfg)
    flipped = 0
    for record in sample:
        for _ in range(3):
            out = mapper(record)
            assert out["image"].shape == (3, 237, 237)
            moves = recorded.last.transforms
            flip = any(isinstance(t, T.HFlipTransform) for t in moves)
            flipped += flip
            matrix = np.vstack([moves[0].matrix, [0, 0, 1]])
            if flip:
                matrix = np.array([[-1, 0, 237], [0, 1, 0], [0, 0, 1]]) @ matrix
            _check_joints_and_boxes(record, out, matrix, flip)
            _check_masks(record, out, matrix)
    assert 0 < flipped < 3 * len(sample)


def _check_joints_and_boxes(record: dict, out: dict, matrix: np.ndarray, flip: bool) -> None:
    found = out["instances"].gt_keypoints.tensor.numpy()
    boxes = out["instances"].gt_boxes.tensor.numpy()
    row = 0
    for a in record["annotations"]:
        if a["iscrowd"]:
            continue
        outline = np.concatenate([np.array(p).reshape(-1, 2) for p in a["segmentation"]])
        outline = outline @ matrix[:2, :2].T + matrix[:2, 2]
        low, high = np.clip(outline.min(0), 0, 237), np.clip(outline.max(0), 0, 237)
        if not (high > low).all():
            continue
        np.testing.assert_allclose(boxes[row], np.concatenate([low, high]), atol=1e-3)
        joints = np.array(a["keypoints"]).reshape(-1, 3)
        joints[:, :2] = joints[:, :2] @ matrix[:2, :2].T + matrix[:2, 2]
        outside = ((joints[:, :2] < 0) | (joints[:, :2] > 237)).any(axis=1)
        joints[outside | (joints[:, 2] == 0)] = 0
        if flip:
            joints = joints[list(COCO.flip_indices)]
        np.testing.assert_allclose(found[row], joints, atol=1e-3)
        row += 1
    assert row == len(found)


def _check_masks(record: dict, out: dict, matrix: np.ndarray) -> None:
    size = record["height"], record["width"]
    people = record["annotations"]
    labelled = [a for a in people if not a["iscrowd"] and any(v > 0 for v in a["keypoints"][2::3])]
    others = [a for a in people if not any(a is b for b in labelled)]
    known, unknown = decoded(labelled, size), decoded(others, size)
    y, x = np.mgrid[:237, :237] + 0.5
    inverse = np.linalg.inv(matrix)
    source = np.stack([x, y, np.ones_like(x)], -1) @ inverse.T
    column, row = np.floor(source[..., 0]).astype(int), np.floor(source[..., 1]).astype(int)
    inside = (column >= 0) & (row >= 0) & (column < size[1]) & (row < size[0])
    column, row = column.clip(0, size[1] - 1), row.clip(0, size[0] - 1)
    for key, mask in (("person_mask", known | unknown), ("ignore_mask", unknown & ~known)):
        moved = mask[row, column] & inside
        padded = np.pad(moved, (0, 3))[: 60 * MASK_STRIDE, : 60 * MASK_STRIDE].astype(float)
        counts = np.pad(np.ones((237, 237)), (0, 3))
        cells = padded.reshape(60, 4, 60, 4).sum((1, 3)) / counts.reshape(60, 4, 60, 4).sum((1, 3))
        cells = cells.round(6)
        value = out[key].numpy() == 1
        assert value.shape == (60, 60)
        # Rounding decides cells at the edge; all others, which the outline leaves whole, agree.
        assert (value == (cells >= 0.5)).mean() > 0.985
        whole = (cells == 0) | (cells == 1)
        assert (value[whole] == (cells[whole] == 1)).mean() > 0.999


def test_visible_joints_stay_inside_the_mask(sample: list[dict], cfg: CfgNode) -> None:
    np.random.seed(0)
    mapper, recorded = _recording_mapper(cfg)
    checked = 0
    for record in sample:
        mask = decoded(record["annotations"], (record["height"], record["width"]))
        for _ in range(3):
            out = mapper(record)
            near = torch.nn.functional.max_pool2d(out["person_mask"][None].float(), 3, 1, 1)[0]
            for a in record["annotations"]:
                for x, y, v in np.array(a["keypoints"]).reshape(-1, 3):
                    inside = v == 2 and mask[int(y), int(x)]
                    ((mx, my),) = recorded.last.apply_coords(np.array([[x, y]]))
                    if inside and 0 <= mx < 237 and 0 <= my < 237:
                        assert near[int(my / MASK_STRIDE), int(mx / MASK_STRIDE)] == 1
                        checked += 1
    assert checked > 200


def test_flip_exchanges_left_and_right(sample: list[dict], cfg: CfgNode) -> None:
    """A crop and its mirror image, from the same draws."""
    outs = []
    for probability in (0.0, 1.0):
        cfg.INPUT.FLIP_PROB = probability
        mapper, _ = _recording_mapper(cfg)
        np.random.seed(8)
        outs.append(mapper(sample[1]))
    plain, mirrored = outs
    assert torch.equal(mirrored["image"], plain["image"].flip(2))
    joints = plain["instances"].gt_keypoints.tensor[:, list(COCO.flip_indices)].clone()
    joints[..., 0] = torch.where(joints[..., 2] > 0, 237 - joints[..., 0], 0.0)
    torch.testing.assert_close(mirrored["instances"].gt_keypoints.tensor, joints, atol=1e-3, rtol=0)
    assert (joints[..., 2] > 0).sum() > 10


def test_no_people_and_crowds_alone(tmp_path: Path, cfg: CfgNode) -> None:
    mapper = PoseDatasetMapper(cfg, is_train=True)
    for people in ([], [without_mask(10, 10, 40, 40, iscrowd=1)]):
        out = mapper(drawn(tmp_path, *people, size=(47, 61)))
        assert out["image"].shape == (3, 237, 237) and len(out["instances"]) == 0
        assert not out["person_mask"].any()  # the crowd has no mask
        assert bool(out["ignore_mask"].any()) == bool(people)


def test_a_turned_box_without_mask_is_ignored_as_the_turned_box(tmp_path: Path) -> None:
    mapper = make_mapper(turn(45, 1.0, (30, 24), (40, 40), (80, 80)))
    unlabelled = without_mask(18, 12, 42, 36, joints=0)
    out = mapper(drawn(tmp_path, unlabelled, size=(47, 61)))
    y, x = np.mgrid[:20, :20] * 4.0 + 2
    diamond = np.abs(x - 40) + np.abs(y - 40)
    edge = 12 * math.sqrt(2)
    ignored = out["ignore_mask"].numpy() == 1
    assert ignored[diamond < edge - 3].all() and not ignored[diamond > edge + 3].any()
