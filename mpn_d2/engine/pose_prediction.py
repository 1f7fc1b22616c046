"""What is found on one image, for users: numpy arrays with names.

Letters: P people, K keypoint types, (H, W) pixels of the image, (h, w) cells of heatmaps.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from detectron2.structures import Instances

from mpn_d2.evaluation.mask_results import encode_masks
from mpn_d2.evaluation.pose_evaluator import export_instances
from mpn_d2.structures.skeleton import Skeleton
from mpn_d2.utils.heatmap_picture import draw_heatmaps
from mpn_d2.utils.visualize import KEYPOINT_THRESHOLD, draw_people

COCO_PERSON = 1  # category_id of people in COCO's files


@dataclasses.dataclass(frozen=True, eq=False)
class PosePrediction:
    """The people of one image. Coordinates are continuous pixels of the image as it was given.

    `len(prediction)` is P. People come in the model's order.

    Attributes:
        boxes: (P, 4) float32 x1, y1, x2, y2.
        scores: (P,) float32 of the boxes, 0 to 1; these are compared with the threshold.
        pose_scores: (P,) float32 of the poses, 0 to 1.
        keypoints: (P, K, 3) float32 x, y, score (0 to 1); a joint that was not found is 0, 0, 0.
        keypoint_names: (K,) of the skeleton.
        person_mask: (H, W) float32 probability that a pixel belongs to a person; None where the
            model has no such output.
        image_size: (H, W).
        masks: (P, H, W) bool, which pixels are each person's; None where the model does not tell.
        track_ids: (P,) int64, the numbers of people in a video, from 1 on; None without tracking.
        heatmaps: (K, h, w) float32, on the whole image; None unless asked for.
        skeleton: of the keypoints: names, left-right pairs, edges, OKS sigmas.
        instances: the same people as Detectron2's Instances, on the CPU.
    """

    boxes: np.ndarray
    scores: np.ndarray
    pose_scores: np.ndarray
    keypoints: np.ndarray
    person_mask: np.ndarray | None
    image_size: tuple[int, int]
    skeleton: Skeleton
    instances: Instances
    track_ids: np.ndarray | None = None
    heatmaps: np.ndarray | None = None
    masks: np.ndarray | None = None

    @classmethod
    def from_result(cls, result: dict, skeleton: Skeleton, threshold: float) -> PosePrediction:
        """What a model returns for an image, as arrays.

        Args:
            result: {"instances": Instances, and perhaps "sem_seg" (2, H, W) and "heatmaps"
                (K, h, w)} on any device.
            skeleton: of the keypoints.
            threshold: people whose box scores less are left out.
        """
        found = result["instances"].to("cpu")
        found = found[found.scores >= threshold]
        count = len(found)
        poses = np.zeros((count, skeleton.num_keypoints, 3), np.float32)
        if found.has("pred_keypoints"):
            poses = _array(found.pred_keypoints)
        sem_seg, heatmaps = result.get("sem_seg"), result.get("heatmaps")
        return cls(
            boxes=_array(found.pred_boxes.tensor),
            scores=_array(found.scores),
            pose_scores=_array(found.pose_scores if found.has("pose_scores") else found.scores),
            keypoints=poses,
            # A copy: a view would keep the background's half alive.
            person_mask=None if sem_seg is None else _array(sem_seg[1]).copy(),
            image_size=found.image_size,
            skeleton=skeleton,
            instances=found,
            heatmaps=None if heatmaps is None else _array(heatmaps),
            masks=found.pred_masks.numpy() if found.has("pred_masks") else None,
        )

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        return self.skeleton.keypoint_names

    def __len__(self) -> int:
        return len(self.boxes)

    def with_track_ids(self, track_ids: np.ndarray) -> PosePrediction:
        """The same people with numbers (P,)."""
        return dataclasses.replace(self, track_ids=np.asarray(track_ids, dtype=np.int64))

    def to_coco(self, image_id: int | str) -> list[dict]:
        """COCO results, one row a person, as pycocotools loads them (COCO.loadRes).

        Of nobody, []; a file with that alone is an IndexError in pycocotools.

        Keys: image_id, category_id (1), bbox (x, y, width, height), score (the box's), keypoints
        (3 K numbers; pixel indices, which lie half a pixel lower), pose_score, segmentation (RLE)
        where people have masks, and track_id where they have numbers. A person without any joint
        has zeros.
        """
        rows = []
        masks = None if self.masks is None else encode_masks(self.instances.pred_masks)
        for i in range(len(self)):
            (row,), poses = export_instances(self.instances[i : i + 1], image_id)
            row["category_id"] = COCO_PERSON
            row["keypoints"] = [0.0] * self.keypoints[i].size
            row["pose_score"] = 0.0
            for pose in poses:
                row.update(keypoints=pose["keypoints"], pose_score=pose["score"])
            if masks is not None:
                row["segmentation"] = masks[i]
            if self.track_ids is not None:
                row["track_id"] = int(self.track_ids[i])
            rows.append(row)
        return rows

    def draw(
        self,
        image_rgb: np.ndarray,
        *,
        boxes: bool = True,
        mask: bool = True,
        mask_threshold: float = 0.5,
        keypoint_threshold: float = KEYPOINT_THRESHOLD,
    ) -> np.ndarray:
        """The people on a copy of the image.

        Args:
            image_rgb: (H, W, 3) uint8 RGB.
            boxes: draw boxes, scores and numbers.
            mask: tint people where the mask is over `mask_threshold`, or each by her own mask.
            mask_threshold: 0 to 1.
            keypoint_threshold: joints that score up to this are left out.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ValueError: an image of another size or type.
        """
        if image_rgb.shape[:2] != self.image_size:
            raise ValueError(
                f"these people were found on an image of {self.image_size}, not on one of "
                f"{image_rgb.shape[:2]} (H, W)"
            )
        sem_seg = None
        if mask and self.person_mask is not None:
            # draw_people reads the person's half alone: no second copy of a large mask.
            sem_seg = torch.from_numpy(self.person_mask).expand(2, -1, -1)
        return draw_people(
            image_rgb,
            self.instances,
            self.skeleton,
            sem_seg,
            score_threshold=0.0,
            mask_threshold=mask_threshold,
            boxes=boxes,
            masks=mask,
            keypoint_threshold=keypoint_threshold,
            track_ids=None if self.track_ids is None else self.track_ids.tolist(),
        )

    def draw_heatmaps(self, image_rgb: np.ndarray) -> np.ndarray:
        """The strongest heatmap of each place over the dimmed image, (H, W, 3) uint8 RGB.

        Raises:
            ValueError: there are no heatmaps, see PosePredictor.
        """
        if self.heatmaps is None:
            raise ValueError("no heatmaps were kept: make the PosePredictor with heatmaps=True")
        return draw_heatmaps(image_rgb, self.heatmaps)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
