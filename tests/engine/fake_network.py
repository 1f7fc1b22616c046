"""A network that reads its people off the picture, so that places are known to the last digit."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from mpn_d2.codecs.heatmap import decode_heatmaps, encode_heatmaps
from mpn_d2.structures.nms import BoxSuppression
from mpn_d2.structures.outputs import ImageEvidence

STRIDE = 4
# The left-most blob of a picture is keypoint 0 ("left"), the right-most 1, the middle one 2; in a
# mirror the first two change places.
FLIP = (1, 0, 2)
BLOB = 12  # side in image pixels


def picture(size: tuple[int, int], points: list[tuple[float, float]]) -> torch.Tensor:
    """(3, H, W) uint8, black, a white square about each point (whole pixels, continuous frame)."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for x, y in points:
        half = BLOB // 2
        image[:, int(y) - half : int(y) + half, int(x) - half : int(x) + half] = 255
    return image


class FakeNetwork(nn.Module):
    """`look`s at pictures of three blobs, the keypoints of one person.

    Args:
        score: of the box.
        grow: pixels of the network input by which boxes are too large on each side.
        height: of the peaks.
    """

    def __init__(self, score: float = 0.9, grow: float = 0.0, height: float = 1.0) -> None:
        super().__init__()
        self.score, self.grow, self.height = score, grow, height
        self.box_suppression = BoxSuppression(threshold=0.5)
        self.flip_seen: list[object] = []

    def look(self, inputs: list[dict]) -> list[ImageEvidence]:
        return [self._look(x["image"]) for x in inputs]

    def _look(self, image: torch.Tensor) -> ImageEvidence:
        size = tuple(image.shape[-2:])
        points = self._blobs(image[0].float())
        grid = (-(-size[0] // STRIDE) + 3, -(-size[1] // STRIDE) + 2)  # with padding
        keypoints = torch.zeros(1, 3, 3)
        if len(points) == 3:
            order = points[points[:, 0].argsort()]
            keypoints[0, [0, 2, 1], :2] = order
            keypoints[..., 2] = 2.0
        maps = encode_heatmaps([keypoints], 3, grid, STRIDE, 9.0)[0] * self.height
        people = Instances(size)
        boxes = torch.zeros(0, 4)
        if len(points) == 3:
            boxes = torch.cat([points.amin(0) - self.grow, points.amax(0) + self.grow])[None]
            boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
            boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
        people.pred_boxes = Boxes(boxes)
        people.scores = torch.full((len(boxes),), self.score)
        people.pred_classes = torch.zeros(len(boxes), dtype=torch.long)
        mask = torch.zeros(1, *grid)
        mask[:, :, : grid[1] // 2] = 0.75  # the left half of what is seen is a person
        return ImageEvidence(torch.cat([maps, mask]), STRIDE, people)

    def _blobs(self, brightness: torch.Tensor) -> torch.Tensor:
        """(n, 2) centres of mass of the bright columns' runs, left to right."""
        columns = (brightness > 40).any(dim=0).int()
        steps = torch.diff(columns, prepend=torch.zeros(1), append=torch.zeros(1))
        starts, ends = (steps > 0).nonzero()[:, 0], (steps < 0).nonzero()[:, 0]
        centres = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            a, b = max(start - 2, 0), end + 2
            part = brightness[:, a:b]
            y = (part.sum(1) * (torch.arange(len(part)) + 0.5)).sum() / part.sum()
            x = (part.sum(0) * (torch.arange(part.shape[1]) + 0.5)).sum() / part.sum() + a
            centres.append(torch.stack([x, y]))
        return torch.stack(centres) if centres else torch.zeros(0, 2)

    def assemble_people(self, evidence, sizes, flip_indices=None) -> list[dict]:
        """Peaks of the maps become the keypoints of every box."""
        self.flip_seen.append(flip_indices)
        results = []
        for seen, size in zip(evidence, sizes, strict=True):
            frame = seen.people.image_size
            scale = torch.tensor([size[1] / frame[1], size[0] / frame[0]])
            found = decode_heatmaps(seen.maps[None, :3], STRIDE, 0.2, 1, [frame])[0]
            joints = torch.zeros(len(seen.people), 3, 3)
            joints[:, found.types, :2] = found.points * scale
            joints[:, found.types, 2] = found.scores
            people = Instances(size, **seen.people.get_fields())
            people.pred_boxes = Boxes(seen.people.pred_boxes.tensor * scale.repeat(2))
            people.pred_keypoints = joints
            people.pose_scores = joints[..., 2].mean(dim=1)
            p = nn.functional.interpolate(
                seen.maps[None, 3:, : frame[0] // STRIDE, : frame[1] // STRIDE], size
            )[0]
            results.append({"instances": people, "sem_seg": torch.cat([1 - p, p])})
        return results

    def forward(self, inputs: list[dict]) -> list[dict]:
        return self.assemble_people(self.look(inputs), [(x["height"], x["width"]) for x in inputs])
