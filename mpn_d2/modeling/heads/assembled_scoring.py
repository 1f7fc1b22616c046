"""The pose score (PSM) of assembled poses: which OKS is to be expected of a pose.

Pose regression's PSM (spec section 9) for networks that assemble poses from heatmaps: read where
the pose's joints lie, learn the OKS as a soft target, multiply the score that there is. What is
read are the maps themselves, so that any number of views can be merged before. Letters: P poses, K
keypoint types, H x W cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import nn

# Of a joint beside the maps: found, score, x and y in the box.
_OF_JOINT = 4
# Of a box: score, logarithms of width and height.
_OF_BOX = 3
# Side whose logarithm is 0, pixels: what is between small and large people in COCO.
_SIDE = 64.0


class AssembledPoseScorer(nn.Module):
    """Two hidden layers on what the maps hold at a pose's joints; untrained it says 0.5 of all.

    Args:
        num_keypoints: K.
        width: units of each hidden layer.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, *, num_keypoints: int, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"MODEL.POSE_SCORER.WIDTH is {width}: at least 1 is needed")
        self.num_keypoints = num_keypoints
        inputs = num_keypoints * (_OF_JOINT + num_keypoints + 1) + _OF_BOX
        self.hidden = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.output = nn.Linear(width, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def describe(
        self, maps: torch.Tensor, stride: int, people: Instances
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is seen of each pose: (P, K, 4 + K + 1) of joints, (P, 3) of boxes.

        Args:
            maps: (K + 1 or more, H, W) heatmaps and person mask; detached.
            stride: cell side, pixels of the frame of the people.
            people: P with `pred_boxes`, `scores`, `pred_keypoints` (P, K, 3).
        """
        boxes, joints = people.pred_boxes.tensor.float(), people.pred_keypoints.float()
        maps = maps[: self.num_keypoints + 1].detach().float()
        if len(joints) == 0:
            shape = (0, self.num_keypoints, _OF_JOINT + self.num_keypoints + 1)
            return maps.new_zeros(shape), maps.new_zeros(0, _OF_BOX)
        # grid_sample's frame: the maps span -1 to 1.
        extent = maps.new_tensor([maps.shape[2] * stride, maps.shape[1] * stride])
        places = joints[..., :2] * (2 / extent) - 1
        read = F.grid_sample(maps[None], places[None], align_corners=False)[0]
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
        inside = (joints[..., :2] - boxes[:, None, :2]) / sides[:, None]
        found = (joints[..., 2:] > 0).float()
        seen = torch.cat([joints[..., 2:], inside.clamp(-1, 2), read.permute(1, 2, 0)], dim=2)
        of_boxes = torch.cat([people.scores.float()[:, None], (sides / _SIDE).log()], dim=1)
        return torch.cat([found, seen * found], dim=2), of_boxes

    def mirrored(self, joints: torch.Tensor, flip_indices: Sequence[int]) -> torch.Tensor:
        """Joints of `describe` as they are in the mirrored image.

        Args:
            joints: (P, K, 4 + K + 1).
            flip_indices: K indices, see Skeleton.
        """
        flip = torch.as_tensor(flip_indices, device=joints.device)
        found, score, x, y = joints[:, flip, :_OF_JOINT].unbind(dim=2)
        of_maps = joints[:, flip, _OF_JOINT:]
        types, mask = of_maps[..., flip], of_maps[..., self.num_keypoints :]
        places = torch.stack([found, score, found - x, y], dim=2)
        return torch.cat([places, types, mask], dim=2)

    def forward(self, joints: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(P, K, 4 + K + 1) and (P, 3) of `describe` -> (P,) logits of the OKS."""
        seen = torch.cat([joints.flatten(1), boxes], dim=1)
        return self.output(self.hidden(seen.to(self.output.weight.dtype)))[:, 0]

    @torch.no_grad()
    def expected_oks(
        self,
        maps: torch.Tensor,
        stride: int,
        people: Instances,
        flip_indices: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """(P,) in (0, 1); with flip_indices the mean of the pose and its mirrored twin."""
        joints, boxes = self.describe(maps, stride, people)
        oks = self(joints, boxes).float().sigmoid()
        if flip_indices is None:
            return oks
        twin = self(self.mirrored(joints, flip_indices), boxes).float().sigmoid()
        return (oks + twin) / 2
