"""Losses as pure functions of tensors."""

from __future__ import annotations

import torch


def masked_heatmap_loss(
    maps: torch.Tensor, gt_maps: torch.Tensor, loss_mask: torch.Tensor
) -> torch.Tensor:
    """Mean of `W * (H - H_hat)^2` over images, channels and cells (paper eq. 1, spec section 8).

    The mean runs over all cells, the ignored ones included, as in the reference.

    Args:
        maps: (N, C, H, W) predictions.
        gt_maps: (N, C, H, W) targets.
        loss_mask: (N, C or 1, H, W) W, 0 or more; 0 cells give exactly no gradient.

    Returns:
        Scalar; 0 (with a gradient graph) for an empty batch.
    """
    if maps.shape != gt_maps.shape:
        raise ValueError(
            f"heatmaps have shape {tuple(maps.shape)} but targets {tuple(gt_maps.shape)}"
        )
    if maps.numel() == 0:
        return maps.sum() * 0
    # float32 whatever the autocast type: the targets' small values would underflow.
    return (loss_mask * (maps.float() - gt_maps).square()).mean()
