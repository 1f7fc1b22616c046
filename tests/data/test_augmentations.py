"""Turns and crops: where a point of the image goes, by drawing it and finding it again.

With joints, boxes and masks: test_mapped_crops.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from mapper_cases import turn

from mpn_d2.data.augmentations import AffineTransform, PeopleCrop, build_augmentations

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
    transform = turn(angle, scale, (57, 50), (41.3, 44.6), (91, 83))
    image = _blob((101, 113), point, 3.0 / min(scale, 1)) + 0.0
    # The border of 128 is taken off by the difference of two pictures.
    moved = transform.apply_image(image) - transform.apply_image(np.zeros_like(image))
    assert moved.shape == (91, 83)
    expected = transform.apply_coords(np.array([point]))[0]
    assert np.abs(_centroid(moved) - expected).max() < 0.05


def test_there_and_back_again() -> None:
    """Round trip of a point and of a picture through a turn and its inverse."""
    there = turn(28, 1.3, (40, 30), (60, 55), (121, 131))
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
    transform = turn(25, scale, (8, 6), (9.2, 7.7), (15, 19))
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
    moved = turn(0, 1 / 3, (0, 0), (0, 0), (20, 20)).apply_image(stripes)
    assert np.abs(moved[1:-1, 1:-1].astype(int) - 85).max() <= 1


def test_outside_is_grey_and_no_mask() -> None:
    transform = turn(0, 1, (0, 0), (5, 0), (4, 8))
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


def test_resize_crop_cuts_a_square_out_of_the_resized_image(cfg: CfgNode) -> None:
    cfg.INPUT.AUGMENTATION, cfg.INPUT.CROP_SIZE, cfg.INPUT.FLIP_PROB = "resize_crop", 80, 0.0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (100,), 150
    columns = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (64, 128, 3))
    starts = set()
    for _ in range(12):
        given = T.AugInput(np.ascontiguousarray(columns))
        transforms = T.AugmentationList(build_augmentations(cfg, is_train=True))(given)
        # 64 x 128 becomes 75 x 150, of whose height the square has all.
        assert given.image.shape == (75, 80, 3)
        x = transforms.apply_coords(np.array([[64.0, 32.0]]))[0]
        assert x[1] == 37.5
        starts.add(75 - x[0])
        if 0 < x[0] < 80:
            assert abs(int(given.image[40, int(x[0]), 0]) - 64) <= 1
    assert len(starts) > 4 and min(starts) >= 0 and max(starts) <= 70


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AUGMENTATION": "resize_crop", "CROP_SIZE": 0}, r"INPUT\.CROP_SIZE is 0"),
        ({"AUGMENTATION": "crops"}, r"INPUT\.AUGMENTATION is 'crops'.*resize, resize_crop, crop"),
        ({"CROP_CENTER": "men"}, r"INPUT\.CROP_CENTER is 'men'.*person, crowd, either"),
        ({"CROP_SIZE": 0}, r"INPUT\.CROP_SIZE is 0"),
        ({"SCALE_FACTOR": (1.2, 0.8)}, r"INPUT\.SCALE_FACTOR is \(1\.2, 0\.8\)"),
        ({"SCALE_FACTOR": (1.0,)}, r"INPUT\.SCALE_FACTOR"),
        ({"ROTATION": -3.0}, r"INPUT\.ROTATION is -3\.0"),
    ],
)
def test_impossible_settings_are_named(cfg: CfgNode, changes: dict, message: str) -> None:
    cfg.INPUT.AUGMENTATION = "crop"
    for key, value in changes.items():
        cfg.INPUT[key] = value
    with pytest.raises(ValueError, match=message):
        build_augmentations(cfg, is_train=True)
    assert len(build_augmentations(cfg, is_train=False)) == 1


# ------------------------------------------------------------------- colours


def test_colours_change_as_much_as_wanted_and_geometry_does_not(paper_config) -> None:
    cfg = paper_config("quick/demo.yaml", ["INPUT.AUGMENTATION", "resize"])
    plain = build_augmentations(cfg, is_train=True)
    cfg.INPUT.COLOR_JITTER = 0.2
    jittered = build_augmentations(cfg, is_train=True)
    # Brightness alone on a grey image: contrast and saturation keep it as it is.
    grey = np.full((20, 30, 3), 100, np.uint8)
    values = set()
    for _ in range(30):
        augmented = T.AugInput(grey)
        for transform in jittered[len(plain) :]:
            transform(augmented)
        assert augmented.image.shape == grey.shape
        values.add(round(float(augmented.image.mean())))
    # Detectron2 cuts off the fractions of each of the three.
    assert min(values) >= 77 and max(values) <= 120 and len(values) > 8
    assert len(build_augmentations(cfg, is_train=False)) == 1
    cfg.INPUT.COLOR_JITTER = 1.0
    with pytest.raises(ValueError, match=r"INPUT\.COLOR_JITTER is 1\.0"):
        build_augmentations(cfg, is_train=True)
