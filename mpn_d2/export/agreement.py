"""Whether an exported file finds what its network finds (design 7.13).

Letters: P people of the network, F people of the file, K keypoint types. Frame: the image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn
from torchvision.ops import box_iou

from mpn_d2.engine.views import View, Viewer
from mpn_d2.export.network import regresses
from mpn_d2.export.runtime import ExportedFile
from mpn_d2.modeling.assembly.matching import MatchingProblem, MutualBestMatching

# Bounds: pixels, share of a box's longer side, scores and probabilities.
PIXELS, SHARE, SCORE = 0.05, 1e-4, 1e-4
# Joints of ties that may be left aside: so many, or this share of all.
FEW_TIES, TIES = 8, 0.05


@dataclass(frozen=True)
class Thresholds:
    """Where rounding may decide whether a person is found.

    Attributes:
        score: least of a box.
        iou: from which on a box suppresses another one.
        most_people: of an image.
    """

    score: float
    iou: float
    most_people: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Thresholds:
        """Those of a network's config."""
        keys, score = cfg.MODEL.RETINANET, cfg.MODEL.RETINANET.SCORE_THRESH_TEST
        if regresses(cfg):
            # The classification's is no score of a person there.
            score = cfg.MODEL.POSE_REGRESSION.MIN_SCORE
        return cls(score, keys.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)


@dataclass
class Agreement:
    """What a comparison saw.

    Attributes:
        images, people: that were compared; people that both sides found.
        missed, added: people that PyTorch alone, the file alone finds, away from any threshold.
        left_aside: people found by one side alone, at a threshold.
        joints: of these people, that one side at least finds.
        tied_joints: of them left aside, too: those that differ in a type whose matching was a tie.
        largest: difference of boxes and keypoints (pixels), scores, pose_scores and person_mask.
        faults: what is beyond the bounds, in words.
    """

    images: int = 0
    people: int = 0
    missed: int = 0
    added: int = 0
    left_aside: int = 0
    joints: int = 0
    tied_joints: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def note(self, name: str, value: float) -> None:
        """Keeps the largest difference of a kind; NaN, if there is one, is larger than any."""
        largest = self.largest.get(name, 0.0)
        self.largest[name] = largest if math.isnan(largest) or value <= largest else value

    def summary(self) -> str:
        """One line."""
        differences = ", ".join(f"{name} {value:.1e}" for name, value in self.largest.items())
        alone = f", {self.missed} of PyTorch alone" if self.missed else ""
        alone += f", {self.added} of the file alone" if self.added else ""
        aside = f", {self.left_aside} at a threshold left aside" if self.left_aside else ""
        aside += f", {self.tied_joints} joints of a tie left aside" if self.tied_joints else ""
        found = f"{self.images} images, {self.people} people{alone}{aside}"
        return f"{found}; most differ by: {differences}"

    def check_ties(self) -> None:
        """Adds a fault where more joints differ than rounding can have decided of."""
        if self.tied_joints > max(FEW_TIES, TIES * self.joints):
            self.faults.append(
                f"{self.tied_joints} of {self.joints} joints differ, too many for ties of the "
                "matching"
            )


class RecordedMatching(MutualBestMatching):
    """Keeps what it decided from last.

    Attributes:
        scores: (G, P, M), see MatchingProblem.
    """

    def forward(self, problem: MatchingProblem) -> torch.Tensor:
        """See the base."""
        self.scores = problem.scores
        return super().forward(problem)


def reference_model(model: nn.Module) -> nn.Module:
    """A copy of a network with the matching that its file has, as PyTorch runs it elsewhere."""
    model = copy.deepcopy(model)
    if hasattr(model, "assembler"):
        model.assembler.matching = RecordedMatching()
    return model.eval()


def tied_types(scores: torch.Tensor) -> torch.Tensor:
    """(K, P, M) pair scores to (K,) bool: rounding may decide who gets which candidate.

    So it is where a box rates two candidates, or two boxes one, alike to `SCORE` of the rating.
    """
    tied = torch.zeros(len(scores), dtype=torch.bool)
    for dim in (1, 2):
        ranked = scores.transpose(dim, 2).sort(dim=2, descending=True).values
        better, next_best = ranked[..., :-1], ranked[..., 1:]
        alike = (next_best > 0) & (better - next_best <= SCORE * better)
        tied |= alike.flatten(1).any(dim=1)
    return tied


def compare(
    cfg: CfgNode,
    reference: nn.Module,
    exported: ExportedFile,
    images: Iterable[tuple[str, np.ndarray]],
) -> Agreement:
    """Runs both on named images (H, W, 3) uint8 in INPUT.FORMAT.

    Args:
        cfg: of the network.
        reference: see `reference_model`.
        exported: the file.
        images: name and pixels.
    """
    viewer = Viewer.from_config(cfg, reference)
    agreement = Agreement()
    thresholds = Thresholds.from_config(cfg)
    for name, image in images:
        height, width = image.shape[:2]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        whole = View((0, 0, width, height))
        with torch.no_grad():
            expected = reference([viewer.network_input(tensor, cfg.INPUT.FORMAT, whole)])[0]
        found = exported([{"image": tensor}])[0]
        tied = torch.zeros(expected["instances"].pred_keypoints.shape[1], dtype=torch.bool)
        if hasattr(reference, "assembler"):
            tied = tied_types(reference.assembler.matching.scores)
        compare_results(expected, found, thresholds, tied, name, agreement)
    agreement.check_ties()
    return agreement


def compare_results(
    expected: dict,
    found: dict,
    thresholds: Thresholds,
    tied: torch.Tensor,
    name: str,
    agreement: Agreement,
) -> None:
    """Adds what an image shows to an agreement.

    Args:
        expected, found: {"instances"}, and "sem_seg" of networks with a person mask.
        thresholds: of box scores, and of the IoU of suppressed boxes: people found by one side
            alone within `SCORE` of one of them are left aside, so are those at the score of the
            last of as many people as there may be.
        tied: (K,) bool, see `tied_types`: joints of these types that differ are left aside, so are
            the pose scores of people with such a joint.
        name: of the image.
        agreement: is added to.
    """
    agreement.images += 1
    a, b = expected["instances"], found["instances"]
    rows, columns = pair_people(a.pred_boxes.tensor, b.pred_boxes.tensor)
    for own, others, paired in ((a, b, rows), (b, a, columns)):
        for index in sorted(set(range(len(own))) - set(paired)):
            if _at_threshold(own, others, index, thresholds):
                agreement.left_aside += 1
            else:
                score = float(own.scores[index])
                side = "PyTorch" if own is a else "the file"
                agreement.missed += own is a
                agreement.added += own is b
                agreement.faults.append(f"{name}: {side} alone finds a person of score {score:.4f}")
    agreement.people += len(rows)
    a, b = a[rows], b[columns]
    sides = (a.pred_boxes.tensor[:, 2:] - a.pred_boxes.tensor[:, :2]).amax(dim=1, keepdim=True)
    reach = (SHARE * sides).clamp(min=PIXELS)
    joints, other_joints = a.pred_keypoints, b.pred_keypoints
    bounds = torch.tensor([PIXELS, PIXELS, SCORE])
    aside = ((joints - other_joints).abs() > bounds).any(dim=2) & tied
    agreement.joints += int(((joints[..., 2] > 0) | (other_joints[..., 2] > 0)).sum())
    agreement.tied_joints += int(aside.sum())
    joints, other_joints = joints[~aside], other_joints[~aside]
    sure = ~aside.any(dim=1)
    values = [
        ("boxes", a.pred_boxes.tensor, b.pred_boxes.tensor, reach),
        ("scores", a.scores, b.scores, SCORE),
        ("pose_scores", a.pose_scores[sure], b.pose_scores[sure], SCORE),
        ("keypoints", joints[..., :2], other_joints[..., :2], PIXELS),
        ("keypoint_scores", joints[..., 2], other_joints[..., 2], SCORE),
    ]
    if "sem_seg" in expected:
        values.append(("person_mask", expected["sem_seg"][1], found["sem_seg"][1], SCORE))
    for what, x, y, bound in values:
        if x.shape != y.shape:
            agreement.note(what, math.inf)
            agreement.faults.append(
                f"{name}: {what} has shape {tuple(y.shape)}, not {tuple(x.shape)}"
            )
            continue
        gap = (x - y).abs()
        largest = float(gap.max()) if gap.numel() else 0.0
        agreement.note(what, largest)
        # "not <=": NaN is a fault, too.
        if gap.numel() and not bool((gap <= bound).all()):
            agreement.faults.append(f"{name}: {what} differ by {largest:.3g}")


def pair_people(boxes: torch.Tensor, others: torch.Tensor) -> tuple[list[int], list[int]]:
    """Rows of boxes (P, 4) and (F, 4) that are the same, each once: nearest first, up to 5 px or
    1 % of the side."""
    if len(boxes) == 0 or len(others) == 0:
        return [], []
    gaps = (boxes[:, None] - others).abs().amax(dim=2)
    reach = (0.01 * (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)).clamp(min=5.0)
    gaps = torch.where(gaps <= reach[:, None], gaps, torch.inf)
    rows: list[int] = []
    columns: list[int] = []
    while len(rows) < min(gaps.shape) and bool(torch.isfinite(gaps).any()):
        row, column = divmod(int(gaps.argmin()), gaps.shape[1])
        rows.append(row)
        columns.append(column)
        gaps[row], gaps[:, column] = torch.inf, torch.inf
    return rows, columns


def _at_threshold(own, others, index: int, thresholds: Thresholds) -> bool:
    """Whether rounding decides if a person is found: by score, by place among the most, by IoU."""
    score = own.scores[index]
    if abs(float(score) - thresholds.score) <= SCORE:
        return True
    is_full = len(others) >= thresholds.most_people
    if is_full and abs(float(score - others.scores.min())) <= SCORE:
        return True
    if len(others) == 0:
        return False
    overlaps = box_iou(own.pred_boxes.tensor[index : index + 1], others.pred_boxes.tensor)[0]
    return bool(
        (((overlaps - thresholds.iou).abs() <= SCORE) & (others.scores >= score - SCORE)).any()
    )
