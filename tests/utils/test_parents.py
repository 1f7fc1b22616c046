"""Processes whose parent is killed do not stay, also where that happens while they start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpn_d2.data.loader import StreamOrder, build_image_loader
from mpn_d2.data.workers import detection_test_loader, start_worker

REPO = Path(__file__).resolve().parents[2]
PATIENCE = 120
# The child writes its number when it starts, and goes on when its parent is gone: as if the kill
# had come while it imported.
CHILD = """
import os, sys, time
from pathlib import Path
FILE = Path(sys.argv[1])
def start():
    parent = os.getppid()
    FILE.with_suffix(".partial").write_text(str(os.getpid()))
    FILE.with_suffix(".partial").rename(FILE)
    while os.getppid() == parent:
        time.sleep(0.02)
"""
LOADER = (
    CHILD
    + """
from torch.utils.data import DataLoader
from mpn_d2.data.workers import start_worker
class Slow:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return index
    def __setstate__(self, state):
        start()
    def __getstate__(self):
        return {"a": 1}
if __name__ == "__main__":
    loader = DataLoader(Slow(), num_workers=1, worker_init_fn=start_worker,
                        multiprocessing_context="spawn")
    list(loader)
"""
)
TRAINING = (
    CHILD
    + """
from argparse import Namespace
from torch.multiprocessing import start_processes
from mpn_d2.engine.processes import _main_of_process
def main(args):
    FILE.with_suffix(".trains").touch()
    time.sleep(1000)
class Slow:
    def __setstate__(self, state):
        start()
    def __getstate__(self):
        return {"a": 1}
def run(rank, slow):
    _main_of_process(main, Namespace())
if __name__ == "__main__":
    start_processes(run, (Slow(),), nprocs=1, start_method="spawn")
"""
)


def becomes_true(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("script", [LOADER, TRAINING], ids=["loader", "training"])
def test_children_of_a_killed_process_end(tmp_path, script):
    program, file = tmp_path / "program.py", tmp_path / "pid"
    program.write_text(script)
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, str(program), str(file)], env=env)
    try:
        assert becomes_true(lambda: file.is_file() or parent.poll() is not None)
        assert file.is_file(), "the program has ended"
    finally:
        parent.kill()
        parent.wait()
    child = int(file.read_text())
    try:
        assert becomes_true(lambda: not is_alive(child))
    finally:
        if is_alive(child):
            os.kill(child, signal.SIGKILL)
    assert not file.with_suffix(".trains").exists()


def test_loaders_start_their_workers_so():
    order = StreamOrder(size=2, batch_size=1, seed=0)
    assert build_image_loader([{}, {}], dict, order).worker_init_fn is start_worker
    assert detection_test_loader([{}, {}], mapper=dict).worker_init_fn is start_worker
