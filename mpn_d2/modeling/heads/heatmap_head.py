"""What heads of keypoint heatmaps share: targets, losses, reading of the maps.

Paper section 3.1, spec sections 3, 6 and 8. Letters: N images, K keypoint types, H x W cells at
the head's stride (4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from torch import nn

from mpn_d2.codecs.heatmap import decode_heatmaps, encode_heatmaps
from mpn_d2.modeling.losses import masked_heatmap_loss
from mpn_d2.structures.outputs import Candidates, HeatmapOutputs
from mpn_d2.structures.skeleton import get_skeleton

UPSAMPLING = ("nearest", "bilinear")


@dataclass
class HeatmapTargets:
    """Targets of a batch.

    Attributes:
        maps: (N, K + 1, H, W) Gaussians, then the person mask, in [0, 1].
        loss_mask: (N, K + 1, H, W) W of the paper: 0 in the ignore region, 1 elsewhere and on
            the padding; heatmap cells times 1 + peak_weight * target, the mask channel times its
            weight.
    """

    maps: torch.Tensor
    loss_mask: torch.Tensor


class HeatmapHead(nn.Module):
    """Base of heads that predict K + 1 maps from pyramid levels.

    A head gives `layers(features) -> HeatmapOutputs`, the intermediate maps of some levels among
    them while training (intermediate supervision); they are supervised with the final targets.
    """

    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        num_keypoints: int,
        person_mask: bool = True,
        upsample: str = "nearest",
        intermediate_weight: float = 1.0,
        final_weight: float = 1.0,
        mask_seg: bool = True,
        mask_weight: float = 1.0,
        peak_weight: float = 0.0,
        sigma: float = 7.0,
        cut: float = 0.01,
        merge: str = "max",
        peak_thresh: float = 0.1,
        max_per_type: int = 60,
    ):
        """
        Args:
            input_shape: the levels that the head reads, fine to coarse, name to channels and
                stride; the maps come out at the first one's stride.
            num_keypoints: K; K + 1 maps are predicted.
            person_mask: False: K maps are, without the person mask; targets are then those of
                `make_keypoint_targets`, and `inference` is not for such maps.
            upsample: of coarser levels to the finest, see MODEL.KP_SUBNET.
            intermediate_weight, final_weight: loss weights; 0 intermediate drops its layers.
            mask_seg: the ignore region also masks the person mask channel.
            mask_weight: weight of the person mask channel, a heatmap channel's being 1.
            peak_weight: extra weight of a heatmap cell whose target is 1; 0 weighs all cells alike.
            sigma, cut, merge: Gaussian targets, see MODEL.TARGET.
            peak_thresh, max_per_type: peaks, see MODEL.PEAKS.
        """
        super().__init__()
        if upsample not in UPSAMPLING:
            raise ValueError(
                f"MODEL.KP_SUBNET.UPSAMPLE is {upsample!r}; choose one of {', '.join(UPSAMPLING)}"
            )
        self.in_features = list(input_shape)
        self.stride = input_shape[self.in_features[0]].stride
        self.num_keypoints = num_keypoints
        self.num_maps = num_keypoints + int(person_mask)
        self.upsample = upsample
        self.intermediate_weight = intermediate_weight
        self.final_weight = final_weight
        self.mask_seg = mask_seg
        self.mask_weight = mask_weight
        self.peak_weight = peak_weight
        self.sigma, self.cut, self.merge = sigma, cut, merge
        self.peak_thresh, self.max_per_type = peak_thresh, max_per_type

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        names = cfg.MODEL.KP_SUBNET.IN_FEATURES
        missing = [name for name in names if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.KP_SUBNET.IN_FEATURES names {missing}, which the backbone does not have; "
                f"it has {list(input_shape)}"
            )
        return {
            "input_shape": {name: input_shape[name] for name in names},
            "num_keypoints": get_skeleton(cfg.MODEL.SKELETON).num_keypoints,
            "upsample": cfg.MODEL.KP_SUBNET.UPSAMPLE,
            "intermediate_weight": cfg.MODEL.KP_SUBNET.INTERMEDIATE_WEIGHT,
            "final_weight": cfg.MODEL.KP_SUBNET.FINAL_WEIGHT,
            "mask_seg": cfg.MODEL.LOSS.MASK_SEG,
            "mask_weight": cfg.MODEL.LOSS.MASK_WEIGHT,
            "peak_weight": cfg.MODEL.LOSS.PEAK_WEIGHT,
            "sigma": cfg.MODEL.TARGET.SIGMA,
            "cut": cfg.MODEL.TARGET.CUT,
            "merge": cfg.MODEL.TARGET.MERGE,
            "peak_thresh": cfg.MODEL.PEAKS.THRESH,
            "max_per_type": cfg.MODEL.PEAKS.MAX_PER_TYPE,
        }

    def layers(self, features: dict[str, torch.Tensor]) -> HeatmapOutputs:
        """Pyramid features (N, C, H_l, W_l) by name -> maps (N, K + 1, H, W)."""
        raise NotImplementedError

    def _map_conv(self, in_channels: int, num_maps: int | None = None) -> Conv2d:
        """The 1x1 convolution from features to the linear maps, or another number of them."""
        conv = Conv2d(in_channels, num_maps or self.num_maps, kernel_size=1)
        # Small weights: heatmaps are almost everywhere 0 at the start, like their targets.
        nn.init.normal_(conv.weight, std=0.01)
        nn.init.zeros_(conv.bias)
        return conv

    def _intermediate_maps(
        self, convs: nn.ModuleDict, features: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Maps of the levels that have a convolution, at their own stride; none at inference."""
        return {name: conv(features[name]) for name, conv in convs.items()} if self.training else {}

    def _resize(self, maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if maps.shape[-2:] == size:
            return maps
        align = {"align_corners": False} if self.upsample == "bilinear" else {}
        return F.interpolate(maps, size=size, mode=self.upsample, **align)

    @torch.no_grad()
    def make_targets(
        self,
        gt_keypoints: list[torch.Tensor],
        person_masks: list[torch.Tensor],
        ignore_masks: list[torch.Tensor],
        size: tuple[int, int],
    ) -> HeatmapTargets:
        """Draws the targets on the device of the keypoints.

        Args:
            gt_keypoints: per image (P, K, 3) x, y, v; network-input pixels.
            person_masks: per image (h, w) uint8 at the head's stride, at most `size`; the
                padding is background (spec section 6).
            ignore_masks: the same size; 1 where nothing is known, 2 where keypoints are but no
                mask is (only the mask channel is ignored there), 0 elsewhere and on the padding.
            size: (H, W) of the batch's maps.
        """
        heatmaps = encode_heatmaps(
            gt_keypoints, self.num_keypoints, size, self.stride, self.sigma, self.cut, self.merge
        )
        person = pad_and_stack(person_masks, size).to(heatmaps)
        ignore = pad_and_stack(ignore_masks, size)
        keep = (ignore != 1).to(heatmaps).expand(-1, self.num_keypoints, -1, -1)
        keep_mask = ((ignore == 0) if self.mask_seg else (ignore != 2)).to(heatmaps)
        weight = keep * (1 + self.peak_weight * heatmaps)
        loss_mask = torch.cat([weight, self.mask_weight * keep_mask], dim=1)
        return HeatmapTargets(maps=torch.cat([heatmaps, person], dim=1), loss_mask=loss_mask)

    @torch.no_grad()
    def make_keypoint_targets(
        self, gt_keypoints: list[torch.Tensor], size: tuple[int, int]
    ) -> HeatmapTargets:
        """Targets of a head without the person mask: maps and loss_mask are (N, K, H, W).

        Nothing is ignored. Arguments as for `make_targets`.
        """
        heatmaps = encode_heatmaps(
            gt_keypoints, self.num_keypoints, size, self.stride, self.sigma, self.cut, self.merge
        )
        return HeatmapTargets(maps=heatmaps, loss_mask=1 + self.peak_weight * heatmaps)

    def losses(self, outputs: HeatmapOutputs, targets: HeatmapTargets) -> dict[str, torch.Tensor]:
        """Masked L2 on the final maps and, upsampled, on those of every level (spec section 8)."""
        losses = {
            "loss_keypoint_final": self.final_weight
            * masked_heatmap_loss(outputs.maps, targets.maps, targets.loss_mask)
        }
        for name, maps in outputs.intermediate.items():
            maps = self._resize(maps, (outputs.maps.shape[-2], outputs.maps.shape[-1]))
            losses[f"loss_keypoint_{name}"] = self.intermediate_weight * masked_heatmap_loss(
                maps, targets.maps, targets.loss_mask
            )
        return losses

    @torch.no_grad()
    def inference(
        self, outputs: HeatmapOutputs, image_sizes: list[tuple[int, int]] | None = None
    ) -> tuple[list[Candidates], torch.Tensor]:
        """Reads candidates and the person mask off the maps.

        Returns:
            Candidates per image (network-input pixels) and person probabilities (N, H, W) in
            [0, 1] at the head's stride.
        """
        candidates = decode_heatmaps(
            outputs.maps[:, : self.num_keypoints],
            outputs.stride,
            self.peak_thresh,
            self.max_per_type,
            image_sizes,
        )
        return candidates, outputs.maps[:, self.num_keypoints].float().clamp(0, 1)


def pad_and_stack(masks: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """(h, w) masks -> (N, 1, H, W), zeros to the right and below."""
    padded = []
    for mask in masks:
        if mask.shape[0] > size[0] or mask.shape[1] > size[1]:
            raise ValueError(f"mask of {tuple(mask.shape)} cells is larger than the maps, {size}")
        padded.append(F.pad(mask, (0, size[1] - mask.shape[1], 0, size[0] - mask.shape[0])))
    return torch.stack(padded)[:, None]
