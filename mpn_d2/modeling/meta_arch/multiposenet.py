"""MultiPoseNet: keypoints, person mask, person boxes and their assembly in one network.

Kocabas, Karagoz, Akbas: MultiPoseNet, ECCV 2018; spec sections 1 to 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from mpn_d2.modeling.assembly import build_pose_assembler
from mpn_d2.modeling.heads import build_keypoint_heatmap_head
from mpn_d2.modeling.meta_arch.assembling import assemble_evidence
from mpn_d2.modeling.meta_arch.common import (
    build_box_suppression,
    final_size,
    group_by_padded_size,
    in_groups,
    mean_over_processes,
    mostly_inside,
    per_person_of_all_processes,
    require_training_fields,
    restart_levels,
    statistics_stay,
)
from mpn_d2.modeling.meta_arch.joint import (
    check_joint_level,
    match_boxes,
    samples_from_annotations,
)
from mpn_d2.modeling.meta_arch.micro_batches import weights_by_part
from mpn_d2.structures.ground_truth import gt_candidates, gt_people
from mpn_d2.structures.nms import BoxSuppression
from mpn_d2.structures.outputs import DenseOutputs, HeatmapOutputs, ImageEvidence

PARTS = ("keypoint", "person", "assembly")
SOURCES = ("pred", "gt")


@META_ARCH_REGISTRY.register()
class MultiPoseNet(RetinaNet):
    """A single-class RetinaNet with a keypoint subnet and an assembler on the same backbone.

    `train_parts` names the parts that get losses and gradients; the others are frozen, their
    norm layers included (paper section 3.4: the stages train apart). Where several train
    together, `joint_level` says which loss trains what: see the table in joint.py.
    """

    @configurable
    def __init__(
        self,
        *,
        keypoint_head: nn.Module,
        assembler: nn.Module,
        train_parts: list[str],
        part_weights: dict[str, float] | None = None,
        joint_level: int = 0,
        min_keypoints: int = 3,
        keypoint_source: str = "pred",
        box_source: str = "pred",
        gt_box_filter: bool = False,
        return_heatmaps: bool = False,
        box_suppression: BoxSuppression | None = None,
        **retinanet,
    ):
        """
        Args:
            keypoint_head: predicts heatmaps and person mask (KEYPOINT_HEATMAP_HEAD_REGISTRY).
            assembler: gives keypoints to boxes (POSE_ASSEMBLER_REGISTRY).
            train_parts: of "keypoint", "person", "assembly".
            part_weights: factor on the losses of each part, 1 where none is given.
            joint_level: 0 to 3, see joint.py.
            min_keypoints: people with fewer labelled keypoints do not train the assembly.
            keypoint_source, box_source: "pred", or "gt" to assemble annotated keypoints or in
                annotated boxes at test time (the input then carries "instances").
            gt_box_filter: of annotated boxes take only people with labelled keypoints.
            return_heatmaps: results carry "heatmaps", too.
            box_suppression: of repeated boxes; None for RetinaNet's own, which is hard.
            retinanet: arguments of Detectron2's RetinaNet; its backbone gives k and p features.
        """
        super().__init__(**retinanet)
        for part in train_parts:
            if part not in PARTS:
                raise ValueError(f"MODEL.TRAIN_PARTS has {part!r}; parts are {', '.join(PARTS)}")
        for key, source in (("KEYPOINT", keypoint_source), ("BOX", box_source)):
            if source not in SOURCES:
                raise ValueError(
                    f"EVAL.{key}_SOURCE is {source!r}; choose one of {', '.join(SOURCES)}"
                )
        self.keypoint_head = keypoint_head
        self.assembler = assembler
        self.train_parts = tuple(train_parts)
        self.part_weights = part_weights or {}
        self.joint_level = joint_level
        # Whether the assembly learns from predictions; frozen parts make them all the same.
        self.assembly_sees_predictions = joint_level > 0 and "assembly" in train_parts
        has_gradients = assembler.differentiable or not self.assembly_sees_predictions
        check_joint_level(joint_level, has_gradients)
        self.min_keypoints = min_keypoints
        self.keypoint_source = keypoint_source
        self.box_source = box_source
        self.gt_box_filter = gt_box_filter
        self.return_heatmaps = return_heatmaps
        self.box_suppression = box_suppression or BoxSuppression(threshold=self.test_nms_thresh)
        for part in set(PARTS) - set(train_parts):
            for module in self.part_modules()[part]:
                module.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        args = super().from_config(cfg)
        return {
            **args,
            "keypoint_head": build_keypoint_heatmap_head(cfg, args["backbone"].output_shape()),
            "assembler": build_pose_assembler(cfg),
            "train_parts": cfg.MODEL.TRAIN_PARTS,
            "part_weights": {
                "keypoint": cfg.MODEL.LOSS.KEYPOINT_WEIGHT,
                "person": cfg.MODEL.LOSS.PERSON_WEIGHT,
                "assembly": cfg.MODEL.LOSS.ASSEMBLY_WEIGHT,
            },
            "joint_level": cfg.MODEL.JOINT_LEVEL,
            "min_keypoints": cfg.MODEL.PRN.MIN_KEYPOINTS,
            "keypoint_source": cfg.EVAL.KEYPOINT_SOURCE,
            "box_source": cfg.EVAL.BOX_SOURCE,
            "gt_box_filter": cfg.EVAL.GT_BOX_FILTER,
            "return_heatmaps": cfg.EVAL.HEATMAPS,
            "box_suppression": build_box_suppression(cfg),
        }

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each part; together all modules with parameters."""
        return {
            "keypoint": [
                self.backbone.bottom_up,
                *self.backbone.keypoint_modules(),
                self.keypoint_head,
            ],
            "person": [*self.backbone.person_modules(), self.head],
            "assembly": [self.assembler],
        }

    def train(self, mode: bool = True) -> MultiPoseNet:
        """Frozen parts stay in eval mode, so that their norm statistics do not move."""
        super().train(mode)
        for part in set(PARTS) - set(self.train_parts):
            for module in self.part_modules()[part]:
                module.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses while training, results otherwise.

        Args:
            batched_inputs: per image a dict of PoseDatasetMapper; while only the assembly
                trains, and from annotations, samples of mpn_d2.data.association instead.

        Returns:
            Training: {"loss_...": scalar}. Otherwise per image {"instances": Instances with
            pred_boxes, scores, pose_scores, pred_classes, pred_keypoints (P, K, 3) in pixels of
            the original image, "sem_seg": (2, H, W) = [1 - p, p] of the original image, and on
            demand "heatmaps": (K, h, w) that span the image}.
        """
        if not self.training:
            return self.inference(batched_inputs)
        if self.train_parts == ("assembly",) and not self.assembly_sees_predictions:
            losses = self.assembler.losses(batched_inputs)
        else:
            losses = self.image_losses(batched_inputs)
        return {
            name: self.part_weights.get(name.split("_")[1], 1.0) * loss
            for name, loss in losses.items()
        }

    def micro_batch_weights(self, batches: list[list[dict]]) -> dict[str, list[float]]:
        """What each of a batch's parts weighs in it, see micro_batches.py."""
        return weights_by_part(self, batches)

    def image_losses(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Losses of all training parts on a batch of images, before the weights of the parts."""
        require_training_fields(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        # Frozen parts run too where the assembly learns from what they predict.
        runs = PARTS if self.assembly_sees_predictions else self.train_parts
        # Never on inside no_grad (the validation loss).
        with torch.set_grad_enabled(torch.is_grad_enabled() and "keypoint" in self.train_parts):
            features = self.backbone.bottom_up(images.tensor)
        pyramid = self.backbone.pyramids(
            features,
            keypoint="keypoint" in runs,
            person="person" in runs,
            detach_person=self.joint_level < 3 or "person" not in self.train_parts,
        )
        losses, maps, predictions = {}, None, None
        if "keypoint" in runs:
            maps = self.keypoint_head.layers(pyramid)
        if "person" in runs:
            predictions = self.head([pyramid[name] for name in self.head_in_features])
        if "keypoint" in self.train_parts:
            losses.update(self._keypoint_losses(maps, gt_instances, batched_inputs))
        if "person" in self.train_parts:
            crowds = [x["crowd_boxes"].to(self.device) for x in batched_inputs]
            losses.update(self._person_losses(pyramid, predictions, gt_instances, crowds))
        if self.assembly_sees_predictions:
            people = self._detached_people(images, predictions)
            maps = self._assembly_maps(features, maps)
            losses.update(self._joint_assembly_losses(images, people, maps, gt_instances))
        elif "assembly" in self.train_parts:
            by_image = self.assembler.evidence.by_image
            samples = samples_from_annotations(gt_instances, self.min_keypoints, by_image=by_image)
            found = self.assembler.losses(samples)
            losses.update(per_person_of_all_processes(found, len(samples), self.device))
        return losses

    def _keypoint_losses(
        self, maps: HeatmapOutputs, gt_instances: list[Instances], batched_inputs: list[dict]
    ) -> dict[str, torch.Tensor]:
        targets = self.keypoint_head.make_targets(
            [x.gt_keypoints.tensor for x in gt_instances],
            [x["person_mask"].to(self.device) for x in batched_inputs],
            [x["ignore_mask"].to(self.device) for x in batched_inputs],
            tuple(maps.maps.shape[-2:]),
        )
        return self.keypoint_head.losses(maps, targets)

    def _person_losses(
        self,
        features: dict[str, torch.Tensor],
        predictions: tuple[list[torch.Tensor], list[torch.Tensor]],
        gt_instances: list[Instances],
        crowd_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Focal and box loss, each the sum over anchors per positive anchor (spec section 8)."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.anchor_generator([features[name] for name in self.head_in_features])
        gt_labels, matched_boxes = self.label_anchors(anchors, gt_instances)
        all_anchors = Boxes.cat(anchors).tensor
        for labels, crowds in zip(gt_labels, crowd_boxes, strict=True):
            labels[(labels == self.num_classes) & mostly_inside(all_anchors, crowds)] = -1
        losses = self.losses(anchors, logits, gt_labels, deltas, matched_boxes)
        positives = sum(int(((x >= 0) & (x != self.num_classes)).sum()) for x in gt_labels)
        normalizer = mean_over_processes(positives, self.device)
        return {
            "loss_person_cls": losses["loss_cls"] / normalizer,
            "loss_person_box": losses["loss_box_reg"] / normalizer,
        }

    @torch.no_grad()
    def _detached_people(
        self,
        images: ImageList,
        predictions: tuple[list[torch.Tensor], list[torch.Tensor]],
    ) -> list[Instances]:
        """Detected people per image while training, without gradient, clipped to the image."""
        # Copies: RetinaNet's inference turns logits into scores in place.
        copies = [[level.detach().clone() for level in kind] for kind in predictions]
        return self._detect(images, copies)

    def _assembly_maps(
        self, features: dict[str, torch.Tensor], maps: HeatmapOutputs
    ) -> HeatmapOutputs:
        """The maps that the assembly's loss sees, cut off where MODEL.JOINT_LEVEL says so."""
        if self.joint_level == 1:
            return HeatmapOutputs(maps.maps.detach(), maps.stride)
        if self.joint_level == 3 or not maps.maps.requires_grad:
            return maps
        # Once more on a detached trunk: the same maps, with gradients down to the pyramid.
        cut = {name: feature.detach() for name, feature in features.items()}
        with statistics_stay([*self.backbone.keypoint_modules(), self.keypoint_head]):
            return self.keypoint_head.layers(self.backbone.pyramids(cut, person=False))

    def _joint_assembly_losses(
        self,
        images: ImageList,
        people: list[Instances],
        maps: HeatmapOutputs,
        gt_instances: list[Instances],
    ) -> dict[str, torch.Tensor]:
        """The assembly's loss on predictions, of the people that a predicted box belongs to."""
        matched = [
            match_boxes(found.pred_boxes, gt, self.min_keypoints)
            for found, gt in zip(people, gt_instances, strict=True)
        ]
        boxes, owners = [list(part) for part in zip(*matched, strict=True)]
        count = sum(map(len, boxes))
        get_event_storage().put_scalar("joint/matched_people", count)
        candidates, _ = self.keypoint_head.inference(maps, images.image_sizes)
        losses = self.assembler.losses_on_predictions(candidates, boxes, owners, maps)
        return per_person_of_all_processes(losses, count, self.device)

    def _ema_update(
        self, name: str, value: float, initial_value: float, momentum: float = 0.9
    ) -> float:
        """What the inherited losses divide by: nothing, see `mean_over_processes`. Detectron2's
        running mean of the positives is local and in no checkpoint (design 7.8)."""
        return 1.0

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Results per image; an image scores the same alone and in any batch (design 7.2)."""
        return self.assemble_people(
            self.look(batched_inputs), [final_size(x) for x in batched_inputs]
        )

    @torch.no_grad()
    def look(self, batched_inputs: list[dict]) -> list[ImageEvidence]:
        """Maps and person boxes of each image, in the frame of its network input."""
        groups = group_by_padded_size(
            [x["image"] for x in batched_inputs], self.backbone.size_divisibility
        )
        return in_groups(self._look_at_one_size, groups, batched_inputs)

    @torch.no_grad()
    def assemble_people(
        self,
        evidence: list[ImageEvidence],
        sizes: list[tuple[int, int]],
        flip_indices: Sequence[int] | None = None,
        **further: Any,
    ) -> list[dict]:
        """Results of images, scaled to `sizes`, from what one or several looks found in them."""
        return assemble_evidence(
            evidence,
            sizes,
            keypoint_head=self.keypoint_head,
            assembler=self.assembler,
            return_heatmaps=self.return_heatmaps,
            flip_indices=flip_indices,
            **further,
        )

    def _look_at_one_size(self, batched_inputs: list[dict]) -> list[ImageEvidence]:
        images = self.preprocess_image(batched_inputs)
        restart_levels(self.head)
        dense = self.dense(images.tensor)
        if self.box_source == "gt":
            people = [
                gt_people(x, size, self.device, self.gt_box_filter)
                for x, size in zip(batched_inputs, images.image_sizes, strict=True)
            ]
        else:
            people = self._detect(images, [dense.logits, dense.deltas])
        found = [
            ImageEvidence(of_image, self.keypoint_head.stride, x)
            for of_image, x in zip(dense.maps, people, strict=True)
        ]
        if self.keypoint_source == "gt":
            for seen, x in zip(found, batched_inputs, strict=True):
                known = gt_candidates(x["instances"], self.keypoint_head.num_keypoints)
                seen.candidates = known.to(self.device)
        return found

    def dense(self, images: torch.Tensor) -> DenseOutputs:
        """The convolutions alone: normalised, padded images (N, 3, H, W) to raw outputs."""
        features = self.backbone(images)
        pyramid = [features[name] for name in self.head_in_features]
        boxes = ([], []) if self.box_source == "gt" else self.head(pyramid)
        return DenseOutputs(self.keypoint_head.layers(features).maps, *boxes)

    def dense_modules(self) -> list[nn.Module]:
        """The modules that `dense` runs."""
        return [self.backbone, self.keypoint_head, self.head]

    def _detect(
        self, images: ImageList, predictions: Sequence[list[torch.Tensor]]
    ) -> list[Instances]:
        """Boxes, scores and classes per image from the head's outputs, which it may overwrite."""
        # Anchors ask features for nothing but their sizes, which the logits have too.
        people = self.forward_inference(images, predictions[0], predictions)
        for x in people:
            # The assembly learned on boxes inside the image; Detectron2 clips only at the end.
            x.pred_boxes.clip(x.image_size)
        return people

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[torch.Tensor],
        box_delta: list[torch.Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """RetinaNet's, with `box_suppression` in the place of its hard one."""
        limits = self.test_score_thresh, self.test_topk_candidates
        found = self._decode_multi_level_predictions(
            anchors, box_cls, box_delta, *limits, image_size
        )
        boxes, most = found.pred_boxes.tensor, self.max_detections_per_image
        kept, scores = self.box_suppression(boxes, found.scores, most)
        people = found[kept]
        people.scores = scores
        return people
