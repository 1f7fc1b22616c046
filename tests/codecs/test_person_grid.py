"""Box grids against plain loops and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from mpn_d2.codecs import person_grid

SIZE = (56, 36)


def slow_cell(x, y, box, size):
    """Column and row by spec 5.4, one point at a time, in Python floats."""
    height, width = size
    columns = int((x - box[0]) * (width / math.ceil(box[2] - box[0])))
    rows = int((y - box[1]) * (height / math.ceil(box[3] - box[1])))
    return min(max(columns, 0), width - 1), min(max(rows, 0), height - 1)


def slow_input(people, box, size, margin):
    """Cells set to 1 by spec 5.4: (K, h, w); people is (M, K, 3)."""
    grid = np.zeros((people.shape[1], *size))
    width, height = box[2] - box[0], box[3] - box[1]
    for person in people.tolist():
        for k, (x, y, v) in enumerate(person):
            if v <= 0:
                continue
            if not box[0] - margin * width < x < box[2] + margin * width:
                continue
            if not box[1] - margin * height < y < box[3] + margin * height:
                continue
            column, row = slow_cell(x, y, box, size)
            grid[k, row, column] = 1
    return grid


def random_scene(generator, people=6, types=5):
    points = generator.uniform(-60, 260, (people, types, 2))
    visible = generator.integers(0, 3, (people, types, 1))
    keypoints = np.concatenate([points, visible], axis=2).astype(np.float32)
    corner = generator.uniform(-5, 60, (4, 2))
    sides = generator.uniform(3, 150, (4, 2)) * np.array([1.0, 1.5])
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    return torch.tensor(keypoints), torch.tensor(boxes)


def by_type(people, boxes):
    """(M, K, 3) people of one image, repeated for each box, as points and valid."""
    spread = people.transpose(0, 1).expand(len(boxes), -1, -1, -1)
    return spread[..., :2], spread[..., 2] > 0


@pytest.mark.parametrize("seed", range(5))
def test_input_equals_slow_loop_and_scipy_blur(seed):
    people, boxes = random_scene(np.random.default_rng(seed))
    points, valid = by_type(people, boxes)
    grids = person_grid.encode_input(points, valid, boxes, SIZE, 0.21, 1.0)
    assert grids.shape == (4, 5, 56, 36)
    for grid, box in zip(grids, boxes.tolist()):
        slow = slow_input(people, box, SIZE, 0.21)
        slow = np.stack([ndimage.gaussian_filter(c, 1.0, mode="nearest") for c in slow])
        np.testing.assert_allclose(grid.numpy(), slow, atol=2e-6)
    assert grids.max() > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_label_holds_only_the_owner_with_zero_border(seed):
    people, boxes = random_scene(np.random.default_rng(seed), people=4)
    labels = person_grid.encode_label(people, boxes, SIZE, 2.0)
    for label, owner, box in zip(labels, people, boxes.tolist()):
        # No margin: the owner's joints count wherever they lie.
        slow = slow_input(owner[None], box, SIZE, 1e9)
        slow = [ndimage.gaussian_filter(c, 2.0, mode="constant", cval=0.0) for c in slow]
        np.testing.assert_allclose(label.numpy(), np.stack(slow), atol=2e-6)


def test_joints_in_the_margin_are_clamped_on_both_axes():
    box = torch.tensor([[100.0, 200.0, 136.0, 256.0]])
    # Left and above; right and below; outside the margin (0.21 x 36 = 7.56) to the left.
    points = torch.tensor([[[[93.0, 190.0], [143.0, 266.0], [92.0, 210.0]]]])
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    cells = person_grid.points_to_cells(points, box, SIZE)
    assert cells[0, 0].tolist() == [[0, 0], [35, 55], [0, 10]]
    assert person_grid.in_margin(points, box, 0.21)[0, 0].tolist() == [True, True, False]
    # So narrow a blur leaves the cells as they are.
    grid = person_grid.encode_input(points, valid, box, SIZE, 0.21, 0.1)[0, 0]
    assert grid.nonzero().tolist() == [[0, 0], [55, 35]]


@pytest.mark.parametrize("x_side", [-1, 0, 1])
@pytest.mark.parametrize("y_side", [-1, 0, 1])
def test_each_axis_is_clamped_whatever_the_other_does(x_side, y_side):
    """The references forget the second axis: row -3 of an array is its third last (spec 5.4)."""
    left, top, width, height = 100.0, 200.0, 72.0, 28.0
    x = left + width / 2 + x_side * (width / 2 + 9.0)
    y = top + height / 2 + y_side * (height / 2 + 4.0)
    box = torch.tensor([[left, top, left + width, top + height]])
    keypoints = torch.tensor([[[x, y, 2.0]]])
    column = {-1: 0, 0: 18, 1: 35}[x_side]
    row = {-1: 0, 0: 28, 1: 55}[y_side]
    label = person_grid.encode_label(keypoints, box, SIZE, 2.0)[0, 0]
    assert divmod(int(label.argmax()), SIZE[1]) == (row, column)
    points, valid = keypoints[:, :, None, :2], keypoints[:, :, None, 2] > 0
    grid = person_grid.encode_input(points, valid, box, SIZE, 0.21, 1.0)[0, 0]
    assert divmod(int(grid.argmax()), SIZE[1]) == (row, column)


def test_joint_beyond_the_margin_is_in_the_label_alone():
    box = torch.tensor([[100.0, 200.0, 136.0, 256.0]])
    keypoints = torch.tensor([[[90.0, 230.0, 2.0], [110.0, 210.0, 2.0]]])
    points, valid = keypoints[:, :, None, :2], keypoints[:, :, None, 2] > 0
    grids = person_grid.encode_input(points, valid, box, SIZE, 0.21, 1.0)[0]
    assert grids[0].sum() == 0 and grids[1].sum() > 0.99
    label = person_grid.encode_label(keypoints, box, SIZE, 2.0)[0, 0]
    assert divmod(int(label.argmax()), SIZE[1]) == (30, 0)


def test_two_joints_in_one_cell_give_one_not_two():
    box = torch.tensor([[0.0, 0.0, 360.0, 560.0]])
    points = torch.tensor([[[[11.0, 21.0], [19.0, 29.0]]]])
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    grid = person_grid.encode_input(points, valid, box, SIZE, 0.21, 1.0)
    alone = person_grid.encode_input(points[:, :, :1], valid[:, :, :1], box, SIZE, 0.21, 1.0)
    assert divmod(int(grid.argmax()), SIZE[1]) == (2, 1)
    assert torch.equal(grid, alone)
    # An invalid point does not clear the cell of a valid one.
    one = torch.tensor([[[True, False]]])
    assert torch.equal(person_grid.encode_input(points, one, box, SIZE, 0.21, 1.0), alone)
    assert person_grid.encode_input(points, ~valid, box, SIZE, 0.21, 1.0).sum() == 0


def test_scale_rounds_sides_up_but_not_float_noise():
    boxes = torch.tensor([[0.0, 0.0, 50.4, 70.0], [0.1, 0.3, 50.1, 70.3]])
    scales = person_grid.box_scales(boxes, SIZE)
    assert scales[0].tolist() == pytest.approx([36 / 51, 56 / 70])
    assert scales[1].tolist() == pytest.approx([36 / 50, 56 / 70])


def test_box_without_area_and_nan_points_do_no_harm():
    boxes = torch.tensor([[10.0, 10.0, 10.0, 10.0], [10.0, 10.0, 5.0, 5.0], [0.0, 0.0, 9.0, 9.0]])
    points = torch.tensor([[[[10.0, 10.0], [float("nan"), 4.0]]]]).expand(3, -1, -1, -1)
    valid = torch.ones(3, 1, 2, dtype=torch.bool)
    grids = person_grid.encode_input(points, valid, boxes, SIZE, 0.21, 1.0)
    assert torch.isfinite(grids).all()
    assert grids[:2].sum() == 0 and grids[2].sum() > 0.2


def test_cell_centres_map_back_into_their_cell():
    box = torch.tensor([[13.3, 7.1, 101.9, 250.6]])
    cells = torch.cartesian_prod(torch.arange(36), torch.arange(56))[None]
    points = person_grid.cells_to_points(cells, box, SIZE)
    assert torch.equal(person_grid.points_to_cells(points, box, SIZE), cells)
    # Width 88.6 counts as 89 pixels: cell 0 is 89 / 36 wide, its centre half of that in.
    assert points[0, 0].tolist() == pytest.approx([13.3 + 89 / 72, 7.1 + 244 / 112])


@pytest.mark.parametrize("border", ["nearest", "constant"])
@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 5.0])
def test_blur_equals_scipy(border, sigma):
    grids = torch.rand(2, 3, 17, 11)
    slow = ndimage.gaussian_filter(grids.numpy(), (0, 0, sigma, sigma), mode=border)
    np.testing.assert_allclose(person_grid.blur(grids, sigma, border).numpy(), slow, atol=1e-5)


def test_lone_point_peaks_at_the_published_heights():
    box = torch.tensor([[0.0, 0.0, 36.0, 56.0]])
    points = torch.tensor([[[[18.5, 28.5]]]])
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    grid = person_grid.encode_input(points, valid, box, SIZE, 0.21, 1.0)
    assert grid.max().item() == pytest.approx(0.159, abs=1e-3)
    keypoints = torch.tensor([[[18.5, 28.5, 2.0]]])
    label = person_grid.encode_label(keypoints, box, SIZE, 2.0)
    assert label.max().item() == pytest.approx(0.0398, abs=1e-4)


@pytest.mark.parametrize("window", [1, 3, 15])
def test_window_sums_clip_at_the_border(window):
    grids = torch.rand(2, 1, 20, 9)
    sums = person_grid.window_sums(grids, window)
    reach = window // 2
    for row in range(20):
        for column in range(9):
            rows = slice(max(row - reach, 0), row + reach + 1)
            columns = slice(max(column - reach, 0), column + reach + 1)
            expected = grids[:, :, rows, columns].sum(dim=(2, 3))
            torch.testing.assert_close(sums[:, :, row, column], expected)


def test_even_window_and_unknown_border_are_refused():
    with pytest.raises(ValueError, match="WINDOW"):
        person_grid.window_sums(torch.zeros(1, 1, 5, 5), 4)
    with pytest.raises(ValueError, match="reflect"):
        person_grid.blur(torch.zeros(1, 1, 5, 5), 1.0, "reflect")


def test_drawn_heatmap_equals_slow_loop():
    boxes = torch.tensor([[10.0, 20.0, 55.5, 131.0]])
    points = torch.tensor([[[[20.0, 30.0], [24.0, 30.0], [60.0, 70.0], [30.0, 60.0]]]])
    valid = torch.tensor([[[True, True, True, False]]])
    drawn = person_grid.draw_heatmaps(points, valid, boxes, SIZE, 7.0, 0.01)
    for row in range(56):
        for column in range(36):
            x = 10.0 + (column + 0.5) * 45.5 / 36
            y = 20.0 + (row + 0.5) * 111.0 / 56
            values = [
                math.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * 7.0**2))
                for a, b in ((20.0, 30.0), (24.0, 30.0), (60.0, 70.0))
            ]
            best = max(values) if max(values) >= 0.01 else 0.0
            assert drawn[0, 0, row, column].item() == pytest.approx(best, abs=1e-5)


def test_crop_is_bilinear_sampling_at_cell_centres():
    maps = torch.rand(2, 3, 30, 40, dtype=torch.float32, requires_grad=True)
    boxes = [torch.zeros(0, 4), torch.tensor([[12.0, 20.0, 84.0, 76.0], [8.8, 10.2, 150.9, 110.0]])]
    crops = person_grid.crop_heatmaps(maps, 4, boxes, SIZE)
    assert crops.shape == (2, 3, 56, 36)
    for crop, box in zip(crops, boxes[1].tolist()):
        x = box[0] + (torch.arange(36) + 0.5) * (box[2] - box[0]) / 36
        y = box[1] + (torch.arange(56) + 0.5) * (box[3] - box[1]) / 56
        # grid_sample without aligned corners: -1 and 1 are the outer edges of the map.
        where = torch.stack(torch.meshgrid(x / 160 * 2 - 1, y / 120 * 2 - 1, indexing="xy"), -1)
        expected = F.grid_sample(maps[1:], where[None], align_corners=False)[0]
        torch.testing.assert_close(crop, expected, atol=1e-5, rtol=1e-4)
    crops.sum().backward()
    assert maps.grad[0].abs().sum() == 0 and maps.grad[1].abs().sum() > 0
    assert person_grid.crop_heatmaps(maps, 4, [torch.zeros(0, 4)] * 2, SIZE).shape == (0, 3, 56, 36)


def test_crop_of_an_integer_box_by_hand_and_its_gradient():
    """Bilinear weights cell by cell; the crop is linear, so its gradient is the transpose."""
    maps = torch.randn(1, 2, 10, 12, requires_grad=True)
    size = (7, 5)
    box = [8.0, 4.0, 40.0, 36.0]
    crop = person_grid.crop_heatmaps(maps, 4, [torch.tensor([box])], size)
    weights = torch.randn_like(crop)
    want, gradient = torch.zeros(1, 2, *size), torch.zeros_like(maps)
    for row in range(size[0]):
        for column in range(size[1]):
            # In cells of the map, whose values sit at the centres.
            y = (box[1] + (row + 0.5) * (box[3] - box[1]) / size[0]) / 4 - 0.5
            x = (box[0] + (column + 0.5) * (box[2] - box[0]) / size[1]) / 4 - 0.5
            for i in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(x), math.floor(x) + 1):
                    share = (1 - abs(y - i)) * (1 - abs(x - j))
                    want[0, :, row, column] += share * maps.detach()[0, :, i, j]
                    gradient[0, :, i, j] += share * weights[0, :, row, column]
    torch.testing.assert_close(crop, want, atol=1e-5, rtol=1e-4)
    (crop * weights).sum().backward()
    torch.testing.assert_close(maps.grad, gradient, atol=1e-5, rtol=1e-4)


def test_drawn_training_input_looks_like_the_crop_of_true_maps():
    box = torch.tensor([[20.0, 24.0, 92.0, 136.0]])
    points = torch.tensor([[[[51.0, 81.0]]]])
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    drawn = person_grid.draw_heatmaps(points, valid, box, SIZE, 7.0, 0.01)
    centre = (torch.arange(40) + 0.5) * 4
    maps = torch.exp(-((centre[None] - 51) ** 2 + (centre[:, None] - 81) ** 2) / 98)[None, None]
    crop = person_grid.crop_heatmaps(maps, 4, [box], SIZE)
    # Apart by what sampling a Gaussian at stride 4 loses between the cells.
    assert (drawn - crop).abs().max() < 0.06
    assert drawn.flatten().argmax() == crop.flatten().argmax()


def test_no_boxes():
    points, valid = torch.zeros(0, 4, 3, 2), torch.zeros(0, 4, 3, dtype=torch.bool)
    boxes = torch.zeros(0, 4)
    assert person_grid.encode_input(points, valid, boxes, SIZE, 0.21, 1.0).shape == (0, 4, 56, 36)
    assert person_grid.window_sums(torch.zeros(0, 4, 56, 36), 15).shape == (0, 4, 56, 36)
    points, valid = torch.zeros(2, 4, 0, 2), torch.zeros(2, 4, 0, dtype=torch.bool)
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2)
    assert person_grid.encode_input(points, valid, boxes, SIZE, 0.21, 1.0).sum() == 0
    assert person_grid.draw_heatmaps(points, valid, boxes, SIZE, 7.0, 0.01).sum() == 0
