"""Mistakes end in one line, also those that other processes met; bugs keep their traceback."""

from __future__ import annotations

import errno
import logging
import os
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.utils.data import DataLoader, Dataset

from mpn_d2.engine.cli import run_command


def line_of(main, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", [FileNotFoundError, ValueError, FloatingPointError])
@pytest.mark.parametrize("in_worker", [False, True])
def test_errors_of_loader_workers(in_worker, kind, capsys):
    def main():
        try:
            raise kind("image a.jpg\nnot found: check it")
        except kind:
            if not in_worker:
                raise
            # What a worker process sends, and what the DataLoader then does with it.
            sent = ExceptionWrapper(where="in DataLoader worker process 0")
        sent.reraise()

    line = line_of(main, capsys)
    assert line == "error: image a.jpg not found: check it (MPN_TRACEBACK=1 shows where)"


def raised_in_process(text: str) -> ProcessRaisedException:
    head = (
        "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):"
    )
    return ProcessRaisedException(f'{head}\n  File "x.py", line 3, in f\n    g()\n{text}\n', 1, 99)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ValueError: no config key X", "no config key X"),
        ("PIL.UnidentifiedImageError: cannot identify a.jpg", "cannot identify a.jpg"),
        (
            "FileNotFoundError: Caught FileNotFoundError in DataLoader worker process 0.\n"
            'Original Traceback (most recent call last):\n  File "y.py", line 5, in h\n'
            "    open(p)\nFileNotFoundError: image b.jpg not found",
            "image b.jpg not found",
        ),
        (
            "KeyError: 'XX'\n\nThe above exception was the direct cause of the following "
            'exception:\n\nTraceback (most recent call last):\n  File "z.py", line 1, in i\n'
            "ValueError: config: nothing is called 'XX'",
            "config: nothing is called 'XX'",
        ),
    ],
)
def test_errors_of_spawned_processes(text, message, capsys):
    def main():
        raise raised_in_process(text)

    assert line_of(main, capsys) == f"error: {message} (MPN_TRACEBACK=1 shows where)"


def test_bugs_keep_their_traceback(monkeypatch):
    def bug():
        raise raised_in_process("TypeError: f() takes no arguments")

    with pytest.raises(ProcessRaisedException):
        run_command(bug)
    with pytest.raises(TypeError):
        run_command(lambda: len(3))

    def mistake():
        raise ValueError("wrong")

    monkeypatch.setenv("MPN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"):
        run_command(mistake)


class EndsItself(Dataset):
    """Its worker is killed while it reads."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.kill(os.getpid(), 9)


def test_a_loader_worker_that_is_killed(capsys):
    line = line_of(lambda: list(DataLoader(EndsItself(), num_workers=1)), capsys)
    assert line.startswith("error: a process that reads data (DATALOADER.NUM_WORKERS; ")
    assert "was ended from outside" in line and "--resume" in line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ProcessExitedException("process 1 died", 1, 99, -9, "SIGKILL"), "process 1 (SIGKILL) was"),
        (raised_in_process("RuntimeError: [gloo] Connection closed by peer"), "another process of"),
        (
            raised_in_process(
                "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. \n\nThe "
                "above exception was the direct cause of the following exception:\n\nTraceback "
                '(most recent call last):\n  File "x.py", line 3, in f\nRuntimeError: DataLoader '
                "worker (pid(s) 7) exited unexpectedly"
            ),
            "a process that reads data (DATALOADER.NUM_WORKERS; 7, Killed) was ended from outside",
        ),
        (BrokenProcessPool("a child"), "a process that works on a part was ended"),
    ],
)
def test_other_processes_that_are_killed(error, words, capsys):
    def main():
        raise error

    assert words in line_of(main, capsys)


def test_a_full_disk_is_one_line_also_behind_another_error(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.pth")

    def main():
        try:
            raise full
        except OSError:
            len(3)

    expected = "error: [Errno 28] No space left on device: 'a.pth': free some space and run it "
    assert line_of(main, capsys).startswith(expected)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is full")
def test_log_files_on_a_full_disk_print_no_tracebacks(capsys):
    stream = open("/dev/full", "w")
    handler = logging.StreamHandler(stream)
    logging.getLogger("mpn_d2").addHandler(handler)

    def main():
        logging.getLogger("mpn_d2").warning("lost")
        torch.save({"a": torch.zeros(9)}, "/dev/full")

    before = logging.raiseExceptions
    try:
        line = line_of(main, capsys)
    finally:
        logging.getLogger("mpn_d2").removeHandler(handler)
        logging.raiseExceptions = before
    assert "No space left on device" in line and stream.closed


def test_text_of_others_neither_moves_the_cursor_nor_fills_the_screen(capsys):
    def fail():
        raise ValueError("a.json: name \x1b]0;title\x07 " + "x" * 9000 + "\ud800: rename it")

    with pytest.raises(SystemExit):
        run_command(fail)
    line = capsys.readouterr().err
    assert line.startswith(r"error: a.json: name \x1b]0;title\x07 xxx")
    assert line.endswith("\\ud800: rename it (MPN_TRACEBACK=1 shows where)\n")
    assert len(line) < 1100 and " ... " in line
