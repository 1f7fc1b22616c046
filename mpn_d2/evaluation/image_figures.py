"""Which pose is whose in each image, and how good an image is; for looking at results.

Letters: P annotated people with labelled joints, F poses found, both of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment

# A pose and a person with less OKS than that have nothing to do with each other: one person is
# missed and one pose is false. Those below COCO's loosest hit, 0.5, are still pairs here. [ours]
LEAST_OKS = 0.1
# COCO's loosest threshold: a pose of nobody that hits an ignored person so well is not false.
_EXCUSED_OKS = 0.5


@dataclass(frozen=True)
class ImageFigures:
    """One image.

    Attributes:
        image: its entry in the annotation file.
        people: P annotations with labelled joints, no crowds.
        ignored: all other annotations of people: crowds, nobody's joints labelled.
        poses: F rows of results, the best first.
        oks: P numbers, COCO's OKS of each person with her pose, 0 for those missed.
        pose_of: P places in `poses`, None for those missed.
        excused: places of poses of nobody that hit an ignored person.
    """

    image: dict
    people: list[dict]
    ignored: list[dict]
    poses: list[dict]
    oks: list[float]
    pose_of: list[int | None]
    excused: frozenset[int]

    @property
    def missed(self) -> list[int]:
        """Places of people without a pose."""
        return [i for i, pose in enumerate(self.pose_of) if pose is None]

    @property
    def false(self) -> list[int]:
        """Places of poses that are nobody's and not excused."""
        return [i for i in range(len(self.poses)) if i not in {*self.pose_of, *self.excused}]

    @property
    def quality(self) -> float:
        """Sum of `oks` / (people + false poses), 0 to 1; 1 where there is neither.

        So a person who is missed and a pose of nobody each count as one with OKS 0.
        """
        count = len(self.people) + len(self.false)
        return sum(self.oks) / count if count else 1.0


def image_figures(scorer: COCOeval, score_threshold: float) -> list[ImageFigures]:
    """The figures of all images that were scored, the worst first.

    People and poses are paired one to one so that the sum of OKS is the largest. Images of equal
    quality come by the number of people missed and poses false, then by id.

    Args:
        scorer: evaluated, of keypoints and one category (PoseEvaluator.scorers).
        score_threshold: poses with a lower score are left out, and all after the best 20 of an
            image, as in COCO.
    """
    figures = [_of_image(scorer, image_id, score_threshold) for image_id in scorer.params.imgIds]
    # The sort is stable, and imgIds are in order.
    return sorted(figures, key=lambda f: (f.quality, -len(f.missed) - len(f.false)))


def _of_image(scorer: COCOeval, image_id: int | str, score_threshold: float) -> ImageFigures:
    truth = scorer.cocoGt
    annotations = truth.imgToAnns.get(image_id, [])
    rows = scorer.cocoDt.imgToAnns.get(image_id, [])
    # The order of pycocotools' OKS.
    order = np.argsort([-row["score"] for row in rows], kind="mergesort")
    rows = [rows[i] for i in order[: scorer.params.maxDets[-1]]]
    is_found = [row["score"] >= score_threshold for row in rows]
    counts = [not a["iscrowd"] and a["num_keypoints"] > 0 for a in annotations]

    oks = scorer.ious.get((image_id, scorer.params.catIds[0]), [])
    oks = np.array(oks).reshape(len(rows), len(annotations))[np.array(is_found, dtype=bool)]
    of_people = oks[:, np.array(counts, dtype=bool)].T
    of_ignored = oks[:, ~np.array(counts, dtype=bool)]
    pose_of, values = _pair(of_people)
    nobodys = set(range(len(oks))) - set(pose_of)
    return ImageFigures(
        image=truth.imgs[image_id],
        people=[a for a, count in zip(annotations, counts, strict=True) if count],
        ignored=[a for a, count in zip(annotations, counts, strict=True) if not count],
        poses=[row for row, found in zip(rows, is_found, strict=True) if found],
        oks=values,
        pose_of=pose_of,
        excused=frozenset(i for i in nobodys if (of_ignored[i] >= _EXCUSED_OKS).any()),
    )


def _pair(oks: np.ndarray) -> tuple[list[int | None], list[float]]:
    """Place of each person's pose and their OKS, of (P, F)."""
    kept = np.where(oks >= LEAST_OKS, oks, 0.0)
    pose_of: list[int | None] = [None] * len(oks)
    values = [0.0] * len(oks)
    for person, pose in zip(*linear_sum_assignment(kept, maximize=True), strict=True):
        if kept[person, pose] > 0:
            pose_of[person], values[person] = int(pose), float(kept[person, pose])
    return pose_of, values
