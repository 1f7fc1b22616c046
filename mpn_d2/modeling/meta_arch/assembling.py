"""From maps and person boxes of images to people: the last step of networks with dense heatmaps.

Letters: K keypoint types, P people of one image, H x W cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Instances
from torch import nn

from mpn_d2.modeling.assembly.mirrored import Mirror
from mpn_d2.modeling.meta_arch.common import (
    finish_instances,
    finish_person_mask,
    image_heatmaps,
    in_groups,
)
from mpn_d2.structures.outputs import HeatmapOutputs, ImageEvidence


def assemble_evidence(
    evidence: list[ImageEvidence],
    sizes: list[tuple[int, int]],
    *,
    keypoint_head: nn.Module,
    assembler: nn.Module,
    return_heatmaps: bool = False,
    flip_indices: Sequence[int] | None = None,
    pose_factor: Callable[[ImageEvidence, Instances], torch.Tensor] | None = None,
) -> list[dict]:
    """Per image {"instances", "sem_seg"} and on demand "heatmaps", in pixels of its final size.

    Images with maps of one size are assembled together.

    Args:
        evidence: per image; left as it is.
        sizes: (height, width) per image that the results are scaled to.
        keypoint_head: reads candidates and person mask off the maps.
        assembler: of POSE_ASSEMBLER_REGISTRY. Boxes below MODEL.ASSEMBLER.BOX_SCORE_THRESH claim
            nothing and keep an empty pose.
        return_heatmaps: add "heatmaps" (K, h, w), see `image_heatmaps`.
        flip_indices: K indices (see Skeleton): the assembler sees everything mirrored, too; None
            for one sight.
        pose_factor: of an image's evidence and its assembled people, in the frame of the evidence,
            gives (P,) that their pose scores are multiplied by; None for no factor.
    """

    def of_one_size(evidence: list[ImageEvidence], sizes: list[tuple[int, int]]) -> list[dict]:
        maps = HeatmapOutputs(torch.stack([x.maps for x in evidence]), evidence[0].stride)
        frames = [x.people.image_size for x in evidence]
        candidates, masks = keypoint_head.inference(maps, frames)
        poses = assembler.inference(
            # Given ones may be empty.
            [
                found if x.candidates is None else x.candidates
                for x, found in zip(evidence, candidates, strict=True)
            ],
            [x.people.pred_boxes.tensor for x in evidence],
            [x.people.scores for x in evidence],
            maps,
            None if flip_indices is None else Mirror.of(frames, flip_indices),
        )
        results = []
        for seen, pose, mask, size in zip(evidence, poses, masks, sizes, strict=True):
            frame = seen.people.image_size
            people = Instances(frame, **seen.people.get_fields())
            people.pred_keypoints, people.pose_scores = pose.keypoints, pose.scores
            if pose_factor is not None:
                people.pose_scores = pose.scores * pose_factor(seen, people)
            result = {
                "instances": finish_instances(people, *size),
                "sem_seg": finish_person_mask(mask, maps.stride, frame, *size),
            }
            if return_heatmaps:
                heatmaps = seen.maps[: keypoint_head.num_keypoints].float()
                result["heatmaps"] = image_heatmaps(heatmaps, maps.stride, frame)
            results.append(result)
        return results

    shapes = [tuple(x.maps.shape) for x in evidence]
    groups = [[i for i, other in enumerate(shapes) if other == s] for s in dict.fromkeys(shapes)]
    return in_groups(of_one_size, groups, evidence, sizes)
