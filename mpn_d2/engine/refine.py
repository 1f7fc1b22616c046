"""Poses refined by a single-person network: every box of a result is looked at by itself (REFINE).

MultiPoseNet's best row on COCO's test-dev pools its poses with those of such a network and removes
repeats by OKS-NMS (spec section 10); MERGE pool gives what is to be pooled.
Letters: P people of one image, K keypoint types. Frame: the images as given, continuous pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.config_files import config_file
from mpn_d2.data.person_crops import CropTransform, crop_matrix, has_area
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.fast import speed_up
from mpn_d2.structures.oks import AREA_OF_BOX, joint_similarity
from mpn_d2.structures.skeleton import get_skeleton

MERGES = ("average", "fill", "replace", "pool")
# Two places of a joint are about the same from this OKS of the joint on. [ours: on drawn people all
# of 0.1 to 0.7 lie within half a point of AP; averaging whatever the distance loses three]
SAME_PLACE = 0.3
FORMATS = ("RGB", "BGR")


def build_refiner(cfg: CfgNode) -> PoseRefiner | None:
    """The refiner of REFINE, on MODEL.DEVICE with its weights; None where REFINE.CONFIG is empty.

    Raises:
        FileNotFoundError: the config or weights are missing; names the key.
        ValueError: a config of no single-person network or of another skeleton, weights that do
            not fit it, an unknown MERGE, pool without OKS_NMS, or a threshold out of 0 to 1; names
            the key.
    """
    check_refinement(cfg)
    refine = cfg.REFINE
    if not refine.CONFIG:
        return None
    if not refine.WEIGHTS:
        raise ValueError(f"REFINE.WEIGHTS is empty: give the checkpoint of {refine.CONFIG}")
    try:
        own = load_config(config_file(refine.CONFIG), ["MODEL.DEVICE", cfg.MODEL.DEVICE])
        own.SPEED = cfg.SPEED.clone()
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"REFINE.CONFIG: {error}") from error
    _check(cfg, own)
    model = build_pose_model(own)
    model.eval()
    try:
        PoseCheckpointer(model, cfg=own, strict=True).load(refine.WEIGHTS)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"REFINE.WEIGHTS: {error}") from error
    model = speed_up(model, own)
    if cfg.TTA.ENABLED and cfg.TTA.FLIP:
        model.flip_indices = get_skeleton(own.MODEL.SKELETON).flip_indices
    return PoseRefiner(
        model,
        size=own.SINGLE_PERSON.SIZE,
        margin=own.SINGLE_PERSON.MARGIN,
        sigmas=get_skeleton(own.MODEL.SKELETON).sigmas,
        merge=refine.MERGE,
        box_score_thresh=refine.BOX_SCORE_THRESH,
        swap_channels=own.INPUT.FORMAT != cfg.INPUT.FORMAT,
    )


def check_refinement(cfg: CfgNode) -> None:
    """Raises a ValueError that names a key of REFINE that cannot be meant so."""
    refine = cfg.REFINE
    if refine.MERGE not in MERGES:
        raise ValueError(f"REFINE.MERGE is {refine.MERGE!r}; choose one of {', '.join(MERGES)}")
    if not 0 <= refine.BOX_SCORE_THRESH <= 1:
        raise ValueError(f"REFINE.BOX_SCORE_THRESH is {refine.BOX_SCORE_THRESH}: give 0 to 1")
    if refine.CONFIG and refine.MERGE == "pool" and cfg.OKS_NMS.MODE == "none":
        raise ValueError(
            "REFINE.MERGE pool leaves two people in each box: set OKS_NMS.MODE hard or soft"
        )


def _check(cfg: CfgNode, own: CfgNode) -> None:
    """Whether the network of REFINE.CONFIG, `own`, can refine what that of `cfg` predicts."""
    name = cfg.REFINE.CONFIG
    if not own.SINGLE_PERSON.ENABLED:
        raise ValueError(
            f"REFINE.CONFIG: {name} is no single-person network (SINGLE_PERSON.ENABLED is False)"
        )
    theirs, ours = get_skeleton(own.MODEL.SKELETON), get_skeleton(cfg.MODEL.SKELETON)
    if theirs.keypoint_names != ours.keypoint_names:
        raise ValueError(
            f"REFINE.CONFIG: MODEL.SKELETON of {name} is {theirs.name!r}, here it is "
            f"{ours.name!r}: both must have the same keypoints"
        )
    for format_ in (own.INPUT.FORMAT, cfg.INPUT.FORMAT):
        if format_ not in FORMATS:
            raise ValueError(f"INPUT.FORMAT is {format_!r}: refinement needs RGB or BGR")


class PoseRefiner(nn.Module):
    """Looks at the boxes of a result one by one and merges the poses seen there into it.

    `merge` says how the two poses of a box become one:

    - "average", joint by joint: where both are about in the same place, the mean weighted by
      their scores, with the mean score; else the one with the higher score;
    - "fill": the network's where the first pose has no joint (score 0);
    - "replace": the network's;
    - "pool": both stay, as two people with the same box and box score. OKS-NMS is to choose.

    A box without any first pose gets the network's in all four. A pose is rated as the first one
    was, times how much higher its joints score than the first one's, on joints that that one has:
    a second box of somebody, to which the assembly gave few joints, stays rated low, though the
    network sees a whole person there. Without a first pose: the joints' mean times the box score.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        size: tuple[int, int],
        margin: float,
        sigmas: Sequence[float],
        merge: str = "average",
        box_score_thresh: float = 0.0,
        swap_channels: bool = False,
    ) -> None:
        """
        Args:
            model: takes crops as SinglePersonMapper makes them at test time; in evaluation mode.
            size, margin: of the crops, see SINGLE_PERSON.
            sigmas: (K,) OKS constants of the skeleton.
            merge: see above.
            box_score_thresh: boxes with a lower score stay as they are.
            swap_channels: the model takes RGB where the images are BGR, or the other way round.
        """
        super().__init__()
        self.model = model
        self.size = tuple(size)
        self.margin = margin
        self.sigmas = torch.tensor(tuple(sigmas), dtype=torch.float32)
        self.merge = merge
        self.box_score_thresh = box_score_thresh
        self.swap_channels = swap_channels

    @torch.no_grad()
    def forward(self, images: list[torch.Tensor], instances: list[Instances]) -> list[Instances]:
        """Refines the people of each image; a box's pose does not depend on the others.

        Args:
            images: (3, H, W) uint8 each, in the INPUT.FORMAT of the network that found the people.
            instances: one an image, in its frame: `pred_boxes`, `scores`, `pose_scores`,
                `pred_keypoints` (P, K, 3) and perhaps more. Left as they are.

        Returns:
            New instances with the same fields. Boxes without an area and those under the threshold
            keep their pose; merge "pool" adds the new poses behind the old ones, in their order.

        Raises:
            ValueError: not one Instances an image, or of another frame than the image.
        """
        if len(images) != len(instances):
            raise ValueError(f"{len(images)} images, but people of {len(instances)}")
        for image, people in zip(images, instances):
            if tuple(image.shape[-2:]) != tuple(people.image_size):
                raise ValueError(
                    f"an image of {tuple(image.shape[-2:])} pixels, but its people are in the "
                    f"frame of {tuple(people.image_size)}"
                )
        chosen = [self._chosen(people) for people in instances]
        crops = itertools.chain.from_iterable(map(self._crops, images, instances, chosen))
        poses = []
        while chunk := list(itertools.islice(crops, self.model.max_crops)):
            poses += [found["instances"].pred_keypoints[0] for found in self.model(chunk)]
        poses = iter(poses)
        refined = []
        for people, rows in zip(instances, chosen):
            own = list(itertools.islice(poses, len(rows)))
            refined.append(self._merged(people, rows, own) if own else people[:])
        return refined

    def _chosen(self, people: Instances) -> list[int]:
        """Rows of the people whose box is looked at."""
        enough = people.scores.cpu().numpy() >= self.box_score_thresh
        usable = has_area(people.pred_boxes.tensor.cpu().numpy())
        return np.flatnonzero(enough & usable).tolist()

    def _crops(self, image: torch.Tensor, people: Instances, rows: list[int]) -> Iterator[dict]:
        """The model's inputs, one a row."""
        if not rows:
            return
        pixels = image.permute(1, 2, 0).cpu().numpy()
        height, width = pixels.shape[:2]
        boxes = people.pred_boxes.tensor.cpu()
        for row in rows:
            matrix = crop_matrix(boxes[row].numpy(), self.size, self.margin)
            crop = CropTransform(matrix, self.size).apply_image(pixels)
            crop = crop[:, :, ::-1] if self.swap_channels else crop
            yield {
                "image": torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))),
                "box": boxes[row],
                "to_crop": torch.from_numpy(matrix),
                "height": height,
                "width": width,
            }

    def _merged(self, people: Instances, rows: list[int], poses: list[torch.Tensor]) -> Instances:
        """New people, of whom `rows` were looked at and have the `poses` (K, 3) there."""
        index = torch.tensor(rows, device=people.scores.device)
        first = people[index]
        seen = torch.stack(poses).to(first.pred_keypoints)
        areas = first.pred_boxes.area() * AREA_OF_BOX
        joints = merge_joints(first.pred_keypoints, seen, self.merge, areas, self.sigmas.to(areas))
        scores = rate_again(first, joints)
        if self.merge == "pool":
            has_pose = (first.pred_keypoints[..., 2] > 0).any(dim=1)
            added = _with(first, torch.arange(len(rows)), joints, scores)[has_pose]
            people = _with(people, index[~has_pose], joints[~has_pose], scores[~has_pose])
            return Instances.cat([people, added]) if len(added) else people
        return _with(people, index, joints, scores)


def merge_joints(
    first: torch.Tensor,
    seen: torch.Tensor,
    merge: str,
    areas: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    """Two poses of each person as one, see PoseRefiner; "pool" and "replace" give the second.

    Args:
        first: (P, K, 3) x, y, score; score 0 where a joint is missing or a guess.
        seen: (P, K, 3), every score over 0.
        merge: of MERGES.
        areas: (P,) of the people, square pixels.
        sigmas: (K,) OKS constants.
    """
    if merge in ("pool", "replace"):
        return seen.clone()
    missing = first[..., 2:] <= 0
    if merge == "fill":
        return torch.where(missing, seen, first)
    share = seen[..., 2:] / (first[..., 2:] + seen[..., 2:])
    points = first[..., :2] + share * (seen[..., :2] - first[..., :2])
    mean = torch.cat([points, (first[..., 2:] + seen[..., 2:]) / 2], dim=-1)
    better = torch.where(seen[..., 2:] > first[..., 2:], seen, first)
    near = joint_similarity(first, seen, areas, sigmas)[..., None] > SAME_PLACE
    return torch.where(missing, seen, torch.where(near, mean, better))


def rate_again(first: Instances, joints: torch.Tensor) -> torch.Tensor:
    """(P,) pose scores of new joints (P, K, 3) of these people, see PoseRefiner."""
    before, after = first.pred_keypoints[..., 2], joints[..., 2]
    has = before > 0
    ratio = (after * has).sum(dim=1) / before.sum(dim=1)
    anew = first.scores * after.mean(dim=1)
    return torch.where(has.any(dim=1), first.pose_scores * ratio, anew).clamp(0, 1)


def _with(
    people: Instances, index: torch.Tensor, joints: torch.Tensor, scores: torch.Tensor
) -> Instances:
    """A copy whose people at `index` have these poses."""
    fields = dict(people.get_fields())
    fields["pred_keypoints"] = people.pred_keypoints.clone()
    fields["pose_scores"] = people.pose_scores.clone()
    fields["pred_keypoints"][index] = joints
    fields["pose_scores"][index] = scores.to(people.pose_scores)
    return Instances(people.image_size, **fields)
