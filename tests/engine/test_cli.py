"""Mistakes end in one line, also those that other processes met; bugs keep their traceback."""

from __future__ import annotations

import pytest
from torch._utils import ExceptionWrapper
from torch.multiprocessing import ProcessRaisedException

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
