"""Time and memory of pieces of work, for tools/benchmark.py."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import torch


def seconds_of(work: Callable[[], object], repeats: int, *, device: str = "cpu") -> list[float]:
    """Wall seconds of each repetition, after two that warm up.

    Args:
        work: what is timed.
        repeats: how often.
        device: where it runs; a GPU is waited for.
    """
    times = []
    for _ in range(repeats + 2):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return times[2:]


def clocked(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds of a piece of work."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Inside, PyTorch and OpenCV compute with one thread."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def wait_for(device: str) -> None:
    """Until a GPU has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def in_fresh_process(function: Callable[..., float], *arguments: object) -> float:
    """What a function returns in a process that has done nothing else."""
    # Not a fork: it would begin with this process's memory.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_mib(device: str = "cpu") -> float:
    """MiB that this process (on a GPU: PyTorch there) has had in use at most."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        # Unlike ru_maxrss, of this program alone: that keeps the parent's from before exec.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
