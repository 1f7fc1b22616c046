"""The mapper against direct computation on the bundled sample; images; what it refuses.

Masks: test_ignore_region.py; crops: test_mapped_crops.py.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from mapper_cases import COCO, cells, drawn, make_mapper, square, without_mask
from PIL import Image

from mpn_d2.data import MASK_STRIDE, PoseDatasetMapper
from mpn_d2.data.augmentations import AffineTransform
from mpn_d2.structures.ground_truth import gt_boxes


@pytest.fixture
def cfg(cfg: CfgNode) -> CfgNode:
    cfg.INPUT.MIN_SIZE_TRAIN = (203,)
    cfg.INPUT.MIN_SIZE_TEST = 203
    cfg.INPUT.FLIP_PROB = 0.0
    return cfg


def test_people_are_the_annotations_scaled(sample: list[dict], cfg: CfgNode) -> None:
    mapper = PoseDatasetMapper(cfg, is_train=True)
    for record in sample:
        before = copy.deepcopy(record)
        out = mapper(record)
        assert record == before
        height, width = out["image"].shape[1:]
        assert min(height, width) == 203 and out["image"].dtype == torch.uint8
        assert (out["height"], out["width"]) == (record["height"], record["width"])
        scale = np.array([width / record["width"], height / record["height"]])

        people = [a for a in record["annotations"] if not a["iscrowd"]]
        boxes = np.array([a["bbox"] for a in people])
        boxes[:, 2:] += boxes[:, :2]
        instances = out["instances"]
        assert instances.image_size == (height, width)
        np.testing.assert_allclose(
            instances.gt_boxes.tensor.numpy(), boxes * np.tile(scale, 2), atol=1e-3
        )
        # What the loader gives is the JSON + 0.5.
        joints = np.array([a["keypoints"] for a in people]).reshape(-1, COCO.num_keypoints, 3)
        joints[..., :2] *= scale
        joints[joints[..., 2] == 0] = 0
        np.testing.assert_allclose(instances.gt_keypoints.tensor.numpy(), joints, atol=1e-3)
        crowds = sum(a["iscrowd"] for a in record["annotations"])
        assert out["crowd_boxes"].shape == (crowds, 4)
        assert instances.gt_classes.tolist() == [0] * len(people)


def test_flip_mirrors_everything_and_twice_gives_back(sample: list[dict]) -> None:
    resize = T.ResizeShortestEdge((101,), 400, "choice")
    flip = T.RandomFlip(prob=1.0)
    for record in sample[:3]:
        plain, once, twice = (
            make_mapper(*a)(record) for a in ([resize], [resize, flip], [resize, flip, flip])
        )
        width = plain["image"].shape[2]
        assert torch.equal(once["image"], plain["image"].flip(2))
        boxes = plain["instances"].gt_boxes.tensor.clone()
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        torch.testing.assert_close(once["instances"].gt_boxes.tensor, boxes, atol=1e-3, rtol=0)
        joints = plain["instances"].gt_keypoints.tensor[:, list(COCO.flip_indices)].clone()
        joints[..., 0] = torch.where(joints[..., 2] > 0, width - joints[..., 0], 0.0)
        torch.testing.assert_close(once["instances"].gt_keypoints.tensor, joints, atol=1e-3, rtol=0)
        for key in ("image", "person_mask", "ignore_mask"):
            assert torch.equal(twice[key], plain[key]), key
        torch.testing.assert_close(
            twice["instances"].gt_keypoints.tensor,
            plain["instances"].gt_keypoints.tensor,
            atol=1e-3,
            rtol=0,
        )
        if width % MASK_STRIDE == 0:
            difference = once["person_mask"] != plain["person_mask"].flip(1)
            assert difference.float().mean() < 0.01


@pytest.mark.parametrize("half", ["left", "right"])
def test_left_stays_left(tmp_path: Path, half: str) -> None:
    """A left wrist at x is, mirrored, a right wrist at W - x."""
    person = square(4, 4, 20, 20, joints=0)
    wrist = COCO.keypoint_names.index(f"{half}_wrist")
    person["keypoints"][3 * wrist : 3 * wrist + 3] = [5.5, 9.5, 1]
    out = make_mapper(T.RandomFlip(prob=1.0))(drawn(tmp_path, person))
    joints = out["instances"].gt_keypoints.tensor[0]
    other = COCO.keypoint_names.index({"left": "right", "right": "left"}[half] + "_wrist")
    assert joints[other].tolist() == [32 - 5.5, 9.5, 1]
    assert int((joints != 0).any(dim=1).sum()) == 1


def test_joints_and_people_outside_a_crop(tmp_path: Path) -> None:
    inside = square(4, 4, 16, 16)
    inside["keypoints"][3:6] = [25.5, 3.5, 2]  # labelled, falls out of the crop
    record = drawn(tmp_path, inside, square(25, 18, 31, 23), square(24, 0, 28, 4, iscrowd=1))
    crop = T.CropTransform(8, 8, 12, 13)
    out = make_mapper(crop)(record)
    instances = out["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 8, 8]]
    joints = instances.gt_keypoints.tensor[0]
    assert joints[0].tolist() == [2, 2, 2]
    assert not joints[1:].any()
    assert out["crowd_boxes"].shape == (0, 4)
    assert out["person_mask"].shape == (4, 3)  # 13 x 12 pixels
    assert cells(out["person_mask"]) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_image_without_people(tmp_path: Path) -> None:
    out = make_mapper(T.RandomFlip(prob=1.0))(drawn(tmp_path, size=(9, 6)))
    assert len(out["instances"]) == 0
    assert out["instances"].gt_keypoints.tensor.shape == (0, COCO.num_keypoints, 3)
    assert out["crowd_boxes"].shape == (0, 4)
    assert out["person_mask"].shape == out["ignore_mask"].shape == (3, 2)


def test_annotations_at_test_time_only_when_asked(sample: list[dict], cfg: CfgNode) -> None:
    plain = PoseDatasetMapper(cfg, is_train=False)(sample[1])
    assert set(plain) == {"image", "height", "width", "file_name", "image_id"}
    for key in ("KEYPOINT_SOURCE", "BOX_SOURCE"):
        other = cfg.clone()
        other.EVAL[key] = "gt"
        out = PoseDatasetMapper(other, is_train=False)(sample[1])
        assert set(out) - set(plain) == {"instances", "crowd_boxes"}
        assert len(out["instances"]) == 13 and len(out["crowd_boxes"]) == 1
        assert len(gt_boxes(out, False)) == 14
        labelled = (out["instances"].gt_keypoints.tensor[..., 2] > 0).any(1)
        assert 0 < int(labelled.sum()) < 13
        assert torch.equal(gt_boxes(out, True), out["instances"].gt_boxes.tensor[labelled])


def test_training_flips_as_often_as_asked(sample: list[dict], cfg: CfgNode) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    cfg.INPUT.FLIP_PROB = 1.0
    flipped = PoseDatasetMapper(cfg, is_train=True)(sample[0])["image"]
    cfg.INPUT.FLIP_PROB = 0.0
    plain = PoseDatasetMapper(cfg, is_train=True)(sample[0])["image"]
    assert torch.equal(flipped, plain.flip(2)) and not torch.equal(flipped, plain)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "RGB"])
def test_image_modes_and_channel_order(tmp_path: Path, mode: str, cfg: CfgNode) -> None:
    file = tmp_path / "image.png"
    Image.new("RGB", (6, 5), (200, 100, 50)).convert(mode).save(file)
    cfg.INPUT.MIN_SIZE_TEST = 0
    images = {}
    for order in ("BGR", "RGB"):
        cfg.INPUT.FORMAT = order
        images[order] = PoseDatasetMapper(cfg, is_train=False)({"file_name": str(file)})
        assert images[order]["image"].shape == (3, 5, 6)
        assert (images[order]["height"], images[order]["width"]) == (5, 6)
    assert torch.equal(images["RGB"]["image"], images["BGR"]["image"].flip(0))
    if mode == "RGB":
        assert images["RGB"]["image"][:, 0, 0].tolist() == [200, 100, 50]


def test_bad_images_and_annotations_are_named(tmp_path: Path) -> None:
    record = drawn(tmp_path, square(1, 1, 5, 5))
    with pytest.raises(FileNotFoundError, match=r"image .*none\.png \(image_id 3\) not found"):
        make_mapper()({**record, "file_name": str(tmp_path / "none.png")})
    whole = Path(record["file_name"]).read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.png \(image_id 3\) cannot be read") as info:
            make_mapper()({**record, "file_name": str(tmp_path / "broken.png")})
        assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match=r"drawn\.png \(image_id 3\) is 32 x 24 .* as 33 x 24"):
        make_mapper()({**record, "width": 33})
    with pytest.raises(
        ValueError, match=r"drawn\.png .*: a person with \d+ keypoints.*'crowdpose'"
    ):
        make_mapper(skeleton="crowdpose")(record)


def test_areas_are_those_of_masks_times_what_the_image_is_enlarged_by(tmp_path: Path) -> None:
    polygon = square(4, 4, 16, 10)
    run_lengths = square(4, 4, 16, 10)
    pixels = np.zeros((24, 32), dtype=np.uint8, order="F")
    pixels[4:10, 4:16] = 1
    run_lengths["segmentation"] = mask_util.encode(pixels)
    two_parts = square(0, 0, 8, 8)
    # A triangle of 8 square pixels and a square of 4, whatever way round.
    two_parts["segmentation"] = [[0, 0, 4, 0, 0, 4], [6, 6, 6, 8, 8, 8, 8, 6]]
    told = square(4, 4, 16, 10, area=50.0)
    box_alone = without_mask(4, 4, 16, 10)
    crowd = square(20, 14, 30, 22, iscrowd=1)
    record = drawn(tmp_path, polygon, crowd, run_lengths, two_parts, told, box_alone)
    plain = [72.0, 72.0, 12.0, 50.0, 0.53 * 72]
    for transforms, factor in (
        ([T.NoOpTransform()], 1.0),
        ([T.ResizeTransform(24, 32, 48, 96)], 6.0),
        ([T.RandomFlip(prob=1.0), T.ResizeTransform(24, 32, 12, 16)], 0.25),
        # Cut off or not, the area is the whole person's.
        ([T.CropTransform(6, 2, 20, 20)], 1.0),
        ([AffineTransform(np.array([[0.6, -0.8, 9.0], [0.8, 0.6, 2.0]]) * 1.5, (40, 50))], 2.25),
    ):
        areas = make_mapper(*transforms)(record)["instances"].gt_areas
        expected = torch.tensor(plain) * factor
        torch.testing.assert_close(areas, expected, rtol=1e-5, atol=1e-4)
