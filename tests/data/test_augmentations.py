"""Crops about people: where a point of the image goes, by drawing it and finding it again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from mpn_d2.config import add_mpn_config
from mpn_d2.data import MASK_STRIDE, PoseDatasetMapper, load_pose_dicts, register_pose_datasets
from mpn_d2.data.augmentations import AffineTransform, PeopleCrop, build_augmentations
from mpn_d2.data.person_boxes import move_boxes
from mpn_d2.structures.skeleton import get_skeleton

COCO = get_skeleton("coco")
RESIZE = T.ResizeShortestEdge((100,), 200, "choice")


def _crop(**changes: object) -> PeopleCrop:
    values = {
        "size": 97,
        "center": "person",
        "jitter": 0.0,
        "person_height": 40.0,
        "scale_factor": (1.0, 1.0),
        "rotation": 0.0,
        "resize": RESIZE,
    }
    return PeopleCrop(**{**values, **changes})


def _turn(
    angle: float, scale: float, center: tuple, to: tuple, size: tuple[int, int]
) -> AffineTransform:
    """Turns by degrees about `center`, which goes to `to`."""
    c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    linear = np.array([[c, -s], [s, c]])
    return AffineTransform(np.column_stack([linear, np.array(to) - linear @ center]), size)


def _blob(size: tuple[int, int], point: tuple[float, float], sigma: float) -> np.ndarray:
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    gauss = np.exp(-((x - point[0]) ** 2 + (y[:, None] - point[1]) ** 2) / (2 * sigma**2))
    return (gauss * 255).astype(np.float32)


def _centroid(image: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(image * x).sum(), (image * y).sum()]) / image.sum()


# ------------------------------------------------------------------- the affine transform


@pytest.mark.parametrize(
    ("angle", "scale"),
    [(0, 1), (0, 0.5), (0, 0.31), (0, 1.7), (17.3, 1), (-40, 0.8), (90, 1.2), (33, 0.4)],
)
def test_a_drawn_point_is_found_where_its_coordinates_go(angle: float, scale: float) -> None:
    point = (60.37, 48.81)
    transform = _turn(angle, scale, (57, 50), (41.3, 44.6), (91, 83))
    image = _blob((101, 113), point, 3.0 / min(scale, 1)) + 0.0
    # The border of 128 is taken off by the difference of two pictures.
    moved = transform.apply_image(image) - transform.apply_image(np.zeros_like(image))
    assert moved.shape == (91, 83)
    expected = transform.apply_coords(np.array([point]))[0]
    assert np.abs(_centroid(moved) - expected).max() < 0.05


def test_there_and_back_again() -> None:
    """Round trip of a point and of a picture through a turn and its inverse."""
    there = _turn(28, 1.3, (40, 30), (60, 55), (121, 131))
    full = np.vstack([there.matrix, [0, 0, 1]])
    back = AffineTransform(np.linalg.inv(full)[:2], (77, 91))
    points = np.random.default_rng(0).random((20, 2)) * 70
    np.testing.assert_allclose(back.apply_coords(there.apply_coords(points)), points, atol=1e-9)
    image = _blob((77, 91), (41.2, 33.7), 6.0)
    again = back.apply_image(there.apply_image(image))
    middle = np.s_[14:54, 21:61]
    assert np.abs(again - image)[middle].max() < 4  # of 255; twice interpolated
    blob = np.where(image > 10, again, 0)
    assert np.abs(_centroid(blob) - _centroid(np.where(image > 10, image, 0))).max() < 0.05


@pytest.mark.parametrize("scale", [0.7, 1.6])
def test_pixels_against_explicit_inverse_mapping(scale: float) -> None:
    image = np.random.default_rng(1).integers(0, 256, (13, 17, 3)).astype(np.uint8)
    transform = _turn(25, scale, (8, 6), (9.2, 7.7), (15, 19))
    out = transform.apply_image(image)
    inverse = np.linalg.inv(transform.matrix[:, :2])

    def pixel(y: int, x: int) -> np.ndarray:
        inside = 0 <= y < 13 and 0 <= x < 17
        return image[y, x].astype(float) if inside else np.full(3, 128.0)

    nearest = transform.apply_segmentation(image[..., 0])
    differ = 0
    for y in range(15):
        for x in range(19):
            sx, sy = inverse @ (np.array([x + 0.5, y + 0.5]) - transform.matrix[:, 2]) - 0.5
            x0, y0 = math.floor(sx), math.floor(sy)
            fx, fy = sx - x0, sy - y0
            value = (
                pixel(y0, x0) * (1 - fx) * (1 - fy)
                + pixel(y0, x0 + 1) * fx * (1 - fy)
                + pixel(y0 + 1, x0) * (1 - fx) * fy
                + pixel(y0 + 1, x0 + 1) * fx * fy
            )
            # OpenCV rounds places to 1/32 pixel.
            assert np.abs(out[y, x] - value).max() <= 12, (y, x)
            xn, yn = math.floor(sx + 0.5), math.floor(sy + 0.5)
            inside = 0 <= yn < 13 and 0 <= xn < 17
            differ += nearest[y, x] != (image[yn, xn, 0] if inside else 0)
    assert differ <= 6  # ties


def test_shrinking_averages_what_it_leaves_out() -> None:
    stripes = np.zeros((60, 61), np.uint8)
    stripes[:, ::3] = 255
    moved = _turn(0, 1 / 3, (0, 0), (0, 0), (20, 20)).apply_image(stripes)
    assert np.abs(moved[1:-1, 1:-1].astype(int) - 85).max() <= 1


def test_outside_is_grey_and_no_mask() -> None:
    transform = _turn(0, 1, (0, 0), (5, 0), (4, 8))
    assert (transform.apply_image(np.zeros((4, 8, 3), np.uint8))[:, :5] == 128).all()
    mask = transform.apply_segmentation(np.ones((4, 8), np.uint8))
    assert mask[:, 5:].all() and not mask[:, :5].any()
    assert transform.apply_coords(np.zeros((0, 2))).shape == (0, 2)


# ------------------------------------------------------------------------------ PeopleCrop


def test_the_main_person_is_in_the_middle_at_the_height_asked_for() -> None:
    image = np.zeros((80, 120, 3), np.uint8)
    boxes = np.array([[60.0, 10, 100, 70], [5, 5, 10, 12]])  # the second is too small
    for _ in range(5):
        transform = _crop().get_transform(image, boxes)
        (box,) = transform.apply_box(boxes[:1])
        np.testing.assert_allclose(box[3] - box[1], 40)
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, 97 / 2)
    # All small: one of them; hardly anybody is enlarged without limit.
    tiny = _crop().get_transform(image, boxes[1:])
    assert np.linalg.det(tiny.matrix[:, :2]) == pytest.approx(25)


def test_each_large_person_is_the_main_one_at_times() -> None:
    image = np.zeros((80, 240, 3), np.uint8)
    boxes = np.array([[0.0, 0, 50, 80], [60, 0, 110, 80], [120, 0, 170, 80]])
    middles = set()
    for _ in range(40):
        transform = _crop(person_height=80.0).get_transform(image, boxes)
        moved = transform.apply_coords((boxes[:, :2] + boxes[:, 2:]) / 2)
        middles.add(int(np.abs(moved - 97 / 2).sum(axis=1).argmin()))
    assert middles == {0, 1, 2}


def test_crowd_crop_takes_all_and_the_tallest() -> None:
    boxes = np.array([[10.0, 20, 50, 60], [70, 10, 90, 90], [30, 30, 33, 33]])
    transform = _crop(center="crowd").get_transform(np.zeros((100, 100, 3), np.uint8), boxes)
    np.testing.assert_allclose(transform.apply_coords(np.array([[50.0, 50.0]])), 97 / 2)
    assert np.linalg.det(transform.matrix[:, :2]) == pytest.approx((40 / 80) ** 2)


def test_ranges_of_scale_angle_and_jitter() -> None:
    boxes = np.array([[20.0, 10, 60, 70]])
    crop = _crop(jitter=7.0, scale_factor=(0.5, 2.0), rotation=30.0, person_height=60.0)
    scales, angles, shifts = [], [], []
    for _ in range(400):
        matrix = crop.get_transform(np.zeros((80, 80, 3), np.uint8), boxes).matrix
        scales.append(math.sqrt(np.linalg.det(matrix[:, :2])))
        angles.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
        shifts.append(matrix[:, :2] @ [40, 40] + matrix[:, 2] - 97 / 2)
    for values, low, high in ((scales, 0.5, 2), (angles, -30, 30), (shifts, -7, 7)):
        width = high - low
        assert low <= np.min(values) < low + 0.05 * width
        assert high - 0.05 * width < np.max(values) <= high


def test_without_people_or_height_the_scale_is_that_of_resize() -> None:
    image = np.zeros((50, 80, 3), np.uint8)
    boxes = np.array([[20.0, 10, 60, 50]])
    for crop, people in ((_crop(), np.zeros((0, 4))), (_crop(person_height=0.0), boxes)):
        transform = crop.get_transform(image, people)
        assert np.linalg.det(transform.matrix[:, :2]) == pytest.approx(4)
    np.testing.assert_allclose(
        _crop().get_transform(image, boxes[:0]).apply_coords(np.array([[40.0, 25.0]])), 97 / 2
    )
    as_it_is = _crop(resize=T.ResizeShortestEdge((0,), 9, "choice"))
    assert np.linalg.det(as_it_is.get_transform(image, boxes[:0]).matrix[:, :2]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AUGMENTATION": "crops"}, r"INPUT\.AUGMENTATION is 'crops'.*resize, crop"),
        ({"CROP_CENTER": "men"}, r"INPUT\.CROP_CENTER is 'men'.*person, crowd, either"),
        ({"CROP_SIZE": 0}, r"INPUT\.CROP_SIZE is 0"),
        ({"SCALE_FACTOR": (1.2, 0.8)}, r"INPUT\.SCALE_FACTOR is \(1\.2, 0\.8\)"),
        ({"SCALE_FACTOR": (1.0,)}, r"INPUT\.SCALE_FACTOR"),
        ({"ROTATION": -3.0}, r"INPUT\.ROTATION is -3\.0"),
    ],
)
def test_impossible_settings_are_named(cfg: CfgNode, changes: dict, message: str) -> None:
    for key, value in changes.items():
        cfg.INPUT[key] = value
    with pytest.raises(ValueError, match=message):
        build_augmentations(cfg, is_train=True)
    assert len(build_augmentations(cfg, is_train=False)) == 1


# --------------------------------------------------------------------------- in the mapper


@pytest.fixture()
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_mpn_config(cfg)
    cfg.INPUT.AUGMENTATION = "crop"
    cfg.INPUT.CROP_SIZE = 237  # odd, and no multiple of the stride
    cfg.INPUT.PERSON_HEIGHT = 150.0
    return cfg


@pytest.fixture(scope="module")
def sample() -> list[dict]:
    register_pose_datasets()
    return load_pose_dicts("coco_sample_train", is_train=True)


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
    mapper = PoseDatasetMapper(
        is_train=True,
        augmentations=[recorded],
        image_format="RGB",
        skeleton=COCO,
        with_annotations=True,
    )
    return mapper, recorded


def _decoded(annotations: list[dict], size: tuple[int, int]) -> np.ndarray:
    import pycocotools.mask as mask_util

    mask = np.zeros(size, bool)
    for a in annotations:
        rle = a["segmentation"]
        if isinstance(rle, list):
            rle = mask_util.merge(mask_util.frPyObjects(rle, *size))
        mask |= mask_util.decode(rle).astype(bool)
    return mask


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
    known, unknown = _decoded(labelled, size), _decoded(others, size)
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
        mask = _decoded(record["annotations"], (record["height"], record["width"]))
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


def _drawn(tmp_path: Path, *annotations: dict) -> dict:
    file = tmp_path / "drawn.png"
    Image.new("RGB", (61, 47), (9, 8, 7)).save(file)
    record = {"file_name": str(file), "height": 47, "width": 61, "image_id": 3}
    return {**record, "annotations": list(annotations)}


def _person(x1: float, y1: float, x2: float, y2: float, **changes: object) -> dict:
    person = {"bbox": [x1, y1, x2, y2], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    joints = [(x1 + x2) / 2, (y1 + y2) / 2, 2] + [0.5, 0.5, 0] * (COCO.num_keypoints - 1)
    return {**person, "iscrowd": 0, "keypoints": joints, **changes}


def test_no_people_and_crowds_alone(tmp_path: Path, cfg: CfgNode) -> None:
    mapper = PoseDatasetMapper(cfg, is_train=True)
    for people in ([], [_person(10, 10, 40, 40, iscrowd=1)]):
        out = mapper(_drawn(tmp_path, *people))
        assert out["image"].shape == (3, 237, 237) and len(out["instances"]) == 0
        assert not out["person_mask"].any()  # the crowd has no mask
        assert bool(out["ignore_mask"].any()) == bool(people)


def test_a_turned_box_without_mask_is_ignored_as_the_turned_box(tmp_path: Path) -> None:
    turn = _turn(45, 1.0, (30, 24), (40, 40), (80, 80))
    mapper = PoseDatasetMapper(
        is_train=True,
        augmentations=[turn],
        image_format="RGB",
        skeleton=COCO,
        with_annotations=True,
    )
    unlabelled = _person(18, 12, 42, 36, keypoints=[0, 0, 0] * COCO.num_keypoints)
    out = mapper(_drawn(tmp_path, unlabelled))
    y, x = np.mgrid[:20, :20] * 4.0 + 2
    diamond = np.abs(x - 40) + np.abs(y - 40)
    edge = 12 * math.sqrt(2)
    ignored = out["ignore_mask"].numpy() == 1
    assert ignored[diamond < edge - 3].all() and not ignored[diamond > edge + 3].any()


def test_boxes_of_turned_people() -> None:
    turn = _turn(30, 1.0, (50, 50), (50, 50), (100, 100))
    box = np.array([[40.0, 20, 60, 80]])

    def moved(**changes: object) -> np.ndarray:
        return move_boxes([_person(*box[0], **changes)], box, turn, (100, 100))[0]

    # The ellipse in the box, by its formula, and no joint outside it.
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    half = np.array([math.hypot(10 * c, 30 * s), math.hypot(10 * s, 30 * c)])
    np.testing.assert_allclose(moved(), [*(50 - half), *(50 + half)], atol=0.05)
    corner = [41.0, 21.0, 1] + [0, 0, 0] * (COCO.num_keypoints - 1)
    ((x, y),) = turn.apply_coords(np.array([[41.0, 21.0]]))
    assert moved(keypoints=corner)[1] == pytest.approx(min(y, 50 - half[1]))
    assert moved(keypoints=corner)[0] == pytest.approx(min(x, 50 - half[0]), abs=0.05)
    # A mask that fills the box gives the box; one of a part of the person does not.
    diamond = [[50, 20, 60, 50, 50, 80, 40, 50]]
    points = turn.apply_coords(np.array(diamond, float).reshape(-1, 2))
    np.testing.assert_allclose(moved(segmentation=diamond), [*points.min(0), *points.max(0)])
    np.testing.assert_allclose(moved(segmentation=[[50, 20, 60, 30, 50, 40]]), moved())
    # Crowds keep the corners' box; and a transform that turns nothing keeps the box exactly.
    np.testing.assert_allclose(moved(iscrowd=1), turn.apply_box(box)[0])
    grown = _turn(0, 1.5, (0, 0), (1, 2), (100, 100))
    person = _person(*box[0], segmentation=diamond)
    np.testing.assert_allclose(move_boxes([person], box, grown, (9, 9))[0], [61, 32, 91, 122])
    assert move_boxes([], np.zeros((0, 4)), turn, (9, 9)).shape == (0, 4)
