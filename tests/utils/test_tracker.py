"""Numbers of people in made-up videos, where who is who is known."""

from __future__ import annotations

import numpy as np
import pytest

from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.tracker import PoseTracker

COCO = get_skeleton("coco")
K = COCO.num_keypoints
# A standing person's joints in a box of 1 x 1.
RNG = np.random.default_rng(5)
STANDING = RNG.uniform(0.1, 0.9, (K, 2))
OTHER = RNG.uniform(0.1, 0.9, (K, 2))
SIZE = np.array([60.0, 150.0])

People = list[tuple[np.ndarray, np.ndarray]]


def person(x: float, y: float = 100.0, shape: np.ndarray = STANDING, joints: int = K):
    """(box, keypoints) with the box's corner at x, y."""
    corner = np.array([x, y])
    keypoints = np.zeros((K, 3))
    keypoints[:joints, :2] = (corner + shape * SIZE)[:joints]
    keypoints[:joints, 2] = 0.9
    return np.concatenate([corner, corner + SIZE]), keypoints


def follow(frames: list[People], **options) -> list[list[int]]:
    tracker = PoseTracker(COCO.sigmas, **options)
    numbers = []
    for people in frames:
        boxes = np.array([box for box, _ in people]).reshape(-1, 4)
        keypoints = np.array([pose for _, pose in people]).reshape(-1, K, 3)
        numbers.append(tracker.update(boxes, keypoints).tolist())
    return numbers


def test_two_people_cross():
    """They walk through each other, and their order in the list changes."""
    frames = []
    for i in range(30):
        people = [person(100 + 8 * i), person(340 - 8 * i, 104, OTHER)]
        frames.append(people if i % 3 else people[::-1])
    numbers = follow(frames)
    first, second = numbers[0][1], numbers[0][0]
    for i, row in enumerate(numbers):
        assert row == ([first, second] if i % 3 else [second, first]), i


def test_people_of_one_shape_cross():
    """Nothing but their ways tells them apart when they are in one place."""
    frames = [[person(100 + 8 * i), person(340 - 8 * i)] for i in range(31)]
    assert 100 + 8 * 15 == 340 - 8 * 15
    assert all(row == [1, 2] for row in follow(frames))


@pytest.mark.parametrize("speed", [0, 6, -14])
def test_somebody_is_missing_for_three_frames(speed: int):
    there = [person(300 + speed * i) for i in range(20)]
    other = person(50)
    gone = {8, 9, 10}
    frames = [[other] if i in gone else [there[i], other] for i in range(20)]
    numbers = follow(frames)
    assert all(row == ([2] if i in gone else [1, 2]) for i, row in enumerate(numbers))


def test_way_while_missing_is_no_speed():
    """12 pixels in 6 frames are 2 a frame: she is not taken for who stands further on."""
    frames = [[person(100)], *[[]] * 5, [person(112)], [person(112), person(121)]]
    assert follow(frames)[-2:] == [[1], [1, 2]]


def test_numbers_stay_while_poses_change():
    shapes = [STANDING + (OTHER - STANDING) * i / 20 for i in range(21)]
    frames = [[person(100, shape=shape), person(400)] for shape in shapes]
    assert follow([frames[0], frames[-1]], min_similarity=0.7)[1] == [3, 2]
    assert all(row == [1, 2] for row in follow(frames, min_similarity=0.7))


def test_wrong_joints_for_a_frame_change_no_number():
    """Her box still says who she is."""
    frames = [[person(100)], [person(100, shape=OTHER)], [person(100)], [person(100)]]
    assert follow(frames) == [[1]] * 4


def test_who_is_gone_too_long_comes_back_as_another():
    for missing, number in ((3, 1), (4, 2)):
        frames = [[person(100)], *[[]] * missing, [person(100)]]
        assert follow(frames, max_lost=3)[-1] == [number]


def test_empty_frames_and_more_people_than_before():
    frames = [[], [], [person(50)], [], [person(400), person(50), person(700)], [], []]
    frames += [[person(700), person(50)], [person(1000), person(50)]]
    assert follow(frames) == [[], [], [1], [], [2, 1, 3], [], [], [3, 1], [4, 1]]


def test_numbers_are_never_given_twice():
    """Somebody new at another place in every frame."""
    frames = [[person(300 * i)] for i in range(40)]
    assert follow(frames, max_lost=2) == [[i + 1] for i in range(40)]


def test_numbers_stay_under_jitter():
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(50):
        people = []
        for x in (50, 115, 180, 400):
            box, pose = person(x)
            pose[:, :2] += rng.normal(0, 4, (K, 2))
            pose[rng.random(K) < 0.2] = 0
            people.append((box + rng.normal(0, 4, 4), pose))
        frames.append(people)
    assert all(row == [1, 2, 3, 4] for row in follow(frames))


def test_few_joints_are_compared_by_box():
    """Two joints in common: their OKS is 1 with the far person, yet the near box is hers."""
    near_box, _ = person(108)
    far_box, _ = person(160)
    _, pose = person(100, joints=2)
    nothing = np.zeros((K, 3))
    assert follow([[person(100, joints=2)], [(far_box, pose), (near_box, nothing)]]) == [
        [1],
        [2, 1],
    ]
    # With joints enough the poses tell two people in one box apart.
    two = [person(100), person(100, shape=OTHER)]
    assert follow([two, two[::-1], two]) == [[1, 2], [2, 1], [1, 2]]
    # Boxes that do not meet are others.
    assert follow([[person(100, joints=2)], [(person(200)[0], nothing)]]) == [[1], [2]]


def test_the_best_sum_wins():
    """The first is nearest to the new first, but then the other would be far from hers."""
    frames = [[person(101), person(112)], [person(106), person(94)]]
    assert follow(frames)[1] == [2, 1]


def test_least_similarity_counts():
    frames = [[person(100)], [person(112)]]
    assert follow(frames, min_similarity=0.1)[1] == [1]
    assert follow(frames, min_similarity=0.9)[1] == [2]


def test_same_frames_same_numbers_and_inputs_stay():
    rng = np.random.default_rng(1)
    frames = [[person(*rng.uniform(0, 500, 2)) for _ in range(5)] for _ in range(20)]
    before = [[(b.copy(), k.copy()) for b, k in people] for people in frames]
    assert follow(frames) == follow(frames)
    for people, copies in zip(frames, before, strict=True):
        for one, other in zip(people, copies, strict=True):
            assert (one[0] == other[0]).all() and (one[1] == other[1]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_similarity": 1.5}, "min_similarity is 1.5"),
        ({"min_similarity": float("nan")}, "min_similarity"),
        ({"max_lost": -1}, "max_lost is -1"),
        ({"min_joints": 0}, "min_joints is 0"),
    ],
)
def test_options_out_of_range(options: dict, words: str):
    with pytest.raises(ValueError, match=words):
        PoseTracker(COCO.sigmas, **options)


@pytest.mark.parametrize("shapes", [((2, 4), (1, K, 3)), ((2, 5), (2, K, 3)), ((1, 4), (1, 2, 3))])
def test_other_shapes_are_named(shapes: tuple):
    with pytest.raises(ValueError, match=r"\(P, 4\)"):
        PoseTracker(COCO.sigmas).update(np.zeros(shapes[0]), np.zeros(shapes[1]))
