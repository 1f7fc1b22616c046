"""Losses as pure functions of tensors."""

from __future__ import annotations

import torch
from fvcore.nn import sigmoid_focal_loss, smooth_l1_loss


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


def focal_loss_sum(
    logits: torch.Tensor,
    targets: torch.Tensor,
    valid: torch.Tensor,
    *,
    alpha: float,
    gamma: float,
) -> torch.Tensor:
    """Sum of fvcore's sigmoid focal loss over the valid entries.

    Args:
        logits, targets: of one shape; targets 0 or 1.
        valid: bool, broadcasts to them; others give no loss and no gradient.
        alpha: weight of the ones, 1 - alpha of the zeros; below 0: all weigh 1.
        gamma: exponent of 1 - p_t.
    """
    if logits.numel() == 0:
        return logits.float().sum() * 0
    loss = sigmoid_focal_loss(logits.float(), targets.float(), alpha=alpha, gamma=gamma)
    return torch.where(valid, loss, 0.0).sum()


def offset_loss(
    offsets: torch.Tensor,
    targets: torch.Tensor,
    labelled: torch.Tensor,
    weights: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Smooth L1 of offsets in strides, summed over labelled joints and poses, a weight a pose.

    Args:
        offsets, targets: (M, 2K) x, y by joint.
        labelled: (M, K) bool.
        weights: (M,) 0 or more; no gradient flows into them.
        beta: where the loss turns from squares to L1, strides.
    """
    loss = smooth_l1_loss(offsets.float(), targets.float(), beta=beta)
    counted = labelled.repeat_interleave(2, dim=1)
    return (torch.where(counted, loss, 0.0).sum(dim=1) * weights.detach()).sum()
