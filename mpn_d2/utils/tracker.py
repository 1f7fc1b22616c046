"""Numbers for people in a video: the same person keeps hers from frame to frame.

Letters: T people known so far, P people in the new frame, K keypoint types.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from scipy.optimize import linear_sum_assignment

from mpn_d2.structures.oks import AREA_OF_BOX, self_oks

# Share of a person's way from the last frame to this one in the way that she is thought to go on.
_MOTION_UPDATE = 0.5
# The same for each frame in which she is not seen: nobody walks on for ever.
_MOTION_DECAY = 0.8


@dataclass
class _Track:
    number: int
    box: torch.Tensor  # (4,), where she is thought to be in the coming frame
    pose: torch.Tensor  # (K, 3), likewise
    motion: torch.Tensor  # (2,) pixels a frame
    lost: int = 0  # frames since she was seen

    def go_on(self) -> None:
        """Moves what was seen last to where it should be in the next frame."""
        self.box = self.box + self.motion.repeat(2)
        self.pose = self.pose.clone()
        self.pose[:, :2] += self.motion


class PoseTracker:
    """Gives each person of each frame a number; frames come one after another.

    A person is looked for where her last pose has moved on to, at the mean speed of her joints.
    How alike two people are is the mean of the OKS of their poses [`self_oks`: over the joints that
    both have, divided by the smaller number of joints] and the IoU of their boxes; where they share
    fewer than `min_joints`, the IoU alone. (On six drawn images that were moved about, people found
    570 times changed their numbers 20 times by OKS alone, 11 by IoU alone, 10 by the mean: now and
    then a network gives a person other joints.) Pairs are made by the Hungarian method, so that the
    sum is largest; a pair under `min_similarity` is none. Who is not found keeps her number for
    `max_lost` frames. Numbers start at 1 and are never given twice. The same frames get the same
    numbers.
    """

    def __init__(
        self,
        sigmas: tuple[float, ...],
        *,
        min_similarity: float = 0.2,
        max_lost: int = 30,
        min_joints: int = 3,
    ) -> None:
        """
        Args:
            sigmas: (K,) OKS constants of the skeleton.
            min_similarity: how alike a person is at least in two frames, 0 to 1. Low: a joint moved
                by a fifth of the person's size has little OKS left.
            max_lost: frames that a person may be missing before she is forgotten, 0 or more.
            min_joints: joints, of the same types, that two poses need to be compared by OKS.

        Raises:
            ValueError: a number out of range.
        """
        if not 0 <= min_similarity <= 1:
            raise ValueError(f"min_similarity is {min_similarity}: 0 to 1 is needed")
        for name, value, least in (("max_lost", max_lost, 0), ("min_joints", min_joints, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}: at least {least} is needed")
        self._sigmas = torch.tensor(sigmas, dtype=torch.float64)
        self._min_similarity = min_similarity
        self._max_lost = max_lost
        self._min_joints = min_joints
        self._tracks: list[_Track] = []
        self._given = 0

    def update(self, boxes: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """Numbers of the people of the next frame; call it for frames without people as well.

        Args:
            boxes: (P, 4) x1, y1, x2, y2, pixels.
            keypoints: (P, K, 3) x, y, score; 0 score: not found.

        Returns:
            (P,) int64.

        Raises:
            ValueError: another shape.
        """
        count = len(self._sigmas)
        if np.shape(boxes)[1:] != (4,) or np.shape(keypoints) != (len(boxes), count, 3):
            raise ValueError(
                f"boxes {np.shape(boxes)} and keypoints {np.shape(keypoints)}: (P, 4) and "
                f"(P, {count}, 3) are needed"
            )
        new_boxes = torch.from_numpy(np.array(boxes, dtype=np.float64))
        new_poses = torch.from_numpy(np.array(keypoints, dtype=np.float64))
        for track in self._tracks:
            track.go_on()
        numbers = np.zeros(len(new_boxes), dtype=np.int64)
        seen = set()
        for row, column in self._pairs(new_boxes, new_poses):
            track = self._tracks[row]
            self._found_again(track, new_boxes[column], new_poses[column])
            numbers[column] = track.number
            seen.add(row)
        for row, track in enumerate(self._tracks):
            if row not in seen:
                track.lost += 1
                track.motion = _MOTION_DECAY * track.motion
        self._tracks = [track for track in self._tracks if track.lost <= self._max_lost]
        for column in np.flatnonzero(numbers == 0).tolist():
            self._given += 1
            numbers[column] = self._given
            still = torch.zeros(2, dtype=torch.float64)
            track = _Track(self._given, new_boxes[column], new_poses[column], still)
            self._tracks.append(track)
        return numbers

    def _pairs(self, boxes: torch.Tensor, poses: torch.Tensor) -> list[tuple[int, int]]:
        """(index of a track, index of a new person) of those that are the same."""
        if not self._tracks or not len(boxes):
            return []
        similarity = self._similarity(boxes, poses).numpy()
        # A pair that may not be must not keep another from being.
        similarity[similarity < self._min_similarity] = 0
        rows, columns = linear_sum_assignment(similarity, maximize=True)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        return [(r, c) for r, c in pairs if similarity[r, c] > 0]

    def _similarity(self, boxes: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
        """(T, P): mean of OKS and IoU; IoU where too few joints can be compared."""
        known = len(self._tracks)
        boxes = torch.cat([torch.stack([t.box for t in self._tracks]), boxes])
        poses = torch.cat([torch.stack([t.pose for t in self._tracks]), poses])
        iou = pairwise_iou(Boxes(boxes[:known]), Boxes(boxes[known:]))
        areas = AREA_OF_BOX * (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
        oks = self_oks(poses, areas, self._sigmas)[:known, known:]
        has = (poses[..., 2] > 0).double()
        shared = has[:known] @ has[known:].T
        return torch.where(shared >= self._min_joints, (oks + iou) / 2, iou)

    def _found_again(self, track: _Track, box: torch.Tensor, pose: torch.Tensor) -> None:
        """Notes where a person is, and how far from where she was thought to be."""
        both = (track.pose[:, 2] > 0) & (pose[:, 2] > 0)
        if both.sum() >= self._min_joints:
            off = (pose[both, :2] - track.pose[both, :2]).mean(dim=0)
        else:
            off = (box - track.box).reshape(2, 2).mean(dim=0)
        # Off by so much over all the frames since she was seen.
        frames = track.lost + 1
        track.motion = track.motion + _MOTION_UPDATE * off / frames
        track.box, track.pose, track.lost = box, pose, 0
