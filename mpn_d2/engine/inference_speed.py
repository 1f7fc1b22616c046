"""What test-time augmentation costs: time of peaks and of mirrored views, memory of tiling."""

from __future__ import annotations

import contextlib
import functools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode

from mpn_d2.codecs.heatmap import decode_heatmaps, encode_heatmaps
from mpn_d2.config import load_config
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.checkpoint import PoseCheckpointer
from mpn_d2.engine.predictor import ImagePredictor
from mpn_d2.structures.skeleton import get_skeleton
from mpn_d2.utils.timing import in_fresh_process, one_core, peak_mib, seconds_of

# Of the maps that peaks are searched in: cells a side, stride, candidates of all types together.
_CELLS, _STRIDE, CANDIDATES = 120, 4, 200
# (height, width) of the large photograph, and parts of it a side.
LARGE, _PARTS = (3000, 4000), 4


def measure_inference(cfg: CfgNode, *, image: torch.Tensor, repeats: int) -> dict[str, float]:
    """Figures by name, see tools/benchmark.py.

    Args:
        cfg: of the network; MODEL.WEIGHTS may be empty (random ones).
        image: (3, H, W) uint8 RGB.
        repeats: of every timed piece of work; medians count.
    """
    figures = {f"inference/seconds/peaks/{CANDIDATES}": peak_seconds(cfg, repeats)}
    with _weights_of(cfg) as weights:
        figures.update(flip_seconds(cfg, weights, image, repeats))
        name = f"peak_mib/tiling_{LARGE[1]}x{LARGE[0]}"
        figures[name] = in_fresh_process(_tiling_mib, cfg.dump(), weights)
    return figures


@contextlib.contextmanager
def _weights_of(cfg: CfgNode) -> Iterator[str]:
    """The checkpoint that the config names, else one of random weights, gone afterwards."""
    if cfg.MODEL.WEIGHTS:
        yield cfg.MODEL.WEIGHTS
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        PoseCheckpointer(build_pose_model(cfg.clone()), folder).save("random")
        yield str(Path(folder) / "random.pth")


def peak_seconds(cfg: CfgNode, repeats: int) -> float:
    """Median seconds to find CANDIDATES peaks of all types in maps of 120 x 120, one thread."""
    count = get_skeleton(cfg.MODEL.SKELETON).num_keypoints
    # Points of one type lie on a grid, so far apart that each is a peak.
    per_type = [CANDIDATES // count + (k < CANDIDATES % count) for k in range(count)]
    keypoints = torch.zeros(max(per_type), count, 3)
    for k, number in enumerate(per_type):
        row = torch.arange(number)
        keypoints[:number, k, 0] = 40.0 + 110.0 * (row % 4) + k
        keypoints[:number, k, 1] = 40.0 + 110.0 * (row // 4) + k
        keypoints[:number, k, 2] = 2.0
    size = (_CELLS, _CELLS)
    maps = encode_heatmaps([keypoints], count, size, _STRIDE, 7.0)
    sides = [(_CELLS * _STRIDE, _CELLS * _STRIDE)]

    def work() -> int:
        return len(decode_heatmaps(maps, _STRIDE, 0.1, 60, sides)[0])

    if work() != CANDIDATES:
        raise ValueError(f"{work()} peaks found of {CANDIDATES} that were drawn")
    with one_core():
        return statistics.median(seconds_of(work, repeats))


def flip_seconds(cfg: CfgNode, weights: str, image: torch.Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of a plain pass and of {identity, flip}, taken in turns, and their ratio."""
    models = {name: _predictor(cfg, weights, options) for name, options in _MODES.items()}
    array = image.permute(1, 2, 0).numpy()
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 2):
        for name, model in models.items():
            spent = seconds_of(functools.partial(model, [array]), 1, device=cfg.MODEL.DEVICE)
            if turn > 1:
                times[name] += spent
    medians = {name: statistics.median(values) for name, values in times.items()}
    figures = {f"inference/seconds/{name}": value for name, value in medians.items()}
    return {**figures, "inference/ratio/flip": medians["flip"] / medians["plain"]}


_MODES = {"plain": [], "flip": ["TTA.ENABLED", True, "TTA.FLIP", True]}


def _predictor(cfg: CfgNode, weights: str, options: list[object]) -> ImagePredictor:
    changed = cfg.clone()
    changed.defrost()
    changed.merge_from_list(options)
    return ImagePredictor(changed, weights)


def _tiling_mib(config: str, weights: str) -> float:
    """MiB at most in use while a large photograph is seen whole and in parts, mirrored too."""
    cfg = load_config("")
    cfg.merge_from_other_cfg(CfgNode.load_cfg(config))
    views = ["TTA.ENABLED", True, "TTA.FLIP", True, "TTA.CROPS", _PARTS]
    model = _predictor(cfg, weights, views)
    image = torch.randint(0, 255, (*LARGE, 3), dtype=torch.uint8).numpy()
    model([image])
    return peak_mib(cfg.MODEL.DEVICE)
