"""Typical poses, drawn: panels, joints where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.cluster_pictures import cluster_scale, draw_clusters
from mpn_d2.utils.pose_clusters import PoseClusters

COCO = get_skeleton("coco")
SIZE = (56, 36)
CAPTION, GAP = 20, 4


def clusters(count):
    centres = torch.zeros(count, COCO.num_keypoints, 3)
    centres[:, 0] = torch.tensor([10.5, 20.5, 1.0])
    # Too few of the members have the second joint.
    centres[:, 1] = torch.tensor([30.5, 50.5, 0.4])
    counts = torch.arange(count, 0, -1)
    labels = torch.arange(count).repeat_interleave(counts)
    return PoseClusters(centres, labels, torch.ones(len(labels)), counts)


def test_joints_are_drawn_in_every_panel():
    picture = draw_clusters(clusters(7), SIZE, COCO)
    scale = cluster_scale(SIZE)
    height, width = SIZE[0] * scale + CAPTION, SIZE[1] * scale
    # Five panels, then two.
    assert picture.shape == (2 * (height + GAP), 5 * (width + GAP) - GAP, 3)
    for index in range(7):
        row, column = divmod(index, 5)
        top, left = row * (height + GAP), column * (width + GAP)
        panel = picture[top + CAPTION :, left:][: SIZE[0] * scale, :width].astype(int)
        x, y = int(10.5 * scale), int(20.5 * scale)
        assert panel[y, x, 0] - panel[y, x, 1:].max() > 100
        inner = panel[10:-10, 10:-10].copy()
        inner[y - 20 : y, x - 20 : x] = inner[0, 0]
        assert (inner == inner[0, 0]).all()
        assert picture[top : top + CAPTION, left : left + width].any()
    assert not picture[height + GAP : -GAP, 2 * (width + GAP) :].any()
    assert picture.dtype == np.uint8


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="no pose has a joint"):
        draw_clusters(clusters(0), SIZE, COCO)
