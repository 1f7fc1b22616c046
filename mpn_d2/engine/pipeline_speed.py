"""From image to people: time and memory by number of people, ratios to a top-down network.

All systems run in one process, in turns, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from torch import nn

from mpn_d2.config import load_config
from mpn_d2.data.datasets import register_pose_datasets
from mpn_d2.engine.build import build_pose_model
from mpn_d2.engine.fast import (
    DTYPES,
    MODES,
    check_speed,
    half_dtype,
    speed_up,
    take_steps,
    unavailable,
)
from mpn_d2.engine.machine_speed import matmul_gflops
from mpn_d2.engine.part_speed import (
    bundled_photograph,
    drawing_seconds,
    loader_seconds,
    part_gflops,
    part_parameters,
    part_seconds,
    seconds_of_one,
    total_gflops,
    training_step_seconds,
)
from mpn_d2.engine.speed_people import People, check_people, dense_outputs, place_people, seeing
from mpn_d2.engine.speed_reference import NAMES, TopDown
from mpn_d2.utils.timing import in_fresh_process, peak_mib

# Mode of the reference, whose denominator is eager float32 (design 7.14).
PLAIN = "plain"
# What is measured at one number of people: this one, or the largest of those asked for below it.
_MAIN = 20
# People in images of other sizes.
SIZE_PEOPLE = 5
# A compiled network does not run its parts one by one.
PART_MODES = tuple(mode for mode, steps in MODES.items() if "compile" not in steps)


@dataclass
class Settings:
    """What is measured.

    Attributes:
        name: of the system of the config, in the names of the figures.
        persons: numbers of people.
        size: side of the square image, pixels.
        modes: of SPEED.MODE.
        against: of speed_reference.NAMES; "" for no comparison.
        rounds: in which everybody takes a turn.
        batch: images at a time.
        sizes: further sides of images, with SIZE_PEOPLE people.
        details: also parts, steps, memory, machine.
        device: MODEL.DEVICE.
    """

    name: str
    persons: Sequence[int]
    size: int = 480
    modes: Sequence[str] = tuple(MODES)
    against: str = ""
    rounds: int = 10
    batch: int = 1
    sizes: Sequence[int] = field(default_factory=tuple)
    details: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises a ValueError that names what cannot be measured."""
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown:
            raise ValueError(f"--modes {unknown[0]}: choose of {', '.join(MODES)}")
        if self.against and self.against not in NAMES:
            raise ValueError(f"--against {self.against}: choose of {', '.join(NAMES)}")
        if not self.persons or min(self.persons) < 0:
            raise ValueError("--persons needs numbers of people, 0 or more")
        if min([self.size, *self.sizes]) < 1:
            raise ValueError("--size and --sizes need sides of images, 1 pixel or more")

    @property
    def main_count(self) -> int:
        """The number of people at which memory, parts and steps are measured."""
        fitting = [n for n in self.persons if n <= _MAIN]
        return max(fitting) if fitting else min(self.persons)


@dataclass
class Runner:
    """A system in one mode.

    Attributes:
        system, mode: in the names of its figures.
        run: a batch of inputs and the people in each image to results.
        model: of our own systems; None for the reference.
    """

    system: str
    mode: str
    run: Callable[[list[dict], People], list[dict]]
    model: nn.Module | None = None


def measure_pipeline(cfg: CfgNode, settings: Settings) -> dict[str, float | None]:
    """Figures by name, see tools/benchmark.py; None for a mode that is not available here.

    Raises:
        ValueError: a config that is no network with heatmaps and boxes; people that do not come
            out again.
    """
    cfg = speed_config(cfg, settings.persons)
    figures: dict[str, float | None] = {}
    modes = []
    for mode in settings.modes:
        reason = unavailable(mode, cfg.SPEED.DTYPE, cfg.MODEL.DEVICE)
        if reason:
            print(f"{mode}: not available, {reason}")
            figures |= {f"seconds/{settings.name}/{n}/{mode}": None for n in settings.persons}
            figures |= {f"ratio/{n}/{mode}": None for n in settings.persons if settings.against}
        else:
            modes.append(mode)
    runners = build_runners(cfg, settings, modes)
    _check_before(runners, settings)
    for count in settings.persons:
        times = times_in_turns(runners, settings, count, settings.size)
        figures |= _time_figures(times, settings, count)
    for size in settings.sizes:
        times = times_in_turns(runners, settings, SIZE_PEOPLE, size)
        for (system, mode), values in times.items():
            figures[f"size_seconds/{system}/{size}/{mode}"] = statistics.median(values)
    if settings.details:
        figures |= _step_figures(cfg, settings, runners)
        figures |= _part_figures(cfg, settings, runners)
        figures |= _memory_figures(cfg, settings, runners)
        figures |= _machine_figures(cfg)
    return figures


def _check_before(runners: Sequence[Runner], settings: Settings) -> None:
    """Raises a ValueError for what would end a measurement after minutes of it."""
    model = next((r.model for r in runners if r.model is not None), None)
    if model is not None:
        for side in (settings.size, *settings.sizes):
            dense_outputs(model, place_people(0, side), side)
    if settings.details:
        bundled_photograph()


def speed_config(cfg: CfgNode, persons: Sequence[int]) -> CfgNode:
    """A copy whose limits of boxes and peaks leave room for so many people, plain mode."""
    cfg = cfg.clone()
    cfg.defrost()
    most = max(persons)
    cfg.TEST.DETECTIONS_PER_IMAGE = max(cfg.TEST.DETECTIONS_PER_IMAGE, most)
    cfg.MODEL.PEAKS.MAX_PER_TYPE = max(cfg.MODEL.PEAKS.MAX_PER_TYPE, most)
    cfg.SPEED.MODE = PLAIN
    cfg.freeze()
    check_speed(cfg)
    return cfg


def build_runners(cfg: CfgNode, settings: Settings, modes: Sequence[str]) -> list[Runner]:
    """The config's network with random weights in every mode, and the reference."""
    torch.manual_seed(0)
    plain = build_pose_model(cfg.clone()).eval()
    runners = [_own(settings.name, mode, _in_mode(plain, cfg, mode)) for mode in modes]
    if settings.against:
        reference = TopDown(settings.against, cfg.MODEL.DEVICE)
        runners.append(
            Runner(settings.against, PLAIN, lambda inputs, who: reference(inputs, who.boxes))
        )
    return runners


def _in_mode(plain: nn.Module, cfg: CfgNode, mode: str) -> nn.Module:
    chosen = cfg.clone()
    chosen.defrost()
    chosen.SPEED.MODE = mode
    return speed_up(_copy(plain), chosen)


def _copy(plain: nn.Module) -> nn.Module:
    # The assembler stays one: no mode changes it, and a PRN is large.
    assembler = getattr(plain, "assembler", None)
    return copy.deepcopy(plain, {} if assembler is None else {id(assembler): assembler})


def _own(system: str, mode: str, model: nn.Module) -> Runner:
    @torch.no_grad()
    def run(inputs: list[dict], people: People) -> list[dict]:
        return model(inputs)

    return Runner(system, mode, run, model)


def inputs_of(size: int, batch: int) -> list[dict]:
    """Square images of noise, (3, size, size) uint8 each."""
    draw = torch.Generator().manual_seed(0)
    shape = (3, size, size)
    return [
        {
            "image": torch.randint(0, 255, shape, dtype=torch.uint8, generator=draw),
            "height": size,
            "width": size,
        }
        for _ in range(batch)
    ]


def times_in_turns(
    runners: Sequence[Runner], settings: Settings, count: int, size: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds an image of every round, by system and mode; the people put in are checked to come
    out again in a pass before."""
    people = place_people(count, size)
    inputs = inputs_of(size, settings.batch)
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        for runner in runners:
            if runner.model is not None:
                stack.enter_context(seeing(runner.model, people, size, settings.batch))
                check_people(runner.run(inputs, people), people)
        for turn in range(settings.rounds + 1):
            for runner in runners:
                work = functools.partial(runner.run, inputs, people)
                spent = seconds_of_one(work, settings.device)
                if turn:
                    times[runner.system, runner.mode].append(spent / settings.batch)
    return times


def _time_figures(
    times: dict[tuple[str, str], list[float]], settings: Settings, count: int
) -> dict[str, float]:
    figures = {}
    for (system, mode), values in times.items():
        median = statistics.median(values)
        figures[f"seconds/{system}/{count}/{mode}"] = median
        figures[f"spread_percent/{system}/{count}/{mode}"] = 100 * _spread(values) / median
    if settings.against:
        base = figures[f"seconds/{settings.against}/{count}/{PLAIN}"]
        for system, mode in times:
            if system == settings.name:
                own = figures[f"seconds/{system}/{count}/{mode}"]
                figures[f"ratio/{count}/{mode}"] = own / base
    return figures


def _spread(values: Sequence[float]) -> float:
    """Half of what the middle half of the values spans; 0 for one value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def _step_figures(
    cfg: CfgNode, settings: Settings, runners: Sequence[Runner]
) -> dict[str, float | None]:
    """Seconds with one step after the other of the fastest mode that was asked for."""
    own = {r.mode: r for r in runners if r.model is not None}
    order = [mode for mode in ("fastest", "half", "fp32_compiled", "fp32") if mode in own]
    if not order or PLAIN not in own:
        return {}
    steps, plain = MODES[order[0]], own[PLAIN]
    by_steps = {MODES[mode]: runner for mode, runner in own.items()}
    chain = []
    for number in range(len(steps) + 1):
        taken = steps[:number]
        if taken in by_steps:
            model = by_steps[taken].model
        else:
            model = take_steps(_copy(plain.model), taken, half_dtype(cfg))
        chain.append(_own(settings.name, "/".join(taken[-1:]) or PLAIN, model))
    times = times_in_turns(chain, settings, settings.main_count, settings.size)
    return {
        f"step_seconds/{settings.main_count}/{name}": statistics.median(values)
        for (_, name), values in times.items()
    }


def _part_figures(
    cfg: CfgNode, settings: Settings, runners: Sequence[Runner]
) -> dict[str, float | None]:
    """Seconds, parameters and operations by part."""
    count, size, device = settings.main_count, settings.size, cfg.MODEL.DEVICE
    people, inputs = place_people(count, size), inputs_of(size, 1)
    figures: dict[str, float | None] = {}
    for runner in runners:
        if runner.model is None:
            work = functools.partial(runner.run, inputs, people)
            figures[f"gflops/{runner.system}/total"] = total_gflops(work)
            continue
        if runner.mode not in PART_MODES:
            continue
        with seeing(runner.model, people, size):
            work = functools.partial(runner.run, inputs, people)
            times = part_seconds(runner.model, work, settings.rounds, device)
            for part, seconds in times.items():
                figures[f"part_seconds/{part}/{count}/{runner.mode}"] = seconds
            if runner.mode in (PLAIN, "fp32"):
                for part, value in part_gflops(runner.model, work).items():
                    figures[f"gflops/{part}/{runner.mode}"] = value
            if runner.mode == PLAIN:
                for part, number in part_parameters(runner.model).items():
                    figures[f"params/{part}"] = number
                drawn = drawing_seconds(cfg, inputs[0]["image"], work()[0], settings.rounds)
                figures[f"part_seconds/drawing/{count}"] = drawn
    figures["part_seconds/loader"] = loader_seconds(cfg, settings.rounds)
    figures["part_seconds/training_step"] = training_step_seconds(cfg, size, 2)
    return figures


def _memory_figures(
    cfg: CfgNode, settings: Settings, runners: Sequence[Runner]
) -> dict[str, float]:
    count = settings.main_count
    figures = {}
    for runner in runners:
        system = runner.system if runner.model is None else ""
        figures[f"peak_mib/{runner.system}/{count}/{runner.mode}"] = in_fresh_process(
            _peak, cfg.dump(), system, runner.mode, count, settings.size, settings.batch
        )
    return figures


def _peak(config: str, against: str, mode: str, count: int, size: int, batch: int) -> float:
    """MiB at most in use of a process that builds a system and looks at images twice.

    Args:
        config: of the network, also where the reference is measured: it names the device.
        against: the reference's name, "" for the network of the config.
        mode: of SPEED.MODE.
        count, size, batch: people, side of the images, images at a time.
    """
    register_pose_datasets()
    cfg = load_config("")
    cfg.merge_from_other_cfg(CfgNode.load_cfg(config))
    people, inputs = place_people(count, size), inputs_of(size, batch)
    with torch.no_grad():
        if against:
            reference = TopDown(against, cfg.MODEL.DEVICE)
            for _ in range(2):
                reference(inputs, people.boxes)
            return peak_mib(cfg.MODEL.DEVICE)
        cfg.SPEED.MODE = mode
        model = speed_up(build_pose_model(cfg), cfg)
        with seeing(model, people, size, batch):
            for _ in range(2):
                model(inputs)
    return peak_mib(cfg.MODEL.DEVICE)


def _machine_figures(cfg: CfgNode) -> dict[str, float]:
    """Rates of matrix products: what bounds a network's speed."""
    device = cfg.MODEL.DEVICE
    figures = {"machine/gflops/float32": matmul_gflops(torch.float32, device)}
    for name, dtype in DTYPES.items():
        if not unavailable("half", name, device):
            figures[f"machine/gflops/{name}"] = matmul_gflops(dtype, device)
    return figures
