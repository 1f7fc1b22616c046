"""Networks whose locations regress poses: time by number of people, and memory of their training.

Letters: P people, R locations, K keypoint types.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch import FCOS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mpn_d2.codecs.offsets import Locations, assign_locations, joint_boxes
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.part_speed import seconds_of_one
from mpn_d2.engine.pipeline_speed import inputs_of
from mpn_d2.engine.speed_people import People, place_people
from mpn_d2.engine.speed_reference import TopDown
from mpn_d2.modeling.losses import focal_loss_sum
from mpn_d2.modeling.meta_arch.regression_losses import by_location
from mpn_d2.structures.outputs import LocationOutputs
from mpn_d2.utils.saved_bytes import MIB, SavedBytes

REFERENCE = "keypoint_rcnn"
# Logits of locations that answer for somebody, and of the others.
_SOMEBODY, _NOBODY = 5.0, -10.0
# A person has come out again where all joints of a pose are as near, pixels.
_NEAR = 0.1
# Bytes of a trained weight: itself, its gradient, its momentum, float32.
_BYTES = 3 * 4


def measure_regression(
    cfg: CfgNode, *, persons: Sequence[int], size: int, rounds: int
) -> dict[str, float]:
    """Median seconds of an image by number of people, ours and Keypoint R-CNN's (design 7.14), in
    turns; their ratios; what the most people cost more than the fewest.

    Random weights would decide how many people there are: so all convolutions run, and then what
    they say is replaced by known people, who must come out again.

    Args:
        cfg: of a network that regresses poses; random weights.
        persons: numbers of people.
        size: side of the image, pixels.
        rounds: in which everybody takes a turn, after one that warms up.

    Raises:
        ValueError: another network; people that do not come out again.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.DETECTIONS_PER_IMAGE = max(cfg.TEST.DETECTIONS_PER_IMAGE, *persons)
    cfg.freeze()
    torch.manual_seed(0)
    model, device = _network(cfg).eval(), cfg.MODEL.DEVICE
    reference, inputs = TopDown(REFERENCE, device), inputs_of(size, 1)
    placed = {count: place_people(count, size) for count in persons}
    times: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for count, people in placed.items():
            with torch.no_grad(), showing(model, people, size):
                if not turn:
                    check_poses(model(inputs)[0]["instances"].pred_keypoints, people)
                spent = {f"{count}": seconds_of_one(partial(model, inputs), device)}
            other = partial(reference, inputs, people.boxes)
            spent[f"{REFERENCE}/{count}"] = seconds_of_one(other, device)
            if turn:
                for name, seconds in spent.items():
                    times.setdefault(name, []).append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    figures = {f"regression/seconds/{name}": value for name, value in medians.items()}
    for count in persons:
        ratio = medians[f"{count}"] / medians[f"{REFERENCE}/{count}"]
        figures[f"regression/ratio/{count}"] = ratio
    fewest, most = min(persons), max(persons)
    growth = medians[f"{most}"] / medians[f"{fewest}"] - 1
    figures[f"regression/more_percent/{fewest}_to_{most}"] = 100 * growth
    return figures


@contextlib.contextmanager
def showing(model: FCOS, people: People, size: int) -> Iterator[None]:
    """Inside, the network's convolutions run as ever, and say that these people are there.

    Args:
        model: with a PoseOffsetHead, in evaluation mode.
        people: in a square image of `size`.
        size: a multiple of the network's size divisibility.

    Raises:
        ValueError: a size that does not fit.
    """
    step = model.backbone.size_divisibility
    if size % max(step, 1):
        raise ValueError(f"images of {size} pixels: a multiple of {step} is needed")
    shown, plain = location_outputs(model, people, size), model.head.layers

    def layers(features: list[torch.Tensor]) -> LocationOutputs:
        plain(features)
        return shown

    model.head.layers = layers
    try:
        yield
    finally:
        del model.head.layers


def location_outputs(model: FCOS, people: People, size: int) -> LocationOutputs:
    """What a network that sees these people perfectly would say; see `showing`."""
    strides = [int(stride) for stride in model.anchor_generator.strides]
    sides = [-(-size // stride) for stride in strides]
    locations = Locations.of_grids([(side, side) for side in sides], strides, model.device)
    poses = whole_poses(people).to(model.device)
    owners = assign_locations(joint_boxes(poses), locations, model.center_sampling_radius)
    logits = torch.where(owners >= 0, _SOMEBODY, _NOBODY)[:, None]
    offsets = logits.new_zeros(len(owners), 2 * people.keypoints.shape[1])
    if len(people):
        gaps = poses[owners.clamp(min=0)] - locations.points[:, None]
        offsets = (gaps / locations.strides[:, None, None]).flatten(1)

    def levels(values: torch.Tensor) -> list[torch.Tensor]:
        by_level = values.split(list(locations.counts))
        return [
            v.T.reshape(1, -1, side, side).contiguous()
            for v, side in zip(by_level, sides, strict=True)
        ]

    return LocationOutputs(
        levels(logits), levels(offsets), levels(offsets), levels(logits), levels(logits)
    )


def whole_poses(people: People) -> torch.Tensor:
    """(P, K, 2) joints; those without a label are in the middle of the others."""
    known = (people.keypoints[..., 2:] > 0).float()
    joints = people.keypoints[..., :2]
    middles = (joints * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
    return torch.where(known > 0, joints, middles[:, None])


def check_poses(found: torch.Tensor, people: People) -> None:
    """Raises a ValueError unless (F, K, 3) poses are these people, each once."""
    wanted = whole_poses(people)
    if len(found) != len(wanted):
        raise ValueError(f"{len(wanted)} people were put in, {len(found)} came out")
    if len(wanted):
        gaps = (found[:, None, :, :2].cpu() - wanted).abs().amax(dim=(2, 3))
        if not bool((gaps.amin(dim=0) <= _NEAR).all()):
            raise ValueError("people were put in, and others came out: their joints differ")


def training_memory(cfg: CfgNode, *, size: int, batch: int) -> dict[str, float]:
    """MiB of a training step, computed from shapes: nothing is run or allocated.

    - regression/training_mib/kept: what autograd keeps between forward and backward of backbone,
      head and dense losses. Left out: the losses of the few positive locations, and what single
      operators need for a moment.
    - .../weights: trained ones with gradients and momentum, and the fixed ones; .../total.

    Args:
        cfg: of a network that regresses poses.
        size: side of the square images, pixels.
        batch: images.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    kept, model = SavedBytes(), _network(cfg).train()
    with FakeTensorMode():
        _without_data(model)
        images = torch.empty(batch, 3, size, size)
        with kept.watching(model):
            features = model.backbone(images)
            outputs = model.head.layers([features[name] for name in model.head_in_features])
            logits = [by_location(outputs.cls_logits)]
            if outputs.joint_logits is not None:
                logits.append(outputs.joint_logits)
            losses = [_focal(x, cfg.MODEL.RETINANET) for x in logits]
            losses += [x.sum() for x in outputs.pose_offsets]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        fixed = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        fixed += sum(x.numel() for x in model.buffers())
        figures = {"kept": kept.peak / MIB, "weights": (_BYTES * trained + 4 * fixed) / MIB}
        del losses
    figures["total"] = sum(figures.values())
    return {f"regression/training_mib/{name}": value for name, value in figures.items()}


def _without_data(model: nn.Module) -> None:
    """Puts tensors that have but a shape in the place of all weights; inside a FakeTensorMode."""
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            bare = torch.empty(p.shape, dtype=p.dtype)
            setattr(module, name, nn.Parameter(bare, requires_grad=p.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _focal(logits: torch.Tensor, keys: CfgNode) -> torch.Tensor:
    valid = torch.ones_like(logits, dtype=torch.bool)
    labels = torch.zeros_like(logits)
    alpha, gamma = keys.FOCAL_LOSS_ALPHA, keys.FOCAL_LOSS_GAMMA
    return focal_loss_sum(logits, labels, valid, alpha=alpha, gamma=gamma)


def _network(cfg: CfgNode) -> nn.Module:
    model = build_pose_model(cfg)
    if not isinstance(model, FCOS):
        raise ValueError(
            "parts regression and regression_memory are for networks whose locations regress "
            f"poses, and a {type(model).__name__} is none"
        )
    return model
