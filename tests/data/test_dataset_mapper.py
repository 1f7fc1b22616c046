"""The mapper against direct computation on the bundled sample, and drawn ignore-region cases."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from mpn_d2.config import add_mpn_config
from mpn_d2.data import MASK_STRIDE, PoseDatasetMapper, load_pose_dicts, register_pose_datasets
from mpn_d2.data.person_masks import box_outline, mask_points, reduce_to_cells, union_mask
from mpn_d2.structures.ground_truth import gt_boxes
from mpn_d2.structures.skeleton import get_skeleton

COCO = get_skeleton("coco")


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_mpn_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN = (203,)
    cfg.INPUT.MIN_SIZE_TEST = 203
    cfg.INPUT.FLIP_PROB = 0.0
    return cfg


@pytest.fixture(scope="module")
def sample() -> list[dict]:
    register_pose_datasets()
    return load_pose_dicts("coco_sample_train", is_train=True)


def _mapper(*augmentations: T.Augmentation, skeleton: str = "coco") -> PoseDatasetMapper:
    return PoseDatasetMapper(
        is_train=True,
        augmentations=augmentations,
        image_format="BGR",
        skeleton=get_skeleton(skeleton),
        with_annotations=True,
    )


def _drawn(tmp_path: Path, *annotations: dict, size: tuple[int, int] = (24, 32)) -> dict:
    file = tmp_path / "drawn.png"
    pixels = np.arange(size[0] * size[1] * 3) % 251
    Image.fromarray(pixels.reshape(*size, 3).astype(np.uint8)).save(file)
    record = {"file_name": str(file), "height": size[0], "width": size[1], "image_id": 3}
    return {**record, "annotations": list(annotations)}


def _square(x1: float, y1: float, x2: float, y2: float, joints: int = 1, **changes: object) -> dict:
    """A person who is a rectangle, with `joints` labelled keypoints in its middle."""
    joint = [(x1 + x2) / 2, (y1 + y2) / 2, 2]
    person = {
        "bbox": [x1, y1, x2, y2],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "iscrowd": 0,
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        "keypoints": joint * joints + [0.5, 0.5, 0] * (COCO.num_keypoints - joints),
    }
    return {**person, **changes}


def _cells(mask: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(y), int(x)) for y, x in mask.nonzero()}


def _block(y1: int, x1: int, y2: int, x2: int) -> set[tuple[int, int]]:
    return {(y, x) for y in range(y1, y2) for x in range(x1, x2)}


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
            _mapper(*a)(record) for a in ([resize], [resize, flip], [resize, flip, flip])
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
    person = _square(4, 4, 20, 20, joints=0)
    wrist = COCO.keypoint_names.index(f"{half}_wrist")
    person["keypoints"][3 * wrist : 3 * wrist + 3] = [5.5, 9.5, 1]
    out = _mapper(T.RandomFlip(prob=1.0))(_drawn(tmp_path, person))
    joints = out["instances"].gt_keypoints.tensor[0]
    other = COCO.keypoint_names.index({"left": "right", "right": "left"}[half] + "_wrist")
    assert joints[other].tolist() == [32 - 5.5, 9.5, 1]
    assert int((joints != 0).any(dim=1).sum()) == 1


def test_joints_and_people_outside_a_crop(tmp_path: Path) -> None:
    inside = _square(4, 4, 16, 16)
    inside["keypoints"][3:6] = [25.5, 3.5, 2]  # labelled, falls out of the crop
    record = _drawn(tmp_path, inside, _square(25, 18, 31, 23), _square(24, 0, 28, 4, iscrowd=1))
    crop = T.CropTransform(8, 8, 12, 13)
    out = _mapper(crop)(record)
    instances = out["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 8, 8]]
    joints = instances.gt_keypoints.tensor[0]
    assert joints[0].tolist() == [2, 2, 2]
    assert not joints[1:].any()
    assert out["crowd_boxes"].shape == (0, 4)
    assert out["person_mask"].shape == (4, 3)  # 13 x 12 pixels
    assert _cells(out["person_mask"]) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_masks_against_decoding_at_the_files_size(sample: list[dict]) -> None:
    """No resize: cells are counted pixel by pixel from each annotation's own mask."""
    mapper = _mapper()
    for record in sample[:4]:
        out = mapper(record)
        size = record["height"], record["width"]
        labelled, others = np.zeros(size, bool), np.zeros(size, bool)
        for a in record["annotations"]:
            rle = a["segmentation"]
            if isinstance(rle, list):
                rle = mask_util.merge(mask_util.frPyObjects(rle, *size))
            mask = mask_util.decode(rle).astype(bool)
            if not a["iscrowd"] and any(v > 0 for v in a["keypoints"][2::3]):
                labelled |= mask
            else:
                others |= mask
        for key, mask in (("person_mask", labelled | others), ("ignore_mask", others & ~labelled)):
            assert out[key].dtype == torch.uint8
            assert out[key].shape == (-(-size[0] // MASK_STRIDE), -(-size[1] // MASK_STRIDE))
            for y in range(0, size[0], 4 * MASK_STRIDE):
                for x in range(0, size[1], MASK_STRIDE):
                    share = mask[y : y + MASK_STRIDE, x : x + MASK_STRIDE].mean()
                    assert out[key][y // MASK_STRIDE, x // MASK_STRIDE] == (share >= 0.5)


def test_resized_masks_cover_what_the_file_shows(sample: list[dict], cfg: CfgNode) -> None:
    """At another size the areas agree with those of the file's pixels."""
    mapper = PoseDatasetMapper(cfg, is_train=True)
    full = _mapper()
    for record in sample:
        small, large = mapper(record), full(record)
        for key in ("person_mask", "ignore_mask"):
            difference = small[key].float().mean() - large[key].float().mean()
            assert abs(float(difference)) < 0.01, (record["file_name"], key)


def test_polygon_pixels_are_those_whose_centre_lies_inside() -> None:
    polygon = np.array([[1.2, 0.7], [13.6, 3.1], [9.4, 10.8], [2.3, 8.2]])
    mask = union_mask([{"segmentation": [polygon.reshape(-1).tolist()]}], (12, 15))
    wrong = 0
    for y in range(12):
        for x in range(15):
            inside = False
            for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, 1, axis=0), strict=True):
                if (y1 > y + 0.5) != (y2 > y + 0.5):
                    inside ^= x + 0.5 < x1 + (y + 0.5 - y1) / (y2 - y1) * (x2 - x1)
            wrong += inside != bool(mask[y, x])
    assert wrong <= 2  # pycocotools rounds to a fifth of a pixel
    assert mask.sum() > 70


def test_rle_follows_the_transform_and_is_checked(tmp_path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8, order="F")
    mask[4:12, 8:16] = 1
    packed = mask_util.encode(mask)
    counts = [8 * 24 + 4, 8] + [16, 8] * 7 + [16 * 24 - 4 + 8]
    counts[-1] = 24 * 32 - sum(counts[:-1])
    for rle in (packed, {"size": [24, 32], "counts": counts}):
        crowd = _square(8, 4, 16, 12, iscrowd=1, segmentation=rle)
        out = _mapper(T.RandomFlip(prob=1.0))(_drawn(tmp_path, crowd))
        assert _cells(out["person_mask"]) == _block(1, 4, 3, 6)
        assert _cells(out["ignore_mask"]) == _block(1, 4, 3, 6)
        assert out["crowd_boxes"].tolist() == [[16, 4, 24, 12]]
    with pytest.raises(ValueError, match=r"drawn\.png \(image_id 3\): RLE mask of size \(24, 32\)"):
        _mapper()(_drawn(tmp_path, crowd, size=(24, 28)))


def test_ignore_region_cases(tmp_path: Path) -> None:
    annotated = _square(0, 0, 8, 8)
    crowd = _square(4, 0, 16, 8, iscrowd=1, joints=0)
    unlabelled = _square(4, 4, 16, 16, joints=0)
    without_mask = {
        k: v for k, v in _square(20, 12, 28, 20, joints=0).items() if k != "segmentation"
    }

    def cells(*annotations: dict) -> tuple[set, set]:
        out = _mapper()(_drawn(tmp_path, *annotations))
        assert not (out["ignore_mask"] == 2).any()
        return _cells(out["person_mask"]), _cells(out["ignore_mask"])

    assert cells() == (set(), set())
    assert cells(annotated) == (_block(0, 0, 2, 2), set())
    assert cells(crowd) == (_block(0, 1, 2, 4), _block(0, 1, 2, 4))
    # An annotated person wins over crowds and over people without keypoints.
    assert cells(annotated, crowd) == (_block(0, 0, 2, 4), _block(0, 2, 2, 4))
    assert cells(unlabelled, annotated) == (
        _block(0, 0, 2, 2) | _block(1, 1, 4, 4),
        _block(1, 1, 4, 4) - {(1, 1)},
    )
    # Without a mask the box is ignored; the person mask shows masks alone.
    assert cells(without_mask) == (set(), _block(3, 5, 5, 7))
    # A two-point "polygon" is no mask.
    point = _square(20, 12, 28, 20, joints=0, segmentation=[[20, 12, 28, 20]])
    assert cells(point) == (set(), _block(3, 5, 5, 7))
    without_list = {k: v for k, v in unlabelled.items() if k != "keypoints"}
    assert cells(without_list) == (_block(1, 1, 4, 4), _block(1, 1, 4, 4))


def test_joints_known_but_no_mask(tmp_path: Path) -> None:
    """Ignored for the person mask (2), not for the heatmaps (1)."""

    def without_mask(*box: float, **changes: object) -> dict:
        return {k: v for k, v in _square(*box, **changes).items() if k != "segmentation"}

    def ignored(*annotations: dict) -> tuple[set, set, set]:
        out = _mapper()(_drawn(tmp_path, *annotations))
        assert out["ignore_mask"].dtype == torch.uint8
        both = (_cells(out["ignore_mask"] == value) for value in (1, 2))
        return _cells(out["person_mask"]), *both

    known = without_mask(20, 0, 28, 8)
    assert ignored(known) == (set(), set(), _block(0, 5, 2, 7))
    two_points = _square(20, 0, 28, 8, segmentation=[[20, 0, 28, 8]])
    assert ignored(two_points) == (set(), set(), _block(0, 5, 2, 7))
    # Masks of people with joints are known to be people, whoever else's box is there.
    with_mask = _square(24, 0, 32, 4)
    assert ignored(known, with_mask) == (
        _block(0, 6, 1, 8),
        set(),
        _block(0, 5, 2, 7) - {(0, 6)},
    )
    # What heatmaps ignore wins: crowds and people without joints, with a mask and without.
    for other in (
        _square(24, 4, 32, 12, joints=0),
        _square(24, 4, 32, 12, iscrowd=1),
        without_mask(24, 4, 32, 12, joints=0),
    ):
        person = set() if "segmentation" not in other else _block(1, 6, 3, 8)
        assert ignored(known, other) == (
            person,
            _block(1, 6, 3, 8),
            _block(0, 5, 2, 7) - {(1, 6)},
        )
    # A quarter of the cell for both, a quarter for the mask alone: half of it for the mask.
    parts = without_mask(0, 0, 2, 2, joints=0), without_mask(2, 0, 4, 2)
    assert ignored(*parts) == (set(), set(), {(0, 0)})
    flipped = _mapper(T.RandomFlip(prob=1.0))(_drawn(tmp_path, known))
    assert _cells(flipped["ignore_mask"] == 2) == _block(0, 1, 2, 3)


def test_joints_without_a_box_are_ignored(tmp_path: Path) -> None:
    def ignored(*annotations: dict, crop: T.Transform | None = None) -> tuple[int, set, set]:
        out = _mapper(crop or T.NoOpTransform())(_drawn(tmp_path, *annotations, size=(96, 128)))
        assert not (out["ignore_mask"] == 2).any()
        return len(out["instances"]), _cells(out["person_mask"]), _cells(out["ignore_mask"])

    def joints(*points: tuple[float, float]) -> dict:
        """Somebody with these joints, without a mask and with a box of no area."""
        keypoints = [value for x, y in points for value in (x, y, 2)]
        keypoints += [0, 0, 0] * (COCO.num_keypoints - len(points))
        person = _square(60, 40, 60, 90, keypoints=keypoints)
        return {k: v for k, v in person.items() if k != "segmentation"}

    # By the mask where there is one, wherever the box is.
    for box in ([8, 8, 8, 24], [130, 8, 150, 24], [-9, 8, 0, 24]):
        with_mask = _square(8, 8, 24, 24, bbox=box)
        assert ignored(with_mask) == (0, _block(2, 2, 6, 6), _block(2, 2, 6, 6))
    # Else 16 pixels around the joints; those outside of the image do not count.
    assert ignored(joints((40, 40))) == (0, set(), _block(6, 6, 14, 14))
    assert ignored(joints((40, 40), (64, 48), (300, 40))) == (0, set(), _block(6, 6, 16, 20))
    assert ignored(joints((4, 92))) == (0, set(), _block(19, 0, 24, 5))
    assert ignored(joints((-4, 40), (300, 40))) == (0, set(), set())
    assert ignored(joints()) == (0, set(), set())
    # Masks of people with box and joints win.
    assert ignored(_square(32, 32, 48, 48), joints((40, 40))) == (
        1,
        _block(8, 8, 12, 12),
        _block(6, 6, 14, 14) - _block(8, 8, 12, 12),
    )
    # A crop that leaves somebody out knows that no joint is there; one outside of their box may be.
    crop = T.CropTransform(64, 0, 64, 96)
    apart = {k: v for k, v in _square(20, 20, 62, 90).items() if k != "segmentation"}
    assert ignored(apart, crop=crop) == (0, set(), set())
    apart["keypoints"][:3] = [104, 40, 1]
    assert ignored(apart, crop=crop) == (0, set(), _block(6, 6, 14, 14))
    assert ignored(apart | {"keypoints": None}, crop=crop) == (0, set(), set())


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (13, 10)])
def test_cells_at_odd_sizes(size: tuple[int, int]) -> None:
    mask = (np.random.default_rng(0).random(size) < 0.5).astype(np.uint8)
    cells = reduce_to_cells(mask, 4)
    assert cells.shape == (-(-size[0] // 4), -(-size[1] // 4))
    for y in range(cells.shape[0]):
        for x in range(cells.shape[1]):
            assert cells[y, x] == (mask[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean() >= 0.5)


def test_box_as_a_mask_takes_pixel_centres_and_is_cut() -> None:
    boxes = np.array([[0.2, 0.7, 2.3, 2.2], [5, -3, 99, 1.7], [3, 3, 3, 3]])
    expected = np.zeros((4, 7), np.uint8)
    expected[1:2, 0:2] = 1
    expected[0:2, 5:7] = 1
    np.testing.assert_array_equal(union_mask([box_outline(b) for b in boxes], (4, 7)), expected)


def test_points_of_polygons_and_rle_hold_the_mask() -> None:
    mask = np.zeros((9, 11), np.uint8, order="F")
    mask[2, 3:5] = mask[3:6, 1] = 1
    points = mask_points({"segmentation": mask_util.encode(mask)}, (9, 11))
    assert points.min(0).tolist() == [1, 2] and points.max(0).tolist() == [5, 6]
    # Each row is in, at both of its edges.
    assert {(3, 2), (5, 2), (3, 3), (5, 3), (1, 6), (2, 6)} <= {tuple(p) for p in points.tolist()}
    polygons = [[0, 1, 2, 1, 2, 3], [1, 1, 2, 2], [5.5, 5, 6, 5, 6, 7]]
    assert len(mask_points({"segmentation": polygons}, (9, 11))) == 6
    for nothing in ({}, {"segmentation": [[1, 1, 2, 2]]}, {"segmentation": []}):
        assert mask_points(nothing, (9, 11)).shape == (0, 2)
    empty = mask_util.encode(np.zeros((9, 11), np.uint8, order="F"))
    assert mask_points({"segmentation": empty}, (9, 11)).shape == (0, 2)


def test_image_without_people(tmp_path: Path) -> None:
    out = _mapper(T.RandomFlip(prob=1.0))(_drawn(tmp_path, size=(9, 6)))
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
    record = _drawn(tmp_path, _square(1, 1, 5, 5))
    with pytest.raises(FileNotFoundError, match=r"image .*none\.png \(image_id 3\) not found"):
        _mapper()({**record, "file_name": str(tmp_path / "none.png")})
    whole = Path(record["file_name"]).read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.png \(image_id 3\) cannot be read") as info:
            _mapper()({**record, "file_name": str(tmp_path / "broken.png")})
        assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match=r"drawn\.png \(image_id 3\) is 32 x 24 .* as 33 x 24"):
        _mapper()({**record, "width": 33})
    with pytest.raises(
        ValueError, match=r"drawn\.png .*: a person with \d+ keypoints.*'crowdpose'"
    ):
        _mapper(skeleton="crowdpose")(record)
