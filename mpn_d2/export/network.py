"""The network that is exported: one image in, its people out, all in operations of a trace.

It computes what ImagePredictor does with the same model, on tensors of fixed shape where that one
has lists. Letters: H x W the image as given, P boxes, K keypoint types, M candidates of a type.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import FCOS
from detectron2.structures import ImageList, Instances
from torch import nn

from mpn_d2.codecs.heatmap import peak_table
from mpn_d2.engine.inference_model import wraps
from mpn_d2.export.image_network import PEOPLE_NAMES, ImageNetwork, InHalf
from mpn_d2.export.location_network import LocationNetwork
from mpn_d2.export.rounds_matching import RoundsMatching
from mpn_d2.modeling.assembly.people_batch import PeopleBatch
from mpn_d2.modeling.meta_arch.common import finish_person_mask
from mpn_d2.structures.outputs import AssembledPoses, HeatmapOutputs

OUTPUT_NAMES = (*PEOPLE_NAMES, "person_mask")
# Boxes added to those of every image, see `_assemble`.
_NOBODY = 2


def check_exportable(cfg: CfgNode) -> None:
    """Raises a ValueError that names the first key of a config that an exported file cannot follow.

    MODEL.ASSEMBLER.MATCHING is not among them: the file matches by mutual_best (design 7.13).
    """
    if cfg.SINGLE_PERSON.ENABLED:
        raise ValueError(
            "SINGLE_PERSON.ENABLED: a single-person network finds no people by itself: export the "
            "whole network that it refines"
        )
    if wraps(cfg):
        raise ValueError(
            "TTA, ENSEMBLE, REFINE and OKS_NMS are several passes, and a file holds one: switch "
            "them off (TTA.ENABLED False ENSEMBLE.CONFIGS [] REFINE.CONFIG '' OKS_NMS.MODE none)"
        )
    if cfg.SPEED.MODE != "plain":
        raise ValueError(
            f"SPEED.MODE is {cfg.SPEED.MODE!r}: the runtime of a file has ways of its own: set it "
            "to plain (for half precision: --precision fp16)"
        )
    for key in ("KEYPOINT_SOURCE", "BOX_SOURCE"):
        if cfg.EVAL[key] != "pred":
            raise ValueError(f"EVAL.{key} is {cfg.EVAL[key]!r}: a file has no annotations: pred")
    if regresses(cfg):
        return
    if cfg.MODEL.RETINANET.NMS != "hard":
        raise ValueError(
            f"MODEL.RETINANET.NMS is {cfg.MODEL.RETINANET.NMS!r}, a loop over boxes that ONNX has "
            "no operator for: set it to hard"
        )
    if cfg.MODEL.ASSEMBLER.MATCHING == "argmax":
        raise ValueError(
            "MODEL.ASSEMBLER.MATCHING argmax puts joints where the evidence says, at no candidate; "
            "the file matches candidates: choose mutual_best"
        )


def regresses(cfg: CfgNode) -> bool:
    """Whether the locations of the config's network regress, so that nothing is assembled."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and issubclass(META_ARCH_REGISTRY.get(name), FCOS)


def export_network(model: nn.Module, **options: Any) -> ImageNetwork:
    """The form that a network is exported in.

    Args:
        model: with its weights; copied.
        options: `min_size`, `max_size` and `precision` of ImageNetwork.

    Raises:
        ValueError: a network that has no such form.
    """
    kind = LocationNetwork if isinstance(model, FCOS) else ExportNetwork
    return kind(model, **options)


def with_exported_matching(model: nn.Module) -> nn.Module:
    """A copy of a model that matches as its exported file does, by mutual_best in rounds."""
    model = copy.deepcopy(model)
    model.assembler.matching = RoundsMatching(model.keypoint_head.max_per_type)
    return model


class ExportNetwork(ImageNetwork):
    """`forward(image)`: (H, W, 3) uint8 in INPUT.FORMAT to the outputs named in OUTPUT_NAMES: those
    of the base, and person_mask (H, W), 0 to 1.

    Args:
        model: a network with `keypoint_head` and `assembler` beside a dense detector; copied.
        min_size, max_size: see the base.
        precision: "fp32", or "fp16": weights of backbone, heads and the assembler's linear layers,
            and what they compute, in half precision; places and scores stay in single.

    Raises:
        ValueError: another kind of network.
    """

    outputs = OUTPUT_NAMES

    def __init__(
        self, model: nn.Module, *, min_size: int, max_size: int, precision: str = "fp32"
    ) -> None:
        needed = ("backbone", "head", "keypoint_head", "assembler", "look")
        missing = [name for name in needed if not hasattr(model, name)]
        if missing:
            raise ValueError(
                "MODEL.META_ARCHITECTURE: export is for networks of heatmaps and boxes that are "
                "assembled and for those that regress poses, and a "
                f"{type(model).__name__} has no {missing[0]}"
            )
        if hasattr(model, "pose_scorer"):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE: the pose scorer of a {type(model).__name__} is in no "
                "file: export the network without it"
            )
        model = with_exported_matching(model).cpu().eval().requires_grad_(False)
        super().__init__(model, min_size=min_size, max_size=max_size, precision=precision)
        decoding = _BoxDecoding(model.box2box_transform)
        model.box2box_transform = decoding  # type: ignore[assignment]  # as the original, no module
        if self.is_half:
            for part in (model.backbone, model.head, model.keypoint_head):
                part.half()
            _halve_linear_layers(model.assembler)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        images, frame, size = self.network_input(image)
        maps, people = self._look(images, frame)
        poses = self._assemble(maps, people, frame)
        found = self.in_image(
            people.pred_boxes.tensor, people.scores, poses.scores, poses.keypoints, frame, size
        )
        mask = maps.maps[0, self.model.keypoint_head.num_keypoints].clamp(0, 1)
        return *found, finish_person_mask(mask, maps.stride, tuple(frame), *size)[1]

    def _look(self, images: ImageList, frame: torch.Tensor) -> tuple[HeatmapOutputs, Instances]:
        """Maps in float32, and boxes with scores in the frame (2,) height, width."""
        model = self.model
        pixels = images.tensor.half() if self.is_half else images.tensor
        dense = model.dense(pixels)
        predictions = [x.float() for x in dense.logits], [x.float() for x in dense.deltas]
        people = model._detect(ImageList(images.tensor, [tuple(frame)]), predictions)[0]
        return HeatmapOutputs(dense.maps.float(), model.keypoint_head.stride), people

    def _assemble(
        self, maps: HeatmapOutputs, people: Instances, frame: torch.Tensor
    ) -> AssembledPoses:
        """One pose a box, as the model's assembler gives."""
        head, assembler = self.model.keypoint_head, self.model.assembler
        points, scores = peak_table(
            maps.maps[:, : head.num_keypoints],
            maps.stride,
            head.peak_thresh,
            head.max_per_type,
            frame[None],
        )
        boxes, box_scores = people.pred_boxes.tensor, people.scores
        # Two boxes of no size, which nothing lies in, stand for nobody: a trace of no box, or of
        # one, would not fit more.
        boxes = torch.cat([boxes, boxes.new_zeros(_NOBODY, 4)])
        box_scores = torch.cat([box_scores, box_scores.new_ones(_NOBODY)])
        slot = (box_scores >= assembler.box_score_thresh).nonzero()[:, 0]
        numbers = torch.arange(head.num_keypoints * head.max_per_type).view(1, -1, scores.shape[2])
        batch = PeopleBatch(
            boxes=boxes[slot],
            image=torch.zeros_like(slot),
            slot=slot,
            box_scores=box_scores[None],
            num_boxes=[boxes.shape[0]],
            points=points,
            scores=scores,
            ids=torch.where(scores > 0, numbers, -1),
        )
        pose = assembler.assemble(batch, assembler.rate(batch, maps))[0]
        people = slice(None, -_NOBODY)
        return AssembledPoses(
            pose.keypoints[people], pose.scores[people], pose.candidate_ids[people]
        )


class _BoxDecoding:
    """Detectron2's Box2BoxTransform for one class, without its reshaping of no boxes at all, which
    ONNX Runtime refuses."""

    def __init__(self, transform: Box2BoxTransform) -> None:
        self.weights = transform.weights
        self.limit = transform.scale_clamp

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(N, 4) dx, dy, dw, dh and (N, 4) anchors to (N, 4) boxes x1, y1, x2, y2."""
        weights = torch.tensor(self.weights, dtype=deltas.dtype)
        sides = boxes[:, 2:] - boxes[:, :2]
        centre = boxes[:, :2] + 0.5 * sides
        moves = deltas / weights
        centre = moves[:, :2] * sides + centre
        sides = torch.exp(moves[:, 2:].clamp(max=self.limit)) * sides
        return torch.cat([centre - 0.5 * sides, centre + 0.5 * sides], dim=1)


def _halve_linear_layers(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, InHalf(child))
        else:
            _halve_linear_layers(child)
