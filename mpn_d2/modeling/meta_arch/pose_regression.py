"""Single-stage pose regression: every location regresses a whole pose; no boxes, no grouping.

Multi-Person Pose Regression via Pose Filtering and Scoring (DUT); spec sections 1 to 11. Read top
to bottom: forward -> losses (regression_losses.py), or inference -> Instances. Letters: N images, R
locations of all levels, K keypoint types.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from mpn_d2.codecs.offsets import Locations, decode_offsets, joint_boxes
from mpn_d2.modeling.heads.location_targets import (
    SAMPLINGS,
    LocationTargets,
    make_location_targets,
)
from mpn_d2.modeling.heads.pose_regression import PoseOffsetHead
from mpn_d2.modeling.meta_arch.common import (
    final_size,
    finish_instances,
    group_by_padded_size,
    in_groups,
    require_training_fields,
)
from mpn_d2.modeling.meta_arch.regression_losses import PoseRegressionLosses, by_location
from mpn_d2.structures.nms import BoxSuppression
from mpn_d2.structures.outputs import LocationOutputs

PART = "pose"
TEST_SCORES = ("cls", "centerness", "psm")


@META_ARCH_REGISTRY.register()
class PoseRegression(FCOS):
    """FCOS whose locations regress poses in place of boxes, filtered and scored by OKS.

    Shared with FCOS: input, anchor points and levels, constants of the candidates. One part,
    "pose", which trains whole.
    """

    @configurable
    def __init__(
        self,
        *,
        train_parts: list[str],
        pose_losses: PoseRegressionLosses,
        sampling: str = "center",
        test_score: str = "psm",
        box_suppression: BoxSuppression,
        **fcos: object,
    ) -> None:
        """
        Args:
            train_parts: "pose" alone.
            pose_losses: of outputs and targets.
            sampling: "center" or "bbox": the locations that answer for a person.
            test_score: "cls", "centerness" or "psm": what ranks poses.
            box_suppression: of repeated poses, by the boxes around their joints.
            fcos: arguments of Detectron2's FCOS; its head is a PoseOffsetHead.

        Raises:
            ValueError: values that do not exist or cannot go together; names the keys.
        """
        super().__init__(**fcos)
        keys = "MODEL.POSE_REGRESSION"
        for key, value, known in (
            ("SAMPLING.MODE", sampling, SAMPLINGS),
            ("TEST_SCORE", test_score, TEST_SCORES),
        ):
            if value not in known:
                raise ValueError(f"{keys}.{key} is {value!r}; choose one of {', '.join(known)}")
        if list(train_parts) != [PART]:
            raise ValueError(
                f"MODEL.TRAIN_PARTS is {list(train_parts)}: pose regression has one part, {PART} "
                "(--stage joint)"
            )
        if test_score == "psm" and self.head.scorer is None:
            raise ValueError(f"{keys}.TEST_SCORE psm needs {keys}.TRAIN_PSM True")
        if test_score == "centerness" and self.head.centerness_output is None:
            raise ValueError(f"{keys}.TEST_SCORE centerness needs {keys}.TRAIN_CENTERNESS True")
        if pose_losses.oks_filter is not None and self.head.final_output is None:
            raise ValueError(f"{keys}.FILTER.ENABLED needs {keys}.NUM_STAGES 2")
        if self.center_sampling_radius <= 0:
            raise ValueError(
                f"{keys}.SAMPLING.RADIUS is {self.center_sampling_radius}: a number over 0 is "
                "needed"
            )
        self.train_parts = tuple(train_parts)
        self.pose_losses = pose_losses
        self.sampling = sampling
        self.test_score = test_score
        self.box_suppression = box_suppression

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        _refuse_other_systems_keys(cfg)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        names = cfg.MODEL.RETINANET.IN_FEATURES
        missing = [name for name in names if name not in shapes]
        if missing:
            raise ValueError(
                f"MODEL.RETINANET.IN_FEATURES names {missing}, which the backbone does not have; "
                f"it has {list(shapes)}"
            )
        strides = [shapes[name].stride for name in names]
        if not strides or strides != sorted(set(strides)):
            raise ValueError(
                f"MODEL.RETINANET.IN_FEATURES is {list(names)}, of strides {strides}: levels from "
                "fine to coarse are needed"
            )
        keys = cfg.MODEL.POSE_REGRESSION
        if not 0 <= keys.MIN_SCORE <= 1:
            raise ValueError(
                f"MODEL.POSE_REGRESSION.MIN_SCORE is {keys.MIN_SCORE}: a score from 0 to 1 is "
                "needed"
            )
        return {
            "train_parts": cfg.MODEL.TRAIN_PARTS,
            "pose_losses": PoseRegressionLosses.from_config(cfg),
            "sampling": keys.SAMPLING.MODE,
            "test_score": keys.TEST_SCORE,
            "box_suppression": BoxSuppression(
                method=cfg.MODEL.RETINANET.NMS,
                threshold=cfg.MODEL.RETINANET.NMS_THRESH_TEST,
                sigma=cfg.MODEL.RETINANET.SOFT_NMS_SIGMA,
                min_score=keys.MIN_SCORE,
            ),
            "backbone": backbone,
            "head": PoseOffsetHead.from_config(cfg, [shapes[name] for name in names]),
            "head_in_features": names,
            "num_classes": 1,
            "center_sampling_radius": keys.SAMPLING.RADIUS,
            "test_score_thresh": cfg.MODEL.RETINANET.SCORE_THRESH_TEST,
            "test_topk_candidates": cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": cfg.MODEL.RETINANET.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of the only part."""
        return {PART: [self.backbone, self.head]}

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses while training, people otherwise.

        Args:
            batched_inputs: per image a dict of PoseDatasetMapper.

        Returns:
            Training: {"loss_pose_...": scalar}. Otherwise per image {"instances": Instances with
            `pred_keypoints` (P, K, 3) x, y, score of the pose, `pred_boxes` (around the joints,
            inside the image), `scores`, `pose_scores` (both the score of the pose) and
            `pred_classes`, in pixels of the original image, best first}.
        """
        if not self.training:
            return self.inference(batched_inputs)
        require_training_fields(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        features = self._levels(images)
        locations = self._locations(features)
        targets = self.make_targets(batched_inputs, locations)
        losses, counts = self.pose_losses(self.head.layers(features), locations, targets)
        for name, count in counts.items():
            get_event_storage().put_scalar(f"{PART}/{name}", count)
        return {f"loss_{PART}_{name}": loss for name, loss in losses.items()}

    def make_targets(self, batched_inputs: list[dict], locations: Locations) -> LocationTargets:
        """What the locations of a padded batch are to learn."""
        return make_location_targets(
            [x["instances"].to(self.device) for x in batched_inputs],
            [x["ignore_mask"] for x in batched_inputs],
            locations,
            sampling=self.sampling,
            radius=self.center_sampling_radius,
        )

    def _levels(self, images: ImageList) -> list[torch.Tensor]:
        features = self.backbone(images.tensor)
        return [features[name] for name in self.head_in_features]

    def _locations(self, features: list[torch.Tensor]) -> Locations:
        anchors = self.anchor_generator(features)
        joined = Boxes.cat(anchors)
        # FCOS's anchors are squares as large as the stride, in the middle of each cell.
        strides = joined.tensor[:, 2] - joined.tensor[:, 0]
        return Locations(joined.get_centers(), strides, tuple(map(len, anchors)))

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """People per image; an image scores the same alone and in any batch (design 7.2)."""
        images = [x["image"] for x in batched_inputs]
        groups = group_by_padded_size(images, self.backbone.size_divisibility)
        return in_groups(self._find_people, groups, batched_inputs)

    def _find_people(self, batched_inputs: list[dict]) -> list[dict]:
        images = self.preprocess_image(batched_inputs)
        features = self._levels(images)
        people = self.forward_inference(images, features, self.head.layers(features))
        return [
            {"instances": finish_instances(found, *final_size(x))}
            for found, x in zip(people, batched_inputs, strict=True)
        ]

    def forward_inference(
        self, images: ImageList, features: list[torch.Tensor], outputs: LocationOutputs
    ) -> list[Instances]:
        """People of each image in the frame of the network input (spec section 11)."""
        locations = self._locations(features)
        cls_scores, scores = self.score_locations(outputs)
        offsets = by_location(outputs.pose_offsets)
        return [
            self.inference_single_image(locations, by_class, score, offset, size)
            for by_class, score, offset, size in zip(
                cls_scores, scores, offsets, images.image_sizes, strict=True
            )
        ]

    def score_locations(self, outputs: LocationOutputs) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, R) score of the classification, and (N, R) what ranks poses."""
        cls_scores = by_location(outputs.cls_logits)[..., 0].float().sigmoid()
        factors = {"psm": outputs.score_logits, "centerness": outputs.centerness_logits}
        levels = factors.get(self.test_score)
        if levels is None:
            return cls_scores, cls_scores
        return cls_scores, cls_scores * by_location(levels)[..., 0].float().sigmoid()

    def inference_single_image(
        self,
        locations: Locations,
        cls_scores: torch.Tensor,
        scores: torch.Tensor,
        offsets: torch.Tensor,
        image_size: tuple[int, int],
    ) -> Instances:
        """Candidates by the classification, the best of each level by score, then suppression.

        Args:
            locations: R.
            cls_scores, scores: (R,).
            offsets: (R, 2K) of the final poses.
            image_size: (height, width) of the network input.
        """
        chosen, start = [], 0
        for count in locations.counts:
            of_level = slice(start, start + count)
            chosen.append(start + self.candidates(cls_scores[of_level], scores[of_level]))
            start += count
        places = torch.cat(chosen)
        points, strides = locations.points[places], locations.strides[places]
        poses = decode_offsets(offsets[places].float(), points, strides)
        return self.people_of(poses, scores[places], image_size)

    def candidates(self, cls_scores: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Indices of one level's locations that may show somebody, the best score first.

        Args:
            cls_scores, scores: (R,), see `inference_single_image`.
        """
        found = (cls_scores > self.test_score_thresh).nonzero()[:, 0]
        order = torch.sort(scores[found], descending=True, stable=True).indices
        return found[order[: self.test_topk_candidates]]

    def people_of(
        self, poses: torch.Tensor, scores: torch.Tensor, image_size: tuple[int, int]
    ) -> Instances:
        """Candidates (M, K, 2) x, y with (M,) scores, after the suppression of repeats."""
        boxes = joint_boxes(poses)
        kept, kept_scores = self.box_suppression(boxes, scores, self.max_detections_per_image)
        people = Instances(image_size)
        people.pred_boxes = Boxes(boxes[kept])
        people.pred_boxes.clip(image_size)
        people.scores, people.pose_scores = kept_scores, kept_scores.clone()
        people.pred_classes = torch.zeros_like(kept)
        joint_scores = kept_scores[:, None, None].expand(-1, poses.shape[1], 1)
        people.pred_keypoints = torch.cat([poses[kept], joint_scores], dim=2)
        return people


def _refuse_other_systems_keys(cfg: CfgNode) -> None:
    for key in ("KEYPOINT_SOURCE", "BOX_SOURCE"):
        if cfg.EVAL[key] != "pred":
            raise ValueError(
                f"EVAL.{key} is {cfg.EVAL[key]!r}: pose regression assembles nothing; set it to "
                "pred"
            )
    if cfg.EVAL.HEATMAPS:
        raise ValueError(
            "EVAL.HEATMAPS is True (--heatmaps): pose regression has no heatmaps to show"
        )
    if "sem_seg" in cfg.EVAL.TASKS:
        raise ValueError(
            f"EVAL.TASKS is {list(cfg.EVAL.TASKS)}: pose regression has no person mask; leave "
            "sem_seg out"
        )
