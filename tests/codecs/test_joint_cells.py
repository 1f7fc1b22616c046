"""Hard targets of joints: the one cell that each lies in."""

from __future__ import annotations

import torch

from mpn_d2.codecs.heatmap import encode_joint_cells


def slow(keypoints, num_keypoints, size, stride):
    maps = torch.zeros(len(keypoints), num_keypoints, *size)
    for n, people in enumerate(keypoints):
        for person in people.tolist():
            for k, (x, y, v) in enumerate(person):
                if v > 0:
                    row = min(max(int(y // stride), 0), size[0] - 1)
                    column = min(max(int(x // stride), 0), size[1] - 1)
                    maps[n, :, row, column] = 0.0
                    maps[n, k, row, column] = 1.0
    return maps


def test_a_known_joint():
    """The spec's round((x - 4) / 8) of pixel centres is the cell that the joint is in."""
    keypoints = torch.tensor([[[19.5, 7.9, 2.0], [4.0, 4.0, 0.0]]])
    maps = encode_joint_cells([keypoints], 2, (3, 4), 8)
    assert maps.nonzero().tolist() == [[0, 0, 0, round((19.5 - 4) / 8)]]


def test_against_loops_with_shared_cells_and_joints_outside():
    for _ in range(5):
        keypoints = [torch.rand(p, 6, 3) * 40 - 2 for p in (4, 0, 2)]
        for people in keypoints:
            people[..., 2] = torch.randint(0, 3, people.shape[:2])
        found = encode_joint_cells(keypoints, 6, (4, 5), 8)
        assert torch.equal(found, slow(keypoints, 6, (4, 5), 8))
        assert not found[1].any()
        assert (found.sum(dim=1) <= 1).all() and found[0].sum() > 5
