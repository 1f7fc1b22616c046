"""Pictures of people: what is drawn where, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, Keypoints

from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils import visualize
from mpn_d2.utils.visualize import draw_annotations, draw_people, track_color, write_png

COCO = get_skeleton("coco")
GREY = np.full((120, 200, 3), 90, dtype=np.uint8)
# The nose is joined to nothing here; edges are drawn over the joints that they join.
JOINTS = {
    "nose": (160.0, 50.0),
    "left_shoulder": (130.0, 50.0),
    "left_elbow": (130.0, 80.0),
    "left_wrist": (160.0, 80.0),
}
EDGE = ("left_shoulder", "left_elbow")


def poses(joints: dict, last: float = 0.9, people: int = 1) -> torch.Tensor:
    keypoints = torch.zeros(people, COCO.num_keypoints, 3)
    for name, (x, y) in joints.items():
        keypoints[:, COCO.keypoint_names.index(name)] = torch.tensor([x, y, last])
    return keypoints


def person(joints: dict, score: float = 0.9, size: tuple[int, int] = (120, 200)) -> Instances:
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor([[100.0, 30.0, 180.0, 110.0]])),
        scores=torch.tensor([score]),
        pred_keypoints=poses(joints),
    )


def changed(picture: np.ndarray, image: np.ndarray = GREY) -> np.ndarray:
    assert picture.shape == image.shape and picture.dtype == np.uint8
    return (picture != image).any(axis=2)


def test_box_joints_and_edges_are_drawn_where_they_are():
    picture = draw_people(GREY, person(JOINTS), COCO)
    different = changed(picture)
    for x, y in JOINTS.values():
        assert different[int(y), int(x)]
    red = np.array([255, 0, 0])
    assert np.abs(picture[50, 160].astype(int) - red).max() < 40
    # The edge between shoulder and elbow has the left side's colour, and the box its outline.
    color = next(c for a, b, c in COCO.keypoint_connection_rules if (a, b) == EDGE)
    assert np.abs(picture[65, 130].astype(int) - color).max() < 40
    assert different[70, 99:101].any() and different[109:111, 140].any()
    # Nothing left of the box and its label: no line to the corner from joints without a place.
    assert not different[:, :90].any() and not different[:20].any()
    assert not different[100, 115]


def test_box_without_pose_is_a_box_only():
    with_zeros = draw_people(GREY, person({}), COCO)
    only_box = person({})
    only_box.remove("pred_keypoints")
    assert (with_zeros == draw_people(GREY, only_box, COCO)).all()
    assert changed(with_zeros).any() and not changed(with_zeros)[:20].any()


def test_score_threshold_and_no_people():
    people = person(JOINTS, score=0.4)
    assert not changed(draw_people(GREY, people, COCO)).any()
    assert changed(draw_people(GREY, people, COCO, score_threshold=0.4)).any()
    assert not changed(draw_people(GREY, people[:0], COCO)).any()


def test_inputs_stay_as_they_are_and_pictures_repeat():
    image, people = GREY.copy(), person(JOINTS)
    first = draw_people(image, people, COCO)
    assert (image == GREY).all() and (people.pred_keypoints == poses(JOINTS)).all()
    assert (first == draw_people(image, people, COCO)).all()


def test_mask_tints_the_person_and_nothing_else():
    p = torch.full((120, 200), 0.3)
    p[60:100, 20:60] = 0.7
    sem_seg = torch.stack([1 - p, p])
    picture = draw_people(GREY, person({})[:0], COCO, sem_seg)
    different = changed(picture)
    assert different[61:99, 21:59].all()
    assert not different[:58].any() and not different[:, :18].any() and not different[:, 62:].any()
    # Translucent: what lay under it still shows.
    striped = GREY.copy()
    striped[:, 40:] = 200
    under = draw_people(striped, person({})[:0], COCO, sem_seg)
    assert (under[80, 50].astype(int) - under[80, 30] > 40).all()
    assert not changed(draw_people(GREY, person({})[:0], COCO, sem_seg, mask_threshold=0.8)).any()
    assert changed(draw_people(GREY, person({})[:0], COCO, sem_seg, mask_threshold=0.2)).all()
    # Skeletons lie over it.
    over = draw_people(GREY, person(JOINTS), COCO, torch.ones(2, 120, 200))
    assert (over[50, 160] == draw_people(GREY, person(JOINTS), COCO)[50, 160]).all()


def test_masks_of_people_one_by_one():
    people = Instances.cat([person({}), person({})])
    people.pred_masks = torch.zeros(2, 120, 200, dtype=torch.bool)
    people.pred_masks[0, 60:100, 20:60] = True
    people.pred_masks[1, 10:50, 120:190] = True
    different = changed(draw_people(GREY, people, COCO, boxes=False))
    assert different[62:98, 22:58].all() and different[12:48, 122:188].all()
    assert not different[:, 70:110].any() and not different[60:, 70:].any()
    # Each in the colour of its box, translucent.
    picture = draw_people(GREY, people, COCO, boxes=False).astype(int) - GREY
    for number, pixel in ((0, picture[80, 40]), (1, picture[30, 150])):
        toward = np.array(track_color(number)) * 255 - 90
        assert np.abs(pixel - 0.3 * toward).max() < 3
    assert not changed(draw_people(GREY, people, COCO, boxes=False, masks=False)).any()
    assert not changed(draw_people(GREY, people[:0], COCO)).any()
    people.pred_masks = people.pred_masks[:, :50]
    with pytest.raises(ValueError, match=r"pred_masks are \(2, 50, 200\)"):
        draw_people(GREY, people, COCO)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (33, 101), (2, 3)])
def test_any_size_of_image(size: tuple[int, int]):
    image = np.zeros((*size, 3), dtype=np.uint8)
    whole = Instances(
        size,
        pred_boxes=Boxes(torch.tensor([[0.0, 0.0, size[1], size[0]]])),
        scores=torch.tensor([0.9]),
        pred_keypoints=poses({"nose": (0.5, 0.5)}),
    )
    assert draw_people(image, whole, COCO, torch.ones(2, *size)).shape == image.shape
    assert draw_people(image, whole[:0], COCO).shape == image.shape


def test_large_pictures_are_drawn_in_windows(monkeypatch):
    """The same picture, up to the softened pixels at the seams; and what lies far out is there."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (120, 200, 3), dtype=np.uint8)
    sem_seg = torch.from_numpy(rng.random((2, 120, 200), dtype=np.float32))
    whole = draw_people(image, person(JOINTS), COCO, sem_seg)
    for window in (64, 90, 130):
        monkeypatch.setattr(visualize, "_WINDOW", window)
        parts = draw_people(image, person(JOINTS), COCO, sem_seg)
        different = (np.abs(parts.astype(int) - whole) > 40).any(axis=2)
        assert different.sum() <= 12, window
        rows, columns = np.nonzero(different)
        assert (np.minimum(rows % window, columns % window) <= 1).all()


def test_very_wide_picture():
    image = np.full((30, 20000, 3), 90, np.uint8)
    far = {"nose": (19000.0, 15.0)}
    people = person(far, size=(30, 20000))
    people.pred_boxes = Boxes(torch.tensor([[18900.0, 2.0, 19100.0, 28.0]]))
    different = changed(draw_people(image, people, COCO), image)
    assert different[15, 19000] and different[15, 18899:18901].any()
    assert not different[:, :18880].any() and not different[:, 19120:].any()


def edge_color(picture: np.ndarray) -> np.ndarray:
    return picture[65, 130].astype(int)


def test_numbers_have_their_colour_whatever_the_order():
    people = Instances.cat([person(JOINTS), person({})])
    people.pred_boxes.tensor[1] = torch.tensor([5.0, 30.0, 60.0, 110.0])
    for numbers in ([3, 8], [8, 3]):
        picture = draw_people(GREY, people, COCO, track_ids=numbers)
        wanted = 255 * np.array(track_color(numbers[0]))
        assert np.abs(edge_color(picture) - wanted).max() < 40
        swapped = draw_people(GREY, people[[1, 0]], COCO, track_ids=numbers[::-1])
        assert (swapped == picture).all()
        for box, number in ((100, numbers[0]), (5, numbers[1])):
            line = picture[90:105, box - 1 : box + 1].reshape(-1, 3).astype(int) - 90
            towards = 255 * np.array(track_color(number)) - 90
            assert (np.sign(line[np.abs(line).max(1) > 20]) == np.sign(towards)).all()
    assert track_color(3) != track_color(8)
    # Who is left out takes her number along.
    people.scores = torch.tensor([0.9, 0.1])
    one = draw_people(GREY, people, COCO, track_ids=[3, 8])
    assert (one == draw_people(GREY, people[:1], COCO, track_ids=[3])).all()
    assert (one != draw_people(GREY, people[:1], COCO)).any()
    with pytest.raises(ValueError, match="1 track_ids for 2 people"):
        draw_people(GREY, people, COCO, track_ids=[3])


def test_without_boxes_and_with_another_keypoint_threshold():
    different = changed(draw_people(GREY, person(JOINTS), COCO, boxes=False))
    assert different[50, 160] and different[65, 130]
    assert not different[105:115].any() and not different[30:45, 100:130].any()
    people = person(JOINTS)
    wrist = COCO.keypoint_names.index("left_wrist")
    people.pred_keypoints[0, wrist, 2] = 0.4
    assert changed(draw_people(GREY, people, COCO, boxes=False))[80, 150]
    without = draw_people(GREY, people, COCO, boxes=False, keypoint_threshold=0.4)
    assert not changed(without)[80, 150] and changed(without)[65, 130]


def test_small_people_are_drawn_over_large_ones():
    small = person(JOINTS)
    large = person({n: (x + 1, y) for n, (x, y) in JOINTS.items()})
    large.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 200.0, 120.0]]))
    pictures = []
    for people, numbers in (((small, large), [1, 2]), ((large, small), [2, 1])):
        people = Instances.cat(list(people))
        pictures.append(draw_people(GREY, people, COCO, boxes=False, track_ids=numbers))
    assert (pictures[0] == pictures[1]).all()
    assert np.abs(edge_color(pictures[0]) - 255 * np.array(track_color(1))).max() < 40


def test_failed_png_leaves_nothing(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError):
        write_png(tmp_path / "a.png", GREY)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_annotations():
    people = Instances(
        (120, 200),
        gt_boxes=Boxes(torch.tensor([[100.0, 30.0, 180.0, 110.0]])),
        gt_keypoints=Keypoints(poses(JOINTS, last=1)),
    )
    different = changed(draw_annotations(GREY, people, COCO))
    assert all(different[int(y), int(x)] for x, y in JOINTS.values())
    assert different[70, 99:101].any() and not different[:20].any()
    assert not changed(draw_annotations(GREY, people[:0], COCO)).any()
    people.remove("gt_keypoints")
    assert not changed(draw_annotations(GREY, people, COCO))[50, 130]


def test_other_shapes_are_named():
    with pytest.raises(ValueError, match="uint8"):
        draw_people(GREY.astype(np.float32), person({}), COCO)
    with pytest.raises(ValueError, match="sem_seg"):
        draw_people(GREY, person({}), COCO, torch.ones(2, 60, 100))
    with pytest.raises(ValueError, match="skeleton 'crowdpose'"):
        draw_people(GREY, person({}), get_skeleton("crowdpose"))
