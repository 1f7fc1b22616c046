"""Associative embedding on the outputs of stacked hourglasses: losses and grouping.

Newell, Huang, Deng, NIPS 2017; spec of unified association, sections 2 and 7. Letters: N images,
S stacks, K keypoint types, P people, H x W cells of stride 4. The head has no weights: heatmaps
and tags are channels of the backbone's outputs, which the next stack reads.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from mpn_d2.codecs.heatmap import encode_heatmaps
from mpn_d2.codecs.tag_grouping import decode_tags, fill_missing_joints, grouping_order
from mpn_d2.modeling.heads.heatmap_head import pad_and_stack
from mpn_d2.modeling.losses import masked_heatmap_loss
from mpn_d2.modeling.tag_losses import pull_and_push, tagged_joints
from mpn_d2.structures.outputs import TagOutputs
from mpn_d2.structures.skeleton import get_skeleton


class AssociativeEmbeddingHead(nn.Module):
    """The first K channels of each output are heatmaps, the next K tags, the others are free."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        keypoint_names: tuple[str, ...],
        sigma: float = 8.0,
        cut: float = 0.01,
        merge: str = "max",
        peak_weight: float = 0.0,
        detection_weight: float = 1.0,
        pull_weight: float = 1e-3,
        push_weight: float = 1e-3,
        peak_thresh: float = 0.1,
        max_per_type: int = 30,
        tag_thresh: float = 1.0,
    ) -> None:
        """
        Args:
            input_shape: outputs of the stacks, first to last.
            keypoint_names: of the skeleton.
            sigma, cut, merge: Gaussian targets, see MODEL.TARGET.
            peak_weight: see MODEL.LOSS.PEAK_WEIGHT.
            detection_weight, pull_weight, push_weight: of the losses.
            peak_thresh, max_per_type: candidates, see MODEL.PEAKS.
            tag_thresh: largest tag distance within a person.
        """
        super().__init__()
        self.in_features = list(input_shape)
        self.stride = input_shape[self.in_features[0]].stride
        self.num_keypoints = len(keypoint_names)
        self.order = grouping_order(keypoint_names)
        self.sigma, self.cut, self.merge = sigma, cut, merge
        self.peak_weight = peak_weight
        self.weights = {"heatmap": detection_weight, "pull": pull_weight, "push": push_weight}
        self.peak_thresh, self.max_per_type = peak_thresh, max_per_type
        self.tag_thresh = tag_thresh

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        stacks = {name: shape for name, shape in input_shape.items() if name.startswith("hg")}
        if not stacks:
            raise ValueError(
                f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}: tags need StackedHourglass"
            )
        return {
            "input_shape": stacks,
            "keypoint_names": get_skeleton(cfg.MODEL.SKELETON).keypoint_names,
            "sigma": cfg.MODEL.TARGET.SIGMA,
            "cut": cfg.MODEL.TARGET.CUT,
            "merge": cfg.MODEL.TARGET.MERGE,
            "peak_weight": cfg.MODEL.LOSS.PEAK_WEIGHT,
            "detection_weight": cfg.MODEL.LOSS.KEYPOINT_WEIGHT,
            "pull_weight": cfg.MODEL.TAGS.PULL_WEIGHT,
            "push_weight": cfg.MODEL.TAGS.PUSH_WEIGHT,
            "peak_thresh": cfg.MODEL.PEAKS.THRESH,
            "max_per_type": cfg.MODEL.PEAKS.MAX_PER_TYPE,
            "tag_thresh": cfg.MODEL.TAGS.THRESH,
        }

    def layers(self, features: dict[str, torch.Tensor]) -> TagOutputs:
        """The stacks' outputs by name, (N, at least 2 K, H, W) each."""
        outputs = torch.stack([features[name] for name in self.in_features], dim=1)
        count = self.num_keypoints
        return TagOutputs(outputs[:, :, :count], outputs[:, :, count : 2 * count], self.stride)

    def losses(
        self,
        outputs: TagOutputs,
        gt_keypoints: list[torch.Tensor],
        ignore_masks: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Means over the stacks of the masked L2 of the heatmaps and of pull and push.

        Args:
            outputs: of a batch.
            gt_keypoints: per image (P, K, 3) x, y, v; network-input pixels.
            ignore_masks: per image (h, w) uint8 at the head's stride, see PoseDatasetMapper;
                where it is 1, no heatmap cell counts.
        """
        _, stacks, _, *sides = outputs.heatmaps.shape
        size = (sides[0], sides[1])
        with torch.no_grad():
            maps = encode_heatmaps(
                gt_keypoints,
                self.num_keypoints,
                size,
                self.stride,
                self.sigma,
                self.cut,
                self.merge,
            )
            keep = (pad_and_stack(ignore_masks, size) != 1).to(maps)
            weight = keep * (1 + self.peak_weight * maps)
            joints = tagged_joints(gt_keypoints, self.stride, size)
        found: dict[str, list[torch.Tensor]] = {"heatmap": [], "pull": [], "push": []}
        for stack in range(stacks):
            found["heatmap"].append(masked_heatmap_loss(outputs.heatmaps[:, stack], maps, weight))
            pull, push = pull_and_push(outputs.tags[:, stack], joints)
            found["pull"].append(pull)
            found["push"].append(push)
        return {
            f"loss_tags_{name}": self.weights[name] * torch.stack(losses).mean()
            for name, losses in found.items()
        }

    @torch.no_grad()
    def inference(
        self,
        heatmaps: torch.Tensor,
        tags: torch.Tensor,
        image_sizes: list[tuple[int, int]],
        *,
        fill: bool,
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """People of each image: (P, K, 3) x, y in network-input pixels, score in (0, 1]; (P,).

        The second is the score of the person: the mean of her grouped joints' scores, in which a
        missing joint counts 0, before missing ones are looked for. So a stray peak that was
        filled up with somebody's joints stays behind her. [AE]

        Args:
            heatmaps: (N, K, H, W) of the last stack, or means over several views.
            tags: (N, K, H, W), or (N, V, K, H, W) of V views.
            image_sizes: (height, width) without padding; cells that lie wholly outside are left
                aside, points are clipped to the image.
            fill: look for missing joints by the person's mean tag.
        """
        results = []
        for maps, tag_maps, size in zip(heatmaps, tags, image_sizes, strict=True):
            inside = (..., *(slice(-(-side // self.stride)) for side in size))
            maps, tag_maps = maps[inside].float(), tag_maps[inside].float()
            people = decode_tags(
                maps,
                tag_maps,
                self.stride,
                self.order,
                peak_thresh=self.peak_thresh,
                tag_thresh=self.tag_thresh,
                max_per_type=self.max_per_type,
            )
            scores = people[..., 2].mean(dim=1)
            if fill:
                people = fill_missing_joints(people, maps, tag_maps, self.stride)
            limits = people.new_tensor([size[1], size[0]])
            people[..., :2] = torch.minimum(people[..., :2], limits)
            results.append((people, scores))
        return results
