"""AP of poses against everybody annotated or some of them, again and again (review notes 3.2).

Letters: P boxes of one image, K keypoint types.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from pycocotools.coco import COCO

from mpn_d2.evaluation.pose_evaluator import PoseEvaluator
from mpn_d2.evaluation.scenes import Scene, to_instances
from mpn_d2.structures.oks import pairwise_oks
from mpn_d2.structures.outputs import AssembledPoses

# Boxes (P, 4) and numbers of labelled joints (P,) of all people of an image, crowds with 0 joints,
# to (P,) bool: who is meant.
Group = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_XYWH_TO_XYXY = (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)


class PeopleScorer(PoseEvaluator):
    """COCO's keypoint AP of poses in annotated boxes; reads the annotations once, prints nothing.

    Args:
        dataset_name: registered.
        sigmas: (K,) OKS constants.
    """

    def __init__(self, dataset_name: str, sigmas: Sequence[float]) -> None:
        super().__init__(dataset_name, tasks=["keypoints"], sigmas=sigmas, distributed=False)
        self._everybody = self._coco_api

    def score(self, scenes: list[Scene], poses: list[AssembledPoses]) -> float | None:
        """AP, 0 to 100; None where nobody with joints is annotated.

        Args:
            scenes: of all images of the dataset.
            poses: of their boxes.
        """
        return self._score(self._everybody, scenes, list(map(to_instances, scenes, poses)))

    def score_group(
        self, everybody: list[Scene], scenes: list[Scene], poses: list[AssembledPoses], group: Group
    ) -> tuple[float | None, int]:
        """AP of the poses of some people's boxes against these people, and how many they are.

        All others neither count nor punish: they are no truth, and their poses are left out. (Bad
        poses of people who are merely ignored would still count as false.)

        Args:
            everybody: scenes of annotations with all boxes, in which people are counted.
            scenes, poses: see `score`; boxes of annotated people.
            group: who is meant.
        """
        meant = []
        for whole, scene, pose in zip(everybody, scenes, poses, strict=True):
            labelled = torch.bincount(whole.owners, minlength=len(whole.boxes))
            inside = group(whole.boxes, labelled)
            meant.append(to_instances(scene, pose)[inside[scene.people]])
        truth = self._truth_of(group)
        return self._score(truth, scenes, meant), len(truth.anns)

    def best_oks(self, scene: Scene, pose: AssembledPoses) -> torch.Tensor:
        """(P,) COCO's OKS of each pose with the person of its image whom it fits best, 0 to 1."""
        people = [
            person
            for person in self._everybody.imgToAnns[scene.image_id]
            if not person["iscrowd"] and _count_labelled(person)
        ]
        if not people:
            return torch.zeros(len(pose.scores))
        rows = torch.tensor([p["keypoints"] for p in people], dtype=torch.float32)
        truth = rows.view(len(people), -1, 3)
        truth[..., :2] += 0.5
        areas = torch.tensor([p["area"] for p in people], dtype=torch.float32)
        sigmas = torch.from_numpy(self._sigmas).float()
        return pairwise_oks(truth, pose.keypoints, areas, sigmas).amax(dim=0)

    def _score(self, truth: COCO, scenes: list[Scene], instances: list[Instances]) -> float | None:
        self._coco_api = truth
        self.reset()
        self.process(
            [{"image_id": scene.image_id} for scene in scenes],
            [{"instances": found} for found in instances],
        )
        with contextlib.redirect_stdout(io.StringIO()):
            return self.evaluate()["keypoints"]["AP"]

    def _truth_of(self, group: Group) -> COCO:
        """The annotations of the group alone, in all images."""
        meant = []
        for image_id in sorted(self._everybody.imgs):
            people = self._everybody.imgToAnns[image_id]
            if people:
                boxes = [BoxMode.convert(p["bbox"], *_XYWH_TO_XYXY) for p in people]
                labelled = [0 if p["iscrowd"] else _count_labelled(p) for p in people]
                inside = group(torch.tensor(boxes).float(), torch.tensor(labelled))
                meant += [p for p, one in zip(people, inside.tolist(), strict=True) if one]
        truth = COCO()
        truth.dataset = {**self._everybody.dataset, "annotations": meant}
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()
        return truth


def joints_between(low: int, high: int) -> Group:
    """People with `low` to `high` labelled joints."""
    return lambda boxes, labelled: (labelled >= low) & (labelled <= high)


def overlap_between(low: float, high: float) -> Group:
    """People with joints whose largest IoU with another annotated box is in [low, high)."""

    def meant(boxes: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        if len(boxes) == 0:
            return labelled > 0
        overlap = pairwise_iou(Boxes(boxes), Boxes(boxes)).fill_diagonal_(0.0)
        largest = overlap.amax(dim=1)
        return (labelled > 0) & (largest >= low) & (largest < high)

    return meant


def _count_labelled(annotation: dict) -> int:
    return sum(v > 0 for v in annotation["keypoints"][2::3])
