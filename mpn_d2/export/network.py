"""The network that is exported: one image in, its people out, all in operations of a trace.

It computes what ImagePredictor does with the same model, on tensors of fixed shape where that one
has lists. Letters: H x W the image as given, P boxes, K keypoint types, M candidates of a type.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import ImageList, Instances
from torch import nn

from mpn_d2.codecs.heatmap import peak_table
from mpn_d2.engine.inference_model import wraps
from mpn_d2.export.resize import resize_as_pillow, shorter_side_size
from mpn_d2.export.rounds_matching import RoundsMatching
from mpn_d2.modeling.assembly.people_batch import PeopleBatch
from mpn_d2.modeling.meta_arch.common import finish_person_mask
from mpn_d2.structures.outputs import AssembledPoses, HeatmapOutputs

INPUT_NAME = "image"
OUTPUT_NAMES = ("boxes", "scores", "pose_scores", "keypoints", "person_mask")
PRECISIONS = ("fp32", "fp16")
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
    for key in ("KEYPOINT_SOURCE", "BOX_SOURCE"):
        if cfg.EVAL[key] != "pred":
            raise ValueError(f"EVAL.{key} is {cfg.EVAL[key]!r}: a file has no annotations: pred")


def with_exported_matching(model: nn.Module) -> nn.Module:
    """A copy of a model that matches as its exported file does, by mutual_best in rounds."""
    model = copy.deepcopy(model)
    model.assembler.matching = RoundsMatching(model.keypoint_head.max_per_type)
    return model


class ExportNetwork(nn.Module):
    """`forward(image)`: (H, W, 3) uint8 in INPUT.FORMAT to the outputs named in OUTPUT_NAMES.

    One image at a time; the frame of the results is that of the image, continuous pixels:

    - boxes (P, 4) x1, y1, x2, y2 inside the image, scores (P,), best first;
    - pose_scores (P,);
    - keypoints (P, K, 3) x, y, score; (0, 0, 0) where a joint was not found;
    - person_mask (H, W), 0 to 1.

    Args:
        model: a network with `keypoint_head` and `assembler` beside a dense detector; copied.
        min_size, max_size: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST; a min_size of 0 leaves images
            as they are.
        precision: "fp32", or "fp16": weights of backbone, heads and the assembler's linear layers,
            and what they compute, in half precision; places and scores stay in single.

    Raises:
        ValueError: another kind of network.
    """

    def __init__(
        self, model: nn.Module, *, min_size: int, max_size: int, precision: str = "fp32"
    ) -> None:
        super().__init__()
        needed = ("backbone", "head", "keypoint_head", "assembler", "look")
        missing = [name for name in needed if not hasattr(model, name)]
        if missing:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE: export is for networks of heatmaps and boxes that are "
                f"assembled, and a {type(model).__name__} has no {missing[0]}"
            )
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
        model = with_exported_matching(model).cpu().eval().requires_grad_(False)
        decoding = _BoxDecoding(model.box2box_transform)
        model.box2box_transform = decoding  # type: ignore[assignment]  # as the original, no module
        self.is_half = precision == "fp16"
        if self.is_half:
            for part in (model.backbone, model.head, model.keypoint_head):
                part.half()
            _halve_linear_layers(model.assembler)
        self.model = model
        self.min_size, self.max_size = min_size, max_size

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        # Tensors: a traced program must not take them for constants.
        height, width = (cast(Any, torch.as_tensor(side)) for side in image.shape[:2])
        channels_first = image.permute(2, 0, 1)
        if self.min_size > 0:
            size = shorter_side_size(height, width, self.min_size, self.max_size)
            channels_first = resize_as_pillow(channels_first, *size)
        images = self.model.preprocess_image([{INPUT_NAME: channels_first.float()}])
        frame = torch.stack([torch.as_tensor(x) for x in channels_first.shape[1:]])
        maps, people = self._look(images, frame)
        poses = self._assemble(maps, people, frame)
        scale = torch.stack([width, height]).float() / frame.flip(0).float()
        boxes = people.pred_boxes.tensor * scale.repeat(2)
        corners = torch.stack([width, height]).repeat(2).to(boxes)
        boxes = torch.minimum(boxes.clamp(min=0.0), corners)
        joints = torch.cat([poses.keypoints[..., :2] * scale, poses.keypoints[..., 2:]], dim=2)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()[:, 0]
        mask = maps.maps[0, self.model.keypoint_head.num_keypoints].clamp(0, 1)
        person = finish_person_mask(mask, maps.stride, tuple(frame), height, width)[1]
        return boxes[kept], people.scores[kept], poses.scores[kept], joints[kept], person

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


class _HalfLinear(nn.Module):
    """A linear layer in half precision between values in single."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.half()).float()


def _halve_linear_layers(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, _HalfLinear(child))
        else:
            _halve_linear_layers(child)
