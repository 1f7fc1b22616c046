"""Pictures of what a loss compares: heatmaps, person mask, ignored region, grids of people.

Letters: K keypoint types, (H, W) pixels of the network input, (h, w) cells of maps or grids.
Drawn cell i of stride s covers the pixels [i s, (i + 1) s) (design 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from mpn_d2.structures.skeleton import Skeleton
from mpn_d2.utils.visualize import draw_annotations, draw_people

IGNORED_COLOR = (255, 40, 40)
IGNORED_FOR_MASK_COLOR = (255, 210, 0)
PERSON_COLOR = (60, 230, 90)
CROWD_COLOR = (255, 255, 255)
_TINT = 0.45
_CAPTION_HEIGHT = 20
_GAP = 4
# Pixels that the picture of a crop is wide, about.
_CROP_WIDTH = 384
# Pixels a side that a cell of a grid is drawn with.
_GRID_SCALE = 4


def draw_targets(
    image_rgb: np.ndarray,
    instances: Instances,
    crowd_boxes: torch.Tensor,
    skeleton: Skeleton,
    maps: torch.Tensor,
    loss_mask: torch.Tensor,
    stride: int,
) -> np.ndarray:
    """People and ignored region | all heatmaps | person mask, side by side.

    Args:
        image_rgb: (H, W, 3) uint8, the network input without padding.
        instances: `gt_boxes` and perhaps `gt_keypoints`.
        crowd_boxes: (M, 4) x1, y1, x2, y2.
        skeleton: of the keypoints.
        maps: (K + 1, h, w) target heatmaps and person mask; the padding is cut off.
        loss_mask: (K + 1, h, w), 0 where no loss looks: red for all maps, yellow for the mask.
        stride: pixels a side of a cell.

    Returns:
        RGB uint8 picture, with captions.
    """
    for_all = (loss_mask[0] == 0).cpu().numpy()
    for_mask = (loss_mask[-1] == 0).cpu().numpy() & ~for_all
    image = tint(image_rgb, for_all, IGNORED_COLOR, stride)
    image = tint(image, for_mask, IGNORED_FOR_MASK_COLOR, stride)
    people = draw_boxes(image, instances, crowd_boxes, skeleton)
    heatmap = maps[:-1].amax(dim=0)
    return join(
        [people, draw_heatmap(image_rgb, heatmap, stride), _draw_mask(image_rgb, maps[-1], stride)],
        [
            "target: people; ignored red (mask only: yellow), crowd boxes white",
            f"target: heatmaps, largest {heatmap.max():.2f}",
            "target: person mask",
        ],
    )


def draw_boxes(
    image_rgb: np.ndarray, instances: Instances, crowd_boxes: torch.Tensor, skeleton: Skeleton
) -> np.ndarray:
    """Annotated people with boxes and keypoints, crowd boxes white; see `draw_targets`."""
    people = draw_annotations(image_rgb, instances, skeleton).copy()
    for x1, y1, x2, y2 in crowd_boxes.round().int().tolist():
        cv2.rectangle(people, (x1, y1), (x2 - 1, y2 - 1), CROWD_COLOR, 2)
    return people


def draw_predictions(
    image_rgb: np.ndarray,
    instances: Instances,
    skeleton: Skeleton,
    maps: torch.Tensor,
    stride: int,
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Predicted people | heatmaps | person mask; arguments as for `draw_targets`.

    Args:
        instances: predictions in network-input pixels; those under `score_threshold` are left out.
        maps: (K + 1, h, w) as predicted, drawn clipped to 0 .. 1.
        score_threshold: least box score.
    """
    people = draw_people(image_rgb, instances, skeleton, score_threshold=score_threshold)
    heatmap = maps[:-1].amax(dim=0)
    return join(
        [people, draw_heatmap(image_rgb, heatmap, stride), _draw_mask(image_rgb, maps[-1], stride)],
        [
            f"predicted: people over {score_threshold:g}, of {len(instances)} boxes",
            f"predicted: heatmaps, largest {heatmap.max():.2f}",
            "predicted: person mask",
        ],
    )


def draw_crop(
    image_rgb: np.ndarray,
    joints: torch.Tensor,
    skeleton: Skeleton,
    heatmaps: torch.Tensor,
    stride: int,
    title: str,
) -> np.ndarray:
    """The one person of a crop | heatmaps, enlarged.

    Args:
        image_rgb: (H, W, 3) uint8, the crop.
        joints: (K, 3) x, y and visibility or score, pixels of the crop; drawn where that is over
            0.05.
        skeleton: of the joints.
        heatmaps: (K, h, w); the padding is cut off.
        stride: pixels a side of a cell.
        title: first word of the captions.
    """
    times = max(_CROP_WIDTH // image_rgb.shape[1], 1)
    large = image_rgb.repeat(times, axis=0).repeat(times, axis=1)
    person = Instances(large.shape[:2])
    person.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, large.shape[1], large.shape[0]]]))
    person.scores = torch.ones(1)
    person.pred_keypoints = joints.detach().cpu()[None] * torch.tensor([times, times, 1.0])
    largest = heatmaps.amax(dim=0)
    return join(
        [draw_people(large, person, skeleton), draw_heatmap(large, largest, stride * times)],
        [f"{title}: joints", f"{title}: heatmaps, largest {largest.max():.2f}"],
    )


def draw_heatmap(image_rgb: np.ndarray, heatmap: torch.Tensor, stride: int) -> np.ndarray:
    """The image in dim grey under a heatmap (h, w), which is opaque and bright at 1."""
    heat = _to_pixels(heatmap.float().clamp(0, 1).cpu().numpy(), stride, image_rgb.shape[:2])
    grey = 0.5 * image_rgb.mean(axis=2, keepdims=True)
    color = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    # Weak values must be seen as well.
    opacity = np.sqrt(heat)[..., None]
    return np.rint((1 - opacity) * grey + opacity * color).astype(np.uint8)


def _draw_mask(image_rgb: np.ndarray, mask: torch.Tensor, stride: int) -> np.ndarray:
    return tint(image_rgb, mask.float().clamp(0, 1).cpu().numpy(), PERSON_COLOR, stride)


def tint(
    image_rgb: np.ndarray, cells: np.ndarray, color: tuple[int, int, int], stride: int
) -> np.ndarray:
    """A copy of the image, coloured as far as the cells (h, w) say, 0 to 1 or bool."""
    opacity = _TINT * _to_pixels(cells.astype(np.float32), stride, image_rgb.shape[:2])[..., None]
    return np.rint((1 - opacity) * image_rgb + opacity * np.array(color)).astype(np.uint8)


def _to_pixels(cells: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """(h, w) cells to (H, W) pixels; raises a ValueError where they do not cover the image."""
    pixels = cells.repeat(stride, axis=0).repeat(stride, axis=1)[: size[0], : size[1]]
    if pixels.shape != tuple(size):
        raise ValueError(
            f"maps of {cells.shape} cells of {stride} px do not cover an image of {tuple(size)}"
        )
    return pixels


def draw_grids(
    sample: dict,
    skeleton: Skeleton,
    margin: float,
    grids: Sequence[torch.Tensor],
    captions: Sequence[str],
) -> np.ndarray:
    """A person of the assembly as points in the box, then grids, each keypoint type a colour.

    Args:
        sample: "keypoints" (people, K, 3) x, y, v, "owner" and "box" (4,) of
            mpn_d2.data.association. The owner's joints are drawn in colour, others' grey.
        skeleton: of the keypoints.
        margin: share of the box that the points' picture shows around it.
        grids: (K, h, w) each; drawn relative to its largest value, which the caption tells.
        captions: one a grid.
    """
    height, width = grids[0].shape[-2:]
    size = (height * _GRID_SCALE, width * _GRID_SCALE)
    panels = [_draw_points(sample, skeleton, margin, size)]
    for grid in grids:
        panels.append(draw_grid(grid))
    texts = [f"{text}, max {grid.max():.2g}" for text, grid in zip(captions, grids, strict=True)]
    return join(panels, ["joints", *texts])


def draw_grid(grid: torch.Tensor, scale: int = _GRID_SCALE) -> np.ndarray:
    """(K, h, w) to RGB: at each cell the colour of the strongest type, as bright as it is.

    Relative to the largest value; a cell is a square of `scale` pixels a side.
    """
    values, types = grid.float().cpu().clamp(min=0).max(dim=0)
    # Square root: a weak joint beside a strong one must be seen as well.
    values = (values / values.max().clamp(min=1e-12)).sqrt()
    picture = type_colors(len(grid))[types.numpy()] * values.numpy()[..., None]
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.rint(picture).astype(np.uint8)


def type_colors(count: int) -> np.ndarray:
    """(count, 3) RGB 0 to 255, far from black."""
    return 255 * matplotlib.colormaps["hsv"](np.arange(count) / count)[:, :3]


def _draw_points(
    sample: dict, skeleton: Skeleton, margin: float, size: tuple[int, int]
) -> np.ndarray:
    picture = np.full((*size, 3), 30, dtype=np.uint8)
    box = sample["box"].cpu().double().numpy()
    sides = np.maximum(box[2:] - box[:2], 1e-6)
    corner = box[:2] - margin * sides
    scale = np.array(size[::-1]) / ((1 + 2 * margin) * sides)
    low, high = ((box.reshape(2, 2) - corner) * scale).astype(int).tolist()
    cv2.rectangle(picture, low, high, CROWD_COLOR, 1)
    colors = type_colors(skeleton.num_keypoints)
    for person, keypoints in enumerate(sample["keypoints"].cpu().double().numpy()):
        places = ((keypoints[:, :2] - corner) * scale).astype(int)
        own = person == sample["owner"]
        for place, color in zip(places[keypoints[:, 2] > 0], colors[keypoints[:, 2] > 0]):
            if (np.abs(place) < 10 * max(size)).all():
                color = tuple(color.tolist()) if own else (130, 130, 130)
                cv2.circle(picture, place.tolist(), 4 if own else 3, color, -1)
    return picture


def join(panels: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
    """Panels of one height side by side, a line of text over each."""
    columns = []
    for panel, caption in zip(panels, captions, strict=True):
        bar = np.zeros((_CAPTION_HEIGHT, panel.shape[1], 3), dtype=np.uint8)
        cv2.putText(bar, caption, (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
        gap = np.zeros((_CAPTION_HEIGHT + panel.shape[0], _GAP, 3), dtype=np.uint8)
        columns += [np.concatenate([bar, panel]), gap]
    return np.concatenate(columns[:-1], axis=1)


def stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures below one another, narrower ones filled up with black."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(r, ((0, _GAP), (0, width - r.shape[1]), (0, 0))) for r in rows])
