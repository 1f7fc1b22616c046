"""Test-time augmentation: what several views of an image show, merged into one result.

Two ways (TTA.FUSION; spec section 10): `maps`, heatmaps averaged and boxes merged in a frame that
all views share, people assembled once; `poses`, the people of every view pooled. Letters: K
keypoint types, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torchvision.ops import box_iou

from mpn_d2.codecs.resample import Window, grid_size, resample_maps
from mpn_d2.engine.views import View
from mpn_d2.structures.nms import BoxSuppression
from mpn_d2.structures.outputs import ImageEvidence

# Boxes that reach closer than that to an inner border of a part are probably cut off there; share
# of the part's side.
_CUT = 0.01
# Parts are for small people: larger boxes than that, share of the part's sides, are left to the
# whole image.
_LARGEST = 0.35
# What a part says counts this far around the people whom it shows whole, share of their sides.
_AROUND = 0.2
# Boxes that score less do not count for that: chosen on drawn images of seed 777, where trusting
# parts around every box of 0.05 loses 2 points of keypoint AP and 4 of the mask's IoU.
_SURE = 0.3
# Under soft suppression, which drops nothing: from this IoU on, boxes of several views are taken
# for one person's.
_SAME_BOX = 0.6


@dataclass
class Look:
    """What one view of an image showed.

    Attributes:
        view: of the image.
        evidence: in the frame of the view's network input, as the network gave it.
    """

    view: View
    evidence: ImageEvidence


def shared_frame(
    looks: Sequence[Look], size: tuple[int, int], map_scale: float = 0.0
) -> tuple[int, int]:
    """(height, width) in pixels of the frame that looks are merged in.

    It spans exactly the image in whole cells, so that a mirrored image has the mirrored cells.

    Args:
        looks: of one image, the base first, all with one stride.
        size: (height, width) of the image.
        map_scale: pixels of the frame per pixel of the base; 0: as fine as the base, with parts of
            the image as fine as the finest of them.
    """
    stride = looks[0].evidence.stride
    zoom = [max(a / b for a, b in zip(x.evidence.people.image_size, x.view.size)) for x in looks]
    factor = zoom[0] * map_scale
    if map_scale == 0:
        parts = [z for z, x in zip(zoom, looks, strict=True) if not x.view.is_whole(size)]
        factor = max(zoom[:1] + parts)
    rows, columns = grid_size((size[0] * factor, size[1] * factor), stride)
    return rows * stride, columns * stride


def merge_looks(
    looks: Sequence[Look],
    size: tuple[int, int],
    *,
    flip_indices: Sequence[int],
    boxes: str,
    suppression: BoxSuppression,
    most_boxes: int,
    map_scale: float = 0.0,
) -> ImageEvidence:
    """One image's evidence from several looks at it; a single look is returned as it is.

    Args:
        looks: of one image, the base first.
        size: (height, width) of the image.
        flip_indices: K indices, see Skeleton.
        boxes: "merged" (of all looks) or "base" (of the first).
        suppression: of boxes of several looks.
        most_boxes: that stay.
        map_scale: see `shared_frame`.

    Returns:
        Evidence in `shared_frame`.
    """
    if len(looks) == 1:
        return looks[0].evidence
    frame = shared_frame(looks, size, map_scale)
    maps = average_maps(looks, size, frame, flip_indices)
    chosen = looks if boxes == "merged" else looks[:1]
    people = merge_boxes(chosen, size, frame, suppression=suppression, most=most_boxes)
    return ImageEvidence(maps, looks[0].evidence.stride, people)


def average_maps(
    looks: Sequence[Look],
    size: tuple[int, int],
    frame: tuple[int, int],
    flip_indices: Sequence[int],
) -> torch.Tensor:
    """(K + 1, h, w) means of the looks' maps over `frame`.

    A part of the image counts around the people whom it shows whole; of those whom it cuts off it
    knows less than the whole image does.
    """
    first = looks[0].evidence
    grid = grid_size(frame, first.stride)
    channels = [*flip_indices, len(flip_indices)]
    total = first.maps.new_zeros(len(channels), *grid, dtype=torch.float32)
    weight = total.new_zeros(grid)
    for look in looks:
        maps = look.evidence.maps.float()
        if look.view.mirrored:
            maps = maps[channels]
        rows, row_span = _axis(look, size, grid, 0)
        columns, column_span = _axis(look, size, grid, 1)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        if not all(shape):
            continue
        window = Window(
            column_span[0], row_span[0], column_span[1], row_span[1], look.view.mirrored
        )
        here = resample_maps(maps, look.evidence.stride, window, shape)
        trust = _trust(look, size, frame, grid)[rows, columns].to(here)
        total[:, rows, columns] += here * trust
        weight[rows, columns] += trust
    return total / weight


def _axis(
    look: Look, size: tuple[int, int], grid: tuple[int, int], axis: int
) -> tuple[slice, tuple[float, float]]:
    """Along an axis (0 rows, 1 columns), of the grid's cells with their centres in the view: which
    they are, and what they span in the view's network input."""
    start, end = (look.view.box[1], look.view.box[3]) if axis == 0 else look.view.box[::2]
    pixels_per_cell = size[axis] / grid[axis]
    centres = (torch.arange(grid[axis], dtype=torch.float64) + 0.5) * pixels_per_cell
    inside = ((centres > start) & (centres < end)).nonzero()[:, 0]
    if not len(inside):
        return slice(0, 0), (0.0, 0.0)
    first, last = int(inside[0]), int(inside[-1]) + 1
    input_side = look.evidence.people.image_size[axis]
    per_pixel = input_side / (end - start)
    # Rounded, so that cells that coincide are seen to.
    span = [round((cell * pixels_per_cell - start) * per_pixel, 6) for cell in (first, last)]
    if axis == 1 and look.view.mirrored:
        span = [input_side - span[1], input_side - span[0]]
    return slice(first, last), (span[0], span[1])


def _trust(
    look: Look, size: tuple[int, int], frame: tuple[int, int], grid: tuple[int, int]
) -> torch.Tensor:
    """(h, w) weights of a look's maps in the grid over `frame`, 0 or 1."""
    if look.view.is_whole(size):
        return torch.ones(grid)
    trust = torch.zeros(grid)
    boxes, scores = _place_boxes(look, size, frame)
    boxes = boxes[scores >= _SURE]
    around = (boxes[:, 2:] - boxes[:, :2]) * _AROUND
    boxes = torch.cat([boxes[:, :2] - around, boxes[:, 2:] + around], dim=1) / (frame[0] / grid[0])
    for x1, y1, x2, y2 in boxes.clamp(min=0).round().int().tolist():
        trust[y1:y2, x1:x2] = 1.0
    return trust


def merge_boxes(
    looks: Sequence[Look],
    size: tuple[int, int],
    frame: tuple[int, int],
    *,
    suppression: BoxSuppression,
    most: int,
) -> Instances:
    """Person boxes of all looks in `frame`, one for each person.

    The best box of a person stays, moved to the mean of what the looks say of her (weighted by
    score). Its score is the mean over the looks that show the place, 0 where they found nobody: of
    what one look alone believes in, less is true. Means under the suppression's least score are
    dropped; soft suppression sees the means.
    """
    placed = [_place_boxes(look, size, frame) for look in looks]
    boxes = torch.cat([b for b, _ in placed])
    scores = torch.cat([s for _, s in placed])
    if len(looks) > 1 and len(boxes):
        hard = suppression.method == "hard"
        # What the kept box drives out is of the same person, whatever the threshold.
        same = suppression.threshold if hard else _SAME_BOX
        kept, _ = BoxSuppression(threshold=same)(boxes, scores, len(boxes))
        owned = _same_person(boxes[kept], boxes, same)
        # A box without area does not even overlap itself.
        owned[torch.arange(len(kept)), kept] = True
        mean_scores = _mean_scores(boxes[kept], owned, placed, looks, size, frame)
        boxes, scores = _vote(boxes[kept], owned, boxes, scores), mean_scores
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= suppression.min_score][:most]
        boxes, scores = boxes[order], scores[order]
        if not hard:
            kept, scores = suppression(boxes, scores, most)
            boxes = boxes[kept]
    people = Instances(frame, pred_boxes=Boxes(boxes), scores=scores)
    people.pred_classes = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    return people


def _place_boxes(
    look: Look, size: tuple[int, int], frame: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) of a look in `frame`, and scores (N,), of people of whom it can tell."""
    people = look.evidence.people
    boxes = to_image(people.pred_boxes.tensor, people.image_size, look.view)
    judged = _is_judged(boxes, look.view, size)
    scale = boxes.new_tensor([frame[1] / size[1], frame[0] / size[0]]).repeat(2)
    return (boxes * scale)[judged], people.scores[judged]


def _is_judged(boxes: torch.Tensor, view: View, size: tuple[int, int]) -> torch.Tensor:
    """(N,) bool: a view can tell of a person with that box (N, 4), pixels of the image.

    The whole image can; a part of it only where it shows the whole of her and she is small.
    """
    if view.is_whole(size):
        return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    corners = boxes.new_tensor(view.box).view(2, 2)
    extent = corners[1] - corners[0]
    judged = ((boxes[:, 2:] - boxes[:, :2]) <= _LARGEST * extent).all(dim=1)
    # Borders of the image cut off nobody whom the whole image shows.
    far = boxes.new_tensor(size).flip(0)
    inner_start, inner_end = corners[0] > 0, corners[1] < far
    judged &= ((boxes[:, :2] >= corners[0] + _CUT * extent) | ~inner_start).all(dim=1)
    judged &= ((boxes[:, 2:] <= corners[1] - _CUT * extent) | ~inner_end).all(dim=1)
    # A pixel to spare: boxes are clipped to the image.
    inside = (boxes[:, :2] >= corners[0] - 1) & (boxes[:, 2:] <= corners[1] + 1)
    return judged & inside.all(dim=1)


def to_image(boxes: torch.Tensor, input_size: tuple[int, int], view: View) -> torch.Tensor:
    """Boxes (N, 4) in a view's network input of (height, width) -> pixels of the image."""
    scale = boxes.new_tensor([view.size[1] / input_size[1], view.size[0] / input_size[0]])
    placed = boxes * scale.repeat(2)
    if view.mirrored:
        placed = torch.stack(
            [view.size[1] - placed[:, 2], placed[:, 1], view.size[1] - placed[:, 0], placed[:, 3]],
            dim=1,
        )
    return placed + placed.new_tensor([view.box[0], view.box[1]]).repeat(2)


def _same_person(kept: torch.Tensor, boxes: torch.Tensor, same: float) -> torch.Tensor:
    """(M, N) bool: box n of all is of the same person as kept one m, the one it overlaps most, by
    an IoU over `same`."""
    overlaps = torch.nan_to_num(box_iou(kept, boxes), nan=0.0)
    return (overlaps == overlaps.amax(dim=0)) & (overlaps > same)


def _mean_scores(
    kept: torch.Tensor,
    owned: torch.Tensor,
    placed: Sequence[tuple[torch.Tensor, torch.Tensor]],
    looks: Sequence[Look],
    size: tuple[int, int],
    frame: tuple[int, int],
) -> torch.Tensor:
    """(M,) mean over looks of the best score that each gives a kept box (M, 4)."""
    best, shown, first = [], [], 0
    in_image = kept / kept.new_tensor([frame[1] / size[1], frame[0] / size[0]]).repeat(2)
    for look, (_, scores) in zip(looks, placed, strict=True):
        mine = owned[:, first : first + len(scores)] * scores
        first += len(scores)
        best.append(mine.amax(dim=1) if len(scores) else kept.new_zeros(len(kept)))
        shown.append(_is_judged(in_image, look.view, size) | (best[-1] > 0))
    return torch.stack(best).sum(dim=0) / torch.stack(shown).sum(dim=0).clamp(min=1)


def _vote(
    kept: torch.Tensor, owned: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    """Each kept box at the mean of all that are the same person's, weighted by their scores."""
    weights = scores * owned
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights @ boxes / total.clamp(min=1e-9), kept)


def pool_people(
    results: Sequence[tuple[View, dict]], size: tuple[int, int], flip_indices: Sequence[int]
) -> dict:
    """Everybody whom any view shows, with a mask of her own where the views give one, in the frame
    of the image; masks of all people together are averaged. Fields that not all results have (an
    ensemble of which not every network gives each person a mask) are left out.

    Args:
        results: of one image per view: {"instances", "sem_seg" ...} in pixels of the view's part.
        size: (height, width) of the image.
        flip_indices: K indices, see Skeleton.

    Returns:
        {"instances", "sem_seg" and "heatmaps" where the first view has them: the mean mask of
        those that have one (in an ensemble not every network does), the maps of the first}.
    """
    placed = [_placed(r, v, size, flip_indices) for v, r in results]
    shared = set.intersection(*(set(people.get_fields()) for people in placed))
    for people in placed:
        for name in set(people.get_fields()) - shared:
            people.remove(name)
    merged = {"instances": Instances.cat(placed)}
    first = results[0][1]
    if "sem_seg" in first:
        with_masks = [pair for pair in results if "sem_seg" in pair[1]]
        merged["sem_seg"] = _average_masks(with_masks, size)
    if "heatmaps" in first:
        merged["heatmaps"] = first["heatmaps"]
    return merged


def _placed(
    result: dict, view: View, size: tuple[int, int], flip_indices: Sequence[int]
) -> Instances:
    """People of whom a view can tell, in pixels of the image."""
    found = result["instances"]
    boxes = to_image(found.pred_boxes.tensor, view.size, view)
    judged = _is_judged(boxes, view, size)
    fields = dict(found[judged].get_fields())
    fields["pred_boxes"] = Boxes(boxes[judged])
    if "pred_keypoints" in fields:
        joints = fields["pred_keypoints"]
        given = (joints != 0).any(dim=-1, keepdim=True)
        x, y, score = joints.unbind(dim=-1)
        if view.mirrored:
            x = view.size[1] - x
        joints = torch.stack([x + view.box[0], y + view.box[1], score], dim=-1) * given
        fields["pred_keypoints"] = joints[:, list(flip_indices)] if view.mirrored else joints
    if "pred_masks" in fields:
        masks = fields["pred_masks"].flip(-1) if view.mirrored else fields["pred_masks"]
        x1, y1, x2, y2 = view.box
        fields["pred_masks"] = F.pad(masks, (x1, size[1] - x2, y1, size[0] - y2))
    return Instances(size, **fields)


def _average_masks(results: Sequence[tuple[View, dict]], size: tuple[int, int]) -> torch.Tensor:
    """(2, H, W) = [1 - p, p], p the mean of the views that show a pixel."""
    total = results[0][1]["sem_seg"].new_zeros(size)
    count = torch.zeros_like(total)
    for view, result in results:
        x1, y1, x2, y2 = view.box
        p = result["sem_seg"][1]
        total[y1:y2, x1:x2] += p.flip(-1) if view.mirrored else p
        count[y1:y2, x1:x2] += 1
    p = total / count
    return torch.stack([1 - p, p])
