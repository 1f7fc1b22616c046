"""Weights of Detectron2's Keypoint and Mask R-CNN, as our networks with one class hold them.

Names are Detectron2's throughout. Spec multitask_rcnn section 11; design 7.19.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mpn_d2.convert.moving import BOTTOM_UP, KEYPOINT_FPN, SHAPE_ERRORS

# COCO's person among the zoo's classes. Detectron2's background is the last row of cls_score.
PERSON = 0
_CLASS_SCORES = "roi_heads.box_predictor.cls_score."
_CLASS_BOXES = "roi_heads.box_predictor.bbox_pred."
_CLASS_MASKS = "roi_heads.mask_head.predictor."
_KEYPOINT_MAPS = "roi_heads.keypoint_head.score_lowres."
# Of an R-CNN's pyramid: `fpn_lateral2` ...
_FPN = "backbone."
_ANCHORS = "proposal_generator.rpn_head."
# Detectron2's deformable ResNets have the layer of the offsets beside its convolution.
_BESIDE, _INSIDE = ".conv2_offset.", ".conv2.offset."


def fit_rcnn_weights(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What of a checkpoint's `weights` a network begins with.

    - Of several classes the person's stay: scores (with the background's), box deltas, masks.
    - Maps get offsets that are 0, where the network reads its maps at offsets.
    - Where the network has n times the anchor sizes of a level, each size begins as the zoo's one.
    - What the network lacks is left out (levels of the pyramid, other heads).

    What the checkpoint lacks is not in the result: offsets of deformable convolutions begin as the
    network made them, 0.

    Args:
        weights: of a Keypoint R-CNN or Mask R-CNN of Detectron2's, plain or deformable; left as
            they are.
        wanted: the network's `state_dict()`.

    Returns:
        By name, tensors of the network's shapes.

    Raises:
        ValueError: a tensor that cannot be made to fit; names it and the shapes.
    """
    fitted = {}
    for name, tensor in weights.items():
        name = name.replace(_BESIDE, _INSIDE)
        if name not in wanted:
            continue
        shape = tuple(wanted[name].shape)
        value = torch.as_tensor(tensor)
        if tuple(value.shape) != shape:
            try:
                value = _fit(name, value, shape)
            except SHAPE_ERRORS:  # fewer dimensions or none of what is looked for
                value = None
        if value is None or tuple(value.shape) != shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the weights and {shape} in the network: give "
                "weights of a network with the same backbone, channels and keypoints"
            )
        fitted[name] = value
    if not fitted:
        raise ValueError(
            "nothing in these weights belongs to the network: a checkpoint of Detectron2's "
            "Keypoint R-CNN or Mask R-CNN is needed"
        )
    return fitted


def _fit(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
    """`value` in the shape of the network where a rule says how; None where none does."""
    if name.startswith(_CLASS_SCORES):
        # Of one row the person and the background would both be that one.
        return value[[PERSON, -1]] if value.shape[0] > 1 else None
    if name.startswith(_CLASS_BOXES):
        return value[4 * PERSON : 4 * PERSON + 4]
    if name.startswith(_CLASS_MASKS):
        return value[PERSON : PERSON + 1]
    if name.startswith(_KEYPOINT_MAPS):
        # A transposed convolution's outputs are the second axis of its weight.
        axis = min(value.ndim - 1, 1)
        if shape[axis] != 3 * value.shape[axis]:
            return None
        added = [shape[i] - value.shape[i] if i == axis else n for i, n in enumerate(value.shape)]
        return torch.cat([value, value.new_zeros(added)], dim=axis)
    if name.startswith(_ANCHORS) and shape[0] % value.shape[0] == 0:
        # Anchors of a cell are ordered by size, then by ratio.
        return torch.cat([value] * (shape[0] // value.shape[0]))
    return None


def trunk_weights(
    weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Bottom-up network and keypoint pyramid of one of our bottom-up systems, as the start of an
    R-CNN with the same backbone.

    Args:
        weights: a state with `backbone.bottom_up` and perhaps `backbone.keypoint_fpn`.
        wanted: the R-CNN's `state_dict()`.

    Returns:
        By name, tensors of the network's shapes; levels of another size are left out.

    Raises:
        ValueError: the bottom-up networks are not alike.
    """
    found = {}
    for name, tensor in weights.items():
        own = name.replace(KEYPOINT_FPN, _FPN) if name.startswith(KEYPOINT_FPN) else name
        if not name.startswith((BOTTOM_UP, KEYPOINT_FPN)) or own not in wanted:
            continue
        if tensor.shape == wanted[own].shape:
            found[own] = tensor
        elif name.startswith(BOTTOM_UP):
            raise ValueError(
                f"the trunk's {name} is {tuple(tensor.shape)}, the network's "
                f"{tuple(wanted[own].shape)}: give the checkpoint of a network with the same ResNet"
            )
    missing = [
        name
        for name in wanted
        if name.startswith(BOTTOM_UP) and name not in found and ".offset." not in name
    ]
    # Counters of batches, which a frozen norm has not.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"the trunk has no {missing[0]}: give the checkpoint of a network with the same ResNet"
        )
    return found


def trunk_settings(
    settings: Mapping[str, Mapping[str, object]],
) -> dict[str, dict[str, object]]:
    """What of a checkpoint's settings (modeling/weight_settings.py) its `trunk_weights` need.

    The keys of MODEL.POSE_FPN are not among them: which pyramids there are, an R-CNN does not read.
    """
    found = {}
    for part, own in ((BOTTOM_UP, BOTTOM_UP), (KEYPOINT_FPN, f"{_FPN}fpn_")):
        keys = {k: v for k, v in settings.get(part, {}).items() if "POSE_FPN" not in k}
        if keys:
            found[own] = keys
    return found
