"""How well an assembler gives keypoints to people, without any image (design 7.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from mpn_d2.evaluation.pose_evaluator import PoseEvaluator
from mpn_d2.evaluation.scenes import Scene, check_one_to_one, owner_share, to_instances
from mpn_d2.structures.outputs import AssembledPoses

# What passes through the assembler at once: so many images, and boxes unless one image has more.
_IMAGES = 32
_BOXES = 512


@torch.no_grad()
def assemble_scenes(
    assembler: nn.Module, scenes: list[Scene], *, one_to_one: bool = True
) -> list[AssembledPoses]:
    """Poses of all boxes of all scenes, on the CPU, in evaluation mode.

    Args:
        assembler: of POSE_ASSEMBLER_REGISTRY; its mode is put back afterwards.
        scenes: all with box scores, or all without.
        one_to_one: raise a ValueError where a keypoint went to two boxes or was invented.
    """
    training = assembler.training
    assembler.eval()
    device = assembler.evidence.device
    poses = []
    for part in scene_batches(scenes):
        scored = part[0].box_scores is not None
        found = assembler.inference(
            [scene.candidates.to(device) for scene in part],
            [scene.boxes.to(device) for scene in part],
            [scene.box_scores.to(device) for scene in part] if scored else None,
        )
        poses += [
            AssembledPoses(p.keypoints.cpu(), p.scores.cpu(), p.candidate_ids.cpu()) for p in found
        ]
    assembler.train(training)
    if one_to_one:
        check_one_to_one(scenes, poses)
    return poses


def scene_batches(scenes: list[Scene]) -> Iterator[list[Scene]]:
    """The scenes in order, as many at a time as memory allows."""
    part: list[Scene] = []
    boxes = 0
    for scene in scenes:
        if part and (len(part) == _IMAGES or boxes + len(scene.boxes) > _BOXES):
            yield part
            part, boxes = [], 0
        part.append(scene)
        boxes += len(scene.boxes)
    if part:
        yield part


def evaluate_poses(
    dataset_name: str,
    scenes: list[Scene],
    poses: list[AssembledPoses],
    sigmas: Sequence[float],
    output_dir: str | None = None,
) -> dict[str, float | None]:
    """COCO's keypoint metrics, 0 to 100, and `owner_share` where owners are known.

    Args:
        dataset_name: registered, whose annotations are the truth.
        scenes: of all its images.
        poses: of their boxes.
        sigmas: (K,) OKS constants.
        output_dir: where keypoints_results.json is written; None writes none.
    """
    evaluator = PoseEvaluator(
        dataset_name, tasks=["keypoints"], sigmas=sigmas, output_dir=output_dir, distributed=False
    )
    evaluator.process(
        [{"image_id": scene.image_id} for scene in scenes],
        [{"instances": to_instances(s, p)} for s, p in zip(scenes, poses, strict=True)],
    )
    metrics = dict(evaluator.evaluate()["keypoints"])
    share = owner_share(scenes, poses)
    return metrics if share is None else {**metrics, "owner_share": share}
