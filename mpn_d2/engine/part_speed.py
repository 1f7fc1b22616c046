"""Time, parameters and operations of the parts of one pass, and of what stands around it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mpn_d2.data.dataset_mapper import PoseDatasetMapper
from mpn_d2.data.datasets import load_pose_dicts
from mpn_d2.engine.data_speed import training_step, with_batch
from mpn_d2.engine.stages import stage_config
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.timing import one_core, seconds_of, wait_for
from mpn_d2.utils.visualize import draw_people

# Parts of a pass in their order; `finish` is what the others leave of it: results in the size that
# is wanted, the person mask above all.
PARTS = ("input", "backbone", "fpn", "keypoint_head", "person_head", "boxes", "peaks", "assembly")
FINISH = "finish"
# Parts with weights.
LEARNED = ("backbone", "fpn", "keypoint_head", "person_head", "assembly")
_SAMPLE = "coco_sample"


def _calls(model: nn.Module) -> dict[str, tuple[object, str]]:
    """Object and method that each part is one call of."""
    return {
        "input": (model, "preprocess_image"),
        "backbone": (model.backbone.bottom_up, "forward"),
        "fpn": (model.backbone, "pyramids"),
        "keypoint_head": (model.keypoint_head, "layers"),
        "person_head": (model.head, "forward"),
        "boxes": (model, "_detect"),
        "peaks": (model.keypoint_head, "inference"),
        "assembly": (model.assembler, "inference"),
    }


@contextlib.contextmanager
def _around_parts(model: nn.Module, wrap: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Inside, every part's method is what `wrap(part, method)` makes of it."""
    with contextlib.ExitStack() as stack:
        for part, (owner, name) in _calls(model).items():
            setattr(owner, name, wrap(part, getattr(owner, name)))
            stack.callback(delattr, owner, name)
        yield


def part_seconds(
    model: nn.Module, run: Callable[[], object], repeats: int, device: str
) -> dict[str, float]:
    """Median seconds of each part, and of the rest (`finish`), after one pass that warms up.

    Args:
        model: whose parts are timed; it computes them one by one (not compiled).
        run: one pass of it.
        repeats: passes that are timed.
        device: a GPU is waited for at every border between parts.
    """
    spent: dict[str, float] = defaultdict(float)

    def wrap(part: str, work: Callable) -> Callable:
        def timed(*inputs: object, **named: object) -> object:
            wait_for(device)
            start = time.perf_counter()
            result = work(*inputs, **named)
            wait_for(device)
            spent[part] += time.perf_counter() - start
            return result

        return timed

    times: dict[str, list[float]] = defaultdict(list)
    with _around_parts(model, wrap):
        for turn in range(repeats + 1):
            spent.clear()
            total = seconds_of_one(run, device)
            if turn:
                for part in PARTS:
                    times[part].append(spent[part])
                times[FINISH].append(total - sum(spent.values()))
    return {part: statistics.median(values) for part, values in times.items()}


def seconds_of_one(run: Callable[[], object], device: str) -> float:
    """Wall seconds of one call; a GPU is waited for."""
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def part_gflops(model: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """10^9 operations of each part with weights in one pass (a multiplication and an addition are
    two; convolutions and matrix products alone)."""
    counted: dict[str, float] = dict.fromkeys(LEARNED, 0.0)

    def wrap(part: str, work: Callable) -> Callable:
        def counting(*inputs: object, **named: object) -> object:
            if part not in counted:
                return work(*inputs, **named)
            with FlopCounterMode(display=False) as counter:
                result = work(*inputs, **named)
            counted[part] += counter.get_total_flops() / 1e9
            return result

        return counting

    with _around_parts(model, wrap):
        run()
    return counted


def total_gflops(run: Callable[[], object]) -> float:
    """10^9 operations of a pass of any network, counted as in `part_gflops`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def part_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of each part with weights."""
    counts = {
        "backbone": _parameters(model.backbone.bottom_up),
        "fpn": _parameters(model.backbone) - _parameters(model.backbone.bottom_up),
        "keypoint_head": _parameters(model.keypoint_head),
        "person_head": _parameters(model.head),
        "assembly": _parameters(model.assembler),
    }
    return {part: counts[part] for part in LEARNED}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def drawing_seconds(cfg: CfgNode, image: torch.Tensor, result: dict, repeats: int) -> float:
    """Median seconds to draw the people of a result on their image (3, H, W) uint8."""
    picture = image.permute(1, 2, 0).contiguous().numpy()
    skeleton = get_skeleton(cfg.MODEL.SKELETON)
    people, mask = result["instances"].to("cpu"), result["sem_seg"].cpu()

    def work() -> None:
        draw_people(picture, people, skeleton, mask)

    return statistics.median(seconds_of(work, repeats))


def loader_seconds(cfg: CfgNode, repeats: int) -> float:
    """Median seconds from the file of a bundled photograph to the network's input, one core."""
    mapper = PoseDatasetMapper(cfg, is_train=False)
    photograph = bundled_photograph()
    with one_core():
        return statistics.median(seconds_of(lambda: mapper(photograph), repeats))


def bundled_photograph() -> dict:
    """Detectron2's description of an image of the bundled sample.

    Raises:
        ValueError: its file is missing.
    """
    photograph = load_pose_dicts([f"{_SAMPLE}_val"], is_train=False)[0]
    if not Path(photograph["file_name"]).is_file():
        raise ValueError(
            f"{photograph['file_name']} is missing: the bundled photographs are needed"
        )
    return photograph


def training_step_seconds(cfg: CfgNode, size: int, repeats: int) -> float:
    """Best seconds of a step of the keypoint stage on one bundled photograph's crop of `size`."""
    options = ["DATASETS.TRAIN", f"('{_SAMPLE}_train',)", "DATALOADER.NUM_WORKERS", "0"]
    options += ["INPUT.CROP_SIZE", str(size), "INPUT.AUGMENTATION", "crop", "MODEL.WEIGHTS", ""]
    _, step = training_step(with_batch(stage_config(cfg, "keypoint", options), 1))
    step()
    return min(seconds_of_one(step, cfg.MODEL.DEVICE) for _ in range(repeats))
