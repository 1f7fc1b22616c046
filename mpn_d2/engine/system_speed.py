"""Systems of all kinds beside one another: time from image to people, by number of people.

Each runs all of its convolutions with random weights; then known people, or so many steps, take the
place of what they said, in the way of its kind.
"""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch import FCOS, GeneralizedRCNN
from torch import nn

from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.part_speed import seconds_of_one
from mpn_d2.engine.pipeline_speed import inputs_of
from mpn_d2.engine.regression_speed import showing
from mpn_d2.engine.speed_people import People, place_people, seeing
from mpn_d2.engine.speed_reference import GivenBoxes, TopDown

REFERENCE = "keypoint_rcnn"
# Logit of a step at which somebody is left, and of the one after the last.
_SOMEBODY = 10.0


@dataclass
class System:
    """A network that is told how many people there are.

    Attributes:
        run: images, and the people in each, to results.
        telling: context in which they are found: of the people, and the side of the images.
    """

    run: Callable[[list[dict], People], list[dict]]
    telling: Callable[[People, int], contextlib.AbstractContextManager]


def measure_systems(
    configs: Mapping[str, CfgNode], *, persons: Sequence[int], size: int, rounds: int
) -> dict[str, float]:
    """Median seconds of an image, plain mode, and their ratios to Keypoint R-CNN's (design 7.14).

    Args:
        configs: by the name of their figures; all on one device.
        persons: numbers of people.
        size: side of the image, pixels.
        rounds: in which all take turns, after one that warms up.

    Returns:
        `systems/seconds/<name>/<people>` and `systems/ratio/<name>/<people>`.

    Raises:
        ValueError: a network of another kind, or other people than those that were put in.
    """
    device = next(iter(configs.values())).MODEL.DEVICE
    reference = TopDown(REFERENCE, device)
    systems = {REFERENCE: _with_boxes(reference)}
    for name, cfg in configs.items():
        systems[name] = build_system(cfg, max(persons))
    inputs = inputs_of(size, 1)
    figures: dict[str, float] = {}
    for count in persons:
        people = place_people(count, size)
        times: dict[str, list[float]] = {name: [] for name in systems}
        for turn in range(rounds + 1):
            for name, system in systems.items():
                with torch.no_grad(), system.telling(people, size):
                    if not turn:
                        _check(name, system.run(inputs, people), count)
                    work = functools.partial(system.run, inputs, people)
                    spent = seconds_of_one(work, device)
                if turn:
                    times[name].append(spent)
        medians = {name: statistics.median(values) for name, values in times.items()}
        figures |= {f"systems/seconds/{name}/{count}": m for name, m in medians.items()}
        base = medians[REFERENCE]
        ratios = {name: m / base for name, m in medians.items() if name != REFERENCE}
        figures |= {f"systems/ratio/{name}/{count}": r for name, r in ratios.items()}
    return figures


def build_system(cfg: CfgNode, most: int) -> System:
    """A config's network, random weights, for up to `most` people."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.DETECTIONS_PER_IMAGE = max(cfg.TEST.DETECTIONS_PER_IMAGE, most)
    cfg.MODEL.PEAKS.MAX_PER_TYPE = max(cfg.MODEL.PEAKS.MAX_PER_TYPE, most)
    cfg.MODEL.SEQUENCE.MAX_ITERATIONS = max(cfg.MODEL.SEQUENCE.MAX_ITERATIONS, most + 1)
    # Nobody is left out for having no joint.
    cfg.MODEL.SEQUENCE.TAU = -math.inf
    cfg.freeze()
    torch.manual_seed(0)
    model = build_pose_model(cfg).eval()
    if isinstance(model, GeneralizedRCNN):
        for name, parameter in model.named_parameters():
            # Offsets of 0 would be passed over.
            if name.endswith("offset.bias"):
                nn.init.normal_(parameter)
        head = model.roi_heads.keypoint_head
        nn.init.normal_(head.score_lowres.bias[head.num_keypoints :])
        return _with_boxes(GivenBoxes(model))

    def run(inputs: list[dict], people: People) -> list[dict]:
        return model(inputs)

    if isinstance(model, FCOS):
        return System(run, functools.partial(showing, model))
    if hasattr(model, "decoder"):
        return System(run, functools.partial(_writing, model.decoder))
    return System(run, functools.partial(seeing, model))


def _with_boxes(network: GivenBoxes) -> System:
    def run(inputs: list[dict], people: People) -> list[dict]:
        return network(inputs, people.boxes)

    return System(run, lambda people, size: contextlib.nullcontext())


@contextlib.contextmanager
def _writing(decoder: nn.Module, people: People, size: int) -> Iterator[None]:
    """Inside, a recurrent decoder writes as many people, and then says that nobody is left."""
    plain = decoder.write

    def write(seen: torch.Tensor, state: object, step: int) -> tuple:
        maps, logits, state = plain(seen, state, step)
        left = _SOMEBODY if step < len(people) else -_SOMEBODY
        return maps, torch.full_like(logits, left), state

    decoder.write = write  # type: ignore[assignment]  # in the place of a method
    try:
        yield
    finally:
        del decoder.write


def _check(name: str, results: list[dict], count: int) -> None:
    found = len(results[0]["instances"])
    if found != count:
        raise ValueError(f"{name}: {count} people were put in, {found} came out")
