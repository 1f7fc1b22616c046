"""Offsets there and back, boxes of joints, and the locations of people against loops."""

from __future__ import annotations

import math

import pytest
import torch

from mpn_d2.codecs.offsets import (
    Locations,
    assign_locations,
    centerness,
    decode_offsets,
    encode_offsets,
    joint_boxes,
)

STRIDES = [8, 16, 32, 64, 128]


def pyramid(height: int, width: int) -> Locations:
    """Five levels over an image of that size, each rounded up."""
    return Locations.of_grids([(-(-height // s), -(-width // s)) for s in STRIDES], STRIDES)


def test_locations_are_the_papers_points():
    """(x s + floor(s / 2), y s + floor(s / 2)), row by row, level by level."""
    locations = Locations.of_grids([(2, 3), (1, 2)], [8, 16])
    expected = [(x * 8 + 4, y * 8 + 4) for y in range(2) for x in range(3)]
    expected += [(8, 8), (24, 8)]
    assert locations.points.tolist() == [list(map(float, p)) for p in expected]
    assert locations.strides.tolist() == [8.0] * 6 + [16.0] * 2
    assert locations.counts == (6, 2)


def test_levels_of_sizes_leave_no_gap():
    """64, 128, 256 and 512 pixels are the limits of strides 8 to 128."""
    least, most = pyramid(128, 128).size_bounds()
    by_level = {}
    for stride, low, high in zip(pyramid(128, 128).strides.tolist(), least.tolist(), most.tolist()):
        by_level[stride] = (low, high)
    assert list(by_level.values()) == [
        (0.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, math.inf),
    ]  # fmt: skip


@pytest.mark.parametrize("stride", STRIDES)
def test_round_trip(stride):
    keypoints = torch.rand(6, 14, 3) * 500
    keypoints[..., 2] = torch.randint(0, 3, (6, 14))
    points, strides = torch.rand(6, 2) * 500, torch.full((6,), float(stride))
    offsets, labelled = encode_offsets(keypoints, points, strides)
    assert torch.equal(labelled, keypoints[..., 2] > 0)
    # Channel 2j is x of joint j in strides.
    expected = (keypoints[2, 3, 0] - points[2, 0]) / stride if labelled[2, 3] else torch.tensor(0.0)
    torch.testing.assert_close(offsets[2, 6], expected)
    joints = decode_offsets(offsets, points, strides)
    torch.testing.assert_close(joints[labelled], keypoints[labelled][:, :2], atol=1e-3, rtol=0)
    # Joints that are not labelled are at the location itself: no offset.
    at_points = points[:, None].expand_as(joints)
    torch.testing.assert_close(joints[~labelled], at_points[~labelled])


def test_boxes_of_joints():
    keypoints = torch.tensor(
        [
            [[3.0, 9.0, 2.0], [7.0, 2.0, 1.0], [100.0, 100.0, 0.0]],
            [[5.0, 6.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
            [[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [3.0, 3.0, 0.0]],
        ]
    )
    assert joint_boxes(keypoints).tolist() == [[3, 2, 7, 9], [5, 6, 5, 6], [0, 0, 0, 0]]
    assert joint_boxes(keypoints[..., :2])[0].tolist() == [3, 2, 100, 100]
    assert joint_boxes(keypoints[:0]).shape == (0, 4)


def slow_assignment(boxes, locations, radius):
    """One location and person at a time."""
    owners = []
    first, last = STRIDES[0], STRIDES[-1]
    for (x, y), stride in zip(locations.points.tolist(), locations.strides.tolist()):
        best, smallest = -1, math.inf
        for person, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            inside, farthest = True, 0.0
            for place, low, high in ((x, x1, x2), (y, y1, y2)):
                half = (high - low) / 2
                reach = half if radius is None else min(half, radius * stride)
                reach = max(reach, stride / 2)
                shift = place - (low + high) / 2
                inside &= -reach <= shift < reach
                farthest = max(farthest, abs(shift) + half)
            low = 0 if stride == first else 4 * stride
            high = math.inf if stride == last else 8 * stride
            area = (x2 - x1) * (y2 - y1)
            if inside and low <= farthest < high and area < smallest:
                best, smallest = person, area
        owners.append(best)
    return owners


@pytest.mark.parametrize("radius", [None, 1.5, 0.7])
def test_assignment_against_loops(radius):
    locations = pyramid(200, 330)
    for _ in range(4):
        corner = torch.rand(9, 2) * torch.tensor([300.0, 180.0])
        side = torch.rand(9, 2) ** 3 * 300
        boxes = torch.cat([corner, corner + side], dim=1)
        found = assign_locations(boxes, locations, radius)
        assert found.tolist() == slow_assignment(boxes, locations, radius)
        assert len(set(found.tolist())) > 4


def test_center_sampling_of_a_known_box():
    """40 x 40 pixels about (44, 44): 1.5 strides to each side are 3 x 3 cells of stride 8."""
    locations = pyramid(96, 96)
    owners = assign_locations(torch.tensor([[24.0, 24.0, 64.0, 64.0]]), locations, 1.5)
    positive = locations.points[owners == 0]
    assert positive.tolist() == [[x, y] for y in (36, 44, 52) for x in (36, 44, 52)]
    assert (locations.strides[owners == 0] == 8).all()
    whole = assign_locations(torch.tensor([[24.0, 24.0, 64.0, 64.0]]), locations, None)
    assert int((whole == 0).sum()) == 25


@pytest.mark.parametrize("side", [0.0, 1.0, 3.0, 7.9])
@pytest.mark.parametrize("radius", [None, 1.5])
def test_people_smaller_than_a_cell_have_a_location(side, radius):
    locations = pyramid(64, 64)
    for _ in range(20):
        corner = torch.rand(2) * 50
        box = torch.cat([corner, corner + side])[None]
        owners = assign_locations(box, locations, radius)
        assert (owners == 0).any()
        assert (owners[locations.strides > 8] == -1).all()


def test_every_size_has_a_location():
    """Between levels no size falls through."""
    locations = pyramid(1400, 1400)
    middle = torch.tensor([701.3, 698.9])
    for half in torch.arange(20.0, 640.0, 7.3).tolist():
        box = torch.cat([middle - half, middle + half])[None]
        assert (assign_locations(box, locations, 1.5) == 0).any(), half


def test_nobody():
    locations = pyramid(40, 24)
    owners = assign_locations(torch.zeros(0, 4), locations, 1.5)
    assert owners.tolist() == [-1] * len(locations.points)
    offsets, labelled = encode_offsets(torch.zeros(0, 17, 3), torch.zeros(0, 2), torch.zeros(0))
    assert offsets.shape == (0, 34) and labelled.shape == (0, 17)
    assert decode_offsets(offsets, torch.zeros(0, 2), torch.zeros(0)).shape == (0, 17, 2)


def test_centerness():
    box = torch.tensor([10.0, 20.0, 30.0, 60.0])
    points = torch.tensor([[20.0, 40.0], [15.0, 40.0], [15.0, 30.0], [10.0, 40.0], [9.0, 40.0]])
    # sqrt(5 / 15), sqrt(5 / 15 * 10 / 30), at a side, outside
    expected = torch.tensor([1.0, math.sqrt(1 / 3), 1 / 3, 0.0, 0.0])
    torch.testing.assert_close(centerness(points, box.expand(5, 4)), expected)
    flat = torch.tensor([[10.0, 20.0, 10.0, 60.0]])
    torch.testing.assert_close(centerness(torch.tensor([[12.0, 30.0]]), flat)[0].item(), 1 / 3**0.5)
