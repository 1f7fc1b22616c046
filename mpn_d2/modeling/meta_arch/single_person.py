"""The joints of one person in a crop of her box: the keypoint part of the whole network by itself.

MultiPoseNet (ECCV 2018) refines and pools its poses with "a single-person network shaped like the
keypoint subnet"; the paper tells no more. Ours (spec section 10): bottom-up network, keypoint
pyramid and subnet with K outputs, no person mask, the highest place of each map. Names in the state
are those of the whole network, so that its checkpoint is a start for this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from mpn_d2.codecs.heatmap import decode_highest
from mpn_d2.modeling.heads import HeatmapTargets, build_keypoint_heatmap_head
from mpn_d2.structures.outputs import DenseOutputs

PART = "keypoint"


@META_ARCH_REGISTRY.register()
class SinglePersonNet(nn.Module):
    """Predicts the K joints of the one person that a crop is about, wherever others are.

    Its targets are that person's joints alone. Nothing is ignored: whoever else is in the crop,
    annotated or not, crowds too, is background, and so are joints that she has outside the crop
    or without a label (COCO leaves out above all what is outside the image), so that a joint's
    score tells whether it is there. Losses are those of the whole network's keypoint part.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        keypoint_head: nn.Module,
        train_parts: list[str],
        pixel_mean: list[float],
        pixel_std: list[float],
        loss_weight: float = 1.0,
        max_crops: int = 32,
    ) -> None:
        """
        Args:
            backbone: gives the k features; without a person pyramid.
            keypoint_head: predicts K maps (KEYPOINT_HEATMAP_HEAD_REGISTRY, no person mask).
            train_parts: "keypoint" alone.
            pixel_mean, pixel_std: one number a channel.
            loss_weight: factor on the losses.
            max_crops: most crops in one forward pass at test time.
        """
        super().__init__()
        if list(train_parts) != [PART]:
            raise ValueError(
                f"MODEL.TRAIN_PARTS is {list(train_parts)}: a single-person network has one part, "
                f"{PART} (--stage {PART})"
            )
        if max_crops < 1:
            raise ValueError(f"SINGLE_PERSON.TEST_BATCH is {max_crops}: at least 1 is needed")
        self.backbone = backbone
        self.keypoint_head = keypoint_head
        self.train_parts = tuple(train_parts)
        self.loss_weight = loss_weight
        self.max_crops = max_crops
        # K indices (see Skeleton): crops are seen mirrored, too, and the maps averaged.
        self.flip_indices: Sequence[int] | None = None
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        if not cfg.SINGLE_PERSON.ENABLED:
            raise ValueError(
                "SINGLE_PERSON.ENABLED is False: a single-person network needs crops of people"
            )
        if (cfg.EVAL.BOX_SOURCE, cfg.EVAL.KEYPOINT_SOURCE) != ("gt", "pred"):
            raise ValueError(
                f"EVAL.BOX_SOURCE is {cfg.EVAL.BOX_SOURCE!r} and EVAL.KEYPOINT_SOURCE "
                f"{cfg.EVAL.KEYPOINT_SOURCE!r}: a single-person network finds joints in given "
                "boxes; set them to gt and pred"
            )
        if not set(cfg.EVAL.TASKS) <= {"keypoints"}:
            raise ValueError(
                f"EVAL.TASKS is {list(cfg.EVAL.TASKS)}: a single-person network gives keypoints "
                "alone; set it to ['keypoints']"
            )
        backbone = build_backbone(cfg)
        head = build_keypoint_heatmap_head(cfg, backbone.output_shape(), person_mask=False)
        return {
            "backbone": backbone,
            "keypoint_head": head,
            "train_parts": cfg.MODEL.TRAIN_PARTS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "loss_weight": cfg.MODEL.LOSS.KEYPOINT_WEIGHT,
            "max_crops": cfg.SINGLE_PERSON.TEST_BATCH,
        }

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.pixel_mean.device

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of the only part."""
        return {PART: [self.backbone, self.keypoint_head]}

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """Losses while training, poses otherwise.

        Args:
            batched_inputs: crops as SinglePersonMapper makes them.

        Returns:
            Training: {"loss_keypoint_...": scalar}. Otherwise per crop {"instances": one person in
            pixels of the image that the crop is of: `pred_boxes` (the given box), `scores` (1, of
            the given box), `pose_scores` (mean of the joints' scores), `pred_classes`,
            `pred_keypoints` (1, K, 3) x, y, score in (0, 1], clipped to the image}.

        Raises:
            ValueError: inputs that are no such crops.
        """
        if not self.training:
            return self.inference(batched_inputs)
        if not batched_inputs:
            total: Any = sum(p.sum() for p in self.parameters())
            return {"loss_keypoint_final": total * 0}
        _require(batched_inputs, "instances")
        images = self.preprocess_image(batched_inputs)
        outputs = self.keypoint_head.layers(self.backbone(images.tensor))
        targets = self.make_targets(batched_inputs, tuple(outputs.maps.shape[-2:]))
        losses = self.keypoint_head.losses(outputs, targets)
        return {name: self.loss_weight * loss for name, loss in losses.items()}

    def make_targets(self, batched_inputs: list[dict], size: tuple[int, int]) -> HeatmapTargets:
        """(N, K, H, W) targets of crops with `instances`, at the head's `size` (H, W) in cells."""
        joints = [x["instances"].gt_keypoints.tensor.to(self.device) for x in batched_inputs]
        return self.keypoint_head.make_keypoint_targets(joints, size)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalised crops, padded to the size divisibility of the backbone."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """See `forward`; at most `max_crops` in one pass."""
        results, stride = [], self.keypoint_head.stride
        for first in range(0, len(batched_inputs), self.max_crops):
            crops = batched_inputs[first : first + self.max_crops]
            _require(crops, "to_crop")
            images = self.preprocess_image(crops)
            joints = decode_highest(self._maps(images), stride, images.image_sizes)
            results += [
                {"instances": _one_person(x, pose)} for x, pose in zip(crops, joints, strict=True)
            ]
        return results

    def dense(self, images: torch.Tensor) -> DenseOutputs:
        """The convolutions alone: normalised, padded crops (N, 3, H, W) to raw maps."""
        return DenseOutputs(self.keypoint_head.layers(self.backbone(images)).maps, [], [])

    def dense_modules(self) -> list[nn.Module]:
        """The modules that `dense` runs."""
        return [self.backbone, self.keypoint_head]

    def _maps(self, images: ImageList) -> torch.Tensor:
        """(N, K, h, w) over the images, means of both sights where mirrored ones are wanted."""
        maps = self.dense(images.tensor).maps
        if self.flip_indices is None:
            return maps
        width, stride = images.image_sizes[0][1], self.keypoint_head.stride
        if width % stride or any(size[1] != width for size in images.image_sizes):
            raise ValueError(
                f"SINGLE_PERSON.SIZE is {width} pixels wide: TTA.FLIP needs a multiple of {stride}"
            )
        # The padding stays on the right.
        mirrored = images.tensor.clone()
        mirrored[..., :width] = images.tensor[..., :width].flip(-1)
        seen = self.dense(mirrored).maps[:, list(self.flip_indices)]
        cells = width // stride
        # Without the padding, which one side alone has.
        return (maps[..., :cells] + seen[..., :cells].flip(-1)) / 2


def _one_person(crop: dict, joints: torch.Tensor) -> Instances:
    """The person of a crop in the image, from her joints (K, 3) in the crop."""
    matrix = torch.as_tensor(crop["to_crop"], dtype=torch.float64).to(joints.device)
    points = torch.linalg.solve(matrix[:, :2], (joints[:, :2].double() - matrix[:, 2]).T).T
    limits = points.new_tensor([crop["width"], crop["height"]])
    points = torch.minimum(points.clamp(min=0), limits).to(joints)
    person = Instances((crop["height"], crop["width"]))
    person.pred_boxes = Boxes(crop["box"].to(joints)[None])
    person.scores = joints.new_ones(1)
    person.pose_scores = joints[:, 2].mean()[None]
    person.pred_classes = torch.zeros(1, dtype=torch.int64, device=joints.device)
    person.pred_keypoints = torch.cat([points, joints[:, 2:]], dim=1)[None]
    return person


def _require(batched_inputs: list[dict], field: str) -> None:
    missing = [x for x in batched_inputs if field not in x]
    if missing:
        raise ValueError(
            f"a single-person network takes crops of people in given boxes; an input has no "
            f"{field!r} (it has {sorted(missing[0])}): train and evaluate it with train_net.py, "
            "refine the poses of a whole network by its REFINE.CONFIG"
        )
