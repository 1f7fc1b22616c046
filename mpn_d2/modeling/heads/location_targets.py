"""What every location is to learn of the people of a batch (spec section 6).

Letters: N images, R locations, P people of one image with labelled joints, K keypoint types, M
positive locations of the batch. Frame: network input, continuous pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.structures import Instances

from mpn_d2.codecs.offsets import Locations, assign_locations, joint_boxes
from mpn_d2.structures.oks import AREA_OF_BOX

SAMPLINGS = ("center", "bbox")
# Cells of `ignore_mask` and its value where nothing is known, see PoseDatasetMapper.
_MASK_STRIDE = 4
_IGNORED = 1


@dataclass
class Positives:
    """The locations that answer for somebody, images one behind the other.

    Attributes:
        image, place: (M,) int64, image of the batch and location.
        owners: (M,) int64, person of that image.
        counts: positive locations of each image.
        keypoints: (M, K, 3) x, y, v of these people; boxes: (M, 4) theirs.
        points, strides: (M, 2) and (M,) of the locations.
    """

    image: torch.Tensor
    place: torch.Tensor
    owners: torch.Tensor
    counts: list[int]
    keypoints: torch.Tensor
    boxes: torch.Tensor
    points: torch.Tensor
    strides: torch.Tensor


@dataclass
class LocationTargets:
    """Targets of a batch.

    Attributes:
        owners: (N, R) int64 person that a location answers for, -1 for background.
        ignored: (N, R) bool: background that nobody knows (crowds, people without keypoints).
        keypoints: per image (P, K, 3) x, y, v of the people with labelled joints.
        areas: per image (P,) of these, square pixels.
        boxes: per image (P, 4) that locations were sampled in.
    """

    owners: torch.Tensor
    ignored: torch.Tensor
    keypoints: list[torch.Tensor]
    areas: list[torch.Tensor]
    boxes: list[torch.Tensor]

    def positives(self, locations: Locations) -> Positives:
        """The locations that answer for somebody."""
        image, place = torch.nonzero(self.owners >= 0, as_tuple=True)
        owners = self.owners[image, place]
        counts = [int((of_image >= 0).sum()) for of_image in self.owners]
        found = list(zip(owners.split(counts), self.keypoints, self.boxes, strict=True))
        return Positives(
            image=image,
            place=place,
            owners=owners,
            counts=counts,
            keypoints=torch.cat([keypoints[own] for own, keypoints, _ in found]),
            boxes=torch.cat([boxes[own] for own, _, boxes in found]),
            points=locations.points[place],
            strides=locations.strides[place],
        )


@torch.no_grad()
def make_location_targets(
    gt_instances: list[Instances],
    ignore_masks: list[torch.Tensor],
    locations: Locations,
    *,
    sampling: str,
    radius: float,
) -> LocationTargets:
    """Targets of a batch on the device of the locations.

    Args:
        gt_instances: `gt_boxes`, `gt_keypoints` and, unless 0.53 of the box shall do, `gt_areas`;
            people without labelled joints have no locations.
        ignore_masks: per image (h, w) uint8 at stride 4.
        locations: of the padded batch.
        sampling: "center" or "bbox", see MODEL.POSE_REGRESSION.SAMPLING.
        radius: of "center", strides.
    """
    owners, ignored, all_keypoints, all_areas, all_boxes = [], [], [], [], []
    for instances, mask in zip(gt_instances, ignore_masks, strict=True):
        known = (instances.gt_keypoints.tensor[..., 2] > 0).any(dim=1)
        people = instances[known]
        keypoints = people.gt_keypoints.tensor.float()
        boxes = people.gt_boxes.tensor if sampling == "bbox" else joint_boxes(keypoints)
        owners.append(assign_locations(boxes, locations, radius if sampling == "center" else None))
        ignored.append(_read_mask(mask.to(keypoints.device), locations.points) == _IGNORED)
        all_keypoints.append(keypoints)
        all_areas.append(_areas(people))
        all_boxes.append(boxes)
    return LocationTargets(
        torch.stack(owners), torch.stack(ignored), all_keypoints, all_areas, all_boxes
    )


def _areas(people: Instances) -> torch.Tensor:
    if people.has("gt_areas"):
        return people.gt_areas
    return AREA_OF_BOX * people.gt_boxes.area()


def _read_mask(mask: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(R,) values of a mask (h, w) of cells at points (R, 2); 0 beyond it (padding)."""
    column, row = (points / _MASK_STRIDE).floor().long().unbind(dim=1)
    inside = (row < mask.shape[0]) & (column < mask.shape[1])
    values = mask.new_zeros(len(points))
    values[inside] = mask[row[inside], column[inside]]
    return values
