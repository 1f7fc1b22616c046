"""Pictures while training: what the losses compare, target above prediction."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from torch import nn

from mpn_d2.codecs.heatmap import decode_highest
from mpn_d2.modeling.assembly.grid_evidence import GridEvidence
from mpn_d2.structures.skeleton import Skeleton, get_skeleton
from mpn_d2.utils.target_pictures import (
    draw_boxes,
    draw_crop,
    draw_grids,
    draw_predictions,
    draw_targets,
    stack,
)
from mpn_d2.utils.visualize import draw_people, write_png

FOLDER = "pictures"
MOST_IMAGES = 2
MOST_PEOPLE = 6


def build_picture_hook(cfg: CfgNode, *, to_events: bool) -> PictureHook | None:
    """Pictures every VIS_PERIOD iterations; None where that is 0.

    Args:
        to_events: also hand them to TensorBoard.
    """
    if cfg.VIS_PERIOD <= 0:
        return None
    return PictureHook(
        period=cfg.VIS_PERIOD,
        folder=os.path.join(cfg.OUTPUT_DIR, FOLDER),
        skeleton=get_skeleton(cfg.MODEL.SKELETON),
        image_format=cfg.INPUT.FORMAT,
        score_threshold=cfg.EVAL.CONFIDENCE_THRESH,
        to_events=to_events,
    )


class PictureHook(HookBase):
    """Draws the first images (or people) of the batch just trained on.

    For models with an `assembler` and, where images train, a `keypoint_head`, or with the latter
    alone where crops of people train. The training goes on as if nothing had been drawn: see
    `undisturbed`.
    """

    def __init__(
        self,
        *,
        period: int,
        folder: str,
        skeleton: Skeleton,
        image_format: str,
        score_threshold: float = 0.5,
        to_events: bool = False,
    ) -> None:
        """
        Args:
            period: iterations between pictures; the first of a run is drawn too.
            folder: gets iter_<iteration>_<place in the batch>_<image id>.png, or
                iter_<iteration>_people.png.
            skeleton: of the keypoints.
            image_format: INPUT.FORMAT of the images.
            score_threshold: least box score of people who are drawn.
            to_events: also put the pictures into the event storage, which a TensorBoard writer
                must empty.
        """
        self.period = period
        self.folder = Path(folder)
        self.skeleton = skeleton
        self.image_format = image_format
        self.score_threshold = score_threshold
        self.to_events = to_events
        self._batch: list[dict] | None = None
        self._handle: Any = None

    def before_step(self) -> None:
        iteration = self.trainer.iter
        if (iteration + 1) % self.period == 0 or iteration == self.trainer.start_iter:
            self._handle = bare_model(self.trainer.model).register_forward_pre_hook(self._look)

    def _look(self, _: nn.Module, args: tuple) -> None:
        # The first micro-batch of the step will do.
        if self._batch is None:
            self._batch = args[0]

    def after_step(self) -> None:
        if self._handle is None:
            return
        self._handle.remove()
        batch, self._handle, self._batch = self._batch, None, None
        if not batch:
            return
        model = bare_model(self.trainer.model)
        with undisturbed(model):
            pictures = draw_batch(
                model, batch, self.skeleton, self.image_format, self.score_threshold
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for place, (name, picture) in enumerate(pictures):
            write_png(self.folder / f"iter_{self.trainer.iter:07d}_{name}.png", picture)
            if self.to_events:
                image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
                # Not the image's name: one row of TensorBoard shows how training went.
                self.trainer.storage.put_image(f"pictures/{place}", image)


def bare_model(model: nn.Module) -> nn.Module:
    """The model without the wrapper that exchanges gradients."""
    return getattr(model, "module", model)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, the model predicts; outside, nothing has changed.

    Evaluation mode and no gradients, so that no norm statistic moves; afterwards every module's
    mode and every random generator (Python, numpy, PyTorch) is as before.
    """
    modes = {module: module.training for module in model.modules()}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            model.eval()
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes.items():
            module.training = training


def draw_batch(
    model: nn.Module,
    batch: list[dict],
    skeleton: Skeleton,
    image_format: str,
    score_threshold: float = 0.5,
) -> list[tuple[str, np.ndarray]]:
    """Names and pictures (RGB uint8) of the first of a training batch; the model in eval mode.
    Predicted people whose box scores less than `score_threshold` are left out.

    None of an assembly whose evidence sees no grids.
    """
    if "image" not in batch[0]:
        if not isinstance(model.assembler.evidence, GridEvidence):
            return []
        return [("people", _draw_people(model, batch[:MOST_PEOPLE], skeleton))]
    if "crowd_boxes" not in batch[0]:  # crops of single people
        pictures = [draw_crop_pair(model, x, skeleton, image_format) for x in batch[:MOST_PEOPLE]]
        return [("people", stack(pictures))]
    images = [x for x in batch[:MOST_IMAGES] if "image" in x]
    # A batch may hold an image twice, differently augmented; an id may be any text.
    return [
        (
            re.sub(r"[^\w.-]", "_", f"{place}_{x.get('image_id', '')}"),
            _draw_image(model, x, skeleton, image_format, score_threshold),
        )
        for place, x in enumerate(images)
    ]


def _draw_image(
    model: nn.Module, x: dict, skeleton: Skeleton, image_format: str, score_threshold: float
) -> np.ndarray:
    """Targets above predictions of one training input, in the network-input frame."""
    image = convert_image_to_rgb(x["image"].permute(1, 2, 0), image_format)
    # Without the size of the file, results stay in the frame of the network input.
    result = model.inference([{k: v for k, v in x.items() if k not in ("height", "width")}])[0]
    if not hasattr(model, "assembler"):
        # Maps that are drawn are those that boxes claim joints from.
        above = draw_boxes(image, x["instances"], x["crowd_boxes"], skeleton)
        found = draw_people(image, result["instances"], skeleton, score_threshold=score_threshold)
        return stack([above, found])
    head = model.keypoint_head
    tensor = model.preprocess_image([x]).tensor
    maps = head.layers(model.backbone(tensor)).maps
    targets = head.make_targets(
        [x["instances"].gt_keypoints.tensor.to(maps.device)],
        [x["person_mask"].to(maps.device)],
        [x["ignore_mask"].to(maps.device)],
        tuple(maps.shape[-2:]),
    )
    above = draw_targets(
        image,
        x["instances"],
        x["crowd_boxes"],
        skeleton,
        targets.maps[0],
        targets.loss_mask[0],
        head.stride,
    )
    below = draw_predictions(
        image, result["instances"], skeleton, maps[0], head.stride, score_threshold
    )
    return stack([above, below])


def draw_crop_pair(
    model: nn.Module, x: dict, skeleton: Skeleton, image_format: str, *, predict: bool = True
) -> np.ndarray:
    """Target and, with `predict`, prediction beside it, of a crop that a person is trained on."""
    image = convert_image_to_rgb(x["image"].permute(1, 2, 0), image_format)
    head, tensor = model.keypoint_head, model.preprocess_image([x]).tensor
    size = tuple(-(-side // head.stride) for side in tensor.shape[-2:])
    target = model.make_targets([x], size).maps[0]
    joints = x["instances"].gt_keypoints.tensor
    joints = joints[0] if len(joints) else torch.zeros(skeleton.num_keypoints, 3)
    pictures = [draw_crop(image, joints, skeleton, target, head.stride, "target")]
    if predict:
        maps = head.layers(model.backbone(tensor)).maps
        found = decode_highest(maps, head.stride, [tuple(x["image"].shape[-2:])])[0]
        pictures.append(draw_crop(image, found, skeleton, maps[0], head.stride, "predicted"))
    return np.concatenate(pictures, axis=1)


def _draw_people(model: nn.Module, samples: list[dict], skeleton: Skeleton) -> np.ndarray:
    """One row a person of the assembly: joints | input | output | label."""
    evidence = model.assembler.evidence
    inputs, labels = evidence.encode_samples(samples)
    outputs = evidence.network(inputs)
    rows = [
        draw_grids(sample, skeleton, evidence.margin, grids, ("input", "output", "label"))
        for sample, *grids in zip(samples, inputs, outputs, labels, strict=True)
    ]
    return stack(rows)
