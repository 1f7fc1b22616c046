"""Runs commands of the repository as a shell would, without importing torch anew for each.

One process imports what the commands need. For each request, a line of JSON on stdin, it forks: the
copy leads a session of its own, takes the place of `python FILE ARGUMENTS` and ends as that would.
The answers are {"pid": of the copy} and, at its end, {"status": exit code, or minus the signal}.

Request: `arguments` (the file first), `env`, `out` and `err` (files), `root` and `events` (a file
that gets a line for each file below `root` that is about to be opened for writing, renamed, removed
or for each folder to be made), `kill_at` (SIGKILL at this event, counted from 1; 0: never),
`file_size` (no file may grow beyond so many bytes; 0: no limit) and `deadly` (what meets that limit
is ended by the kernel in the middle of its write, not told that the disk is full).
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# What the commands import, also late. Not onnxruntime, which starts a thread: the copies have none
# of the server's, and would wait for it.
MODULES = (
    *("mpn_d2.cli.train", "mpn_d2.cli.demo", "mpn_d2.data.synthetic", "mpn_d2.export.writing"),
    *("mpn_d2.evaluation.curves", "matplotlib.pyplot", "torch.utils.tensorboard", "onnx"),
    *("PIL.PngImagePlugin", "PIL.JpegImagePlugin"),
)
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.truncate", "shutil.copyfile"}


def serve() -> dict:
    """Answers requests. Returns in the copies alone, with what the copy is to run."""
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # of an extra: the command that needs it says so
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        sys.exit(f"importing {', '.join(MODULES)} has started {threads - 1} threads")
    print(json.dumps({"ready": True}), flush=True)
    while line := sys.stdin.readline():
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return request
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
    sys.exit(0)


def become(request: dict) -> None:
    """Makes this process what a shell would have started."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    os.environ.update(request["env"])
    os.chdir(REPO)
    sys.argv = list(request["arguments"])
    sys.path[0] = str((REPO / sys.argv[0]).parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch_files(request["root"], request["events"], request["kill_at"])
    if request["file_size"]:
        if request["deadly"]:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it and gets EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)


def watch_files(root: str, events: str, kill_at: int) -> None:
    """Notes what this process does with files below a folder, and kills it at one of these."""
    owner, count = os.getpid(), 0
    notes = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def see(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in _CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(root):
            return
        if os.getpid() != owner:  # a copy of a copy: a worker of a loader
            return
        count += 1
        os.write(notes, f"{event} {os.path.relpath(path, root)}\n".encode())
        if count == kill_at:
            os.kill(owner, signal.SIGKILL)

    sys.addaudithook(see)


if __name__ == "__main__":
    wanted = serve()
    become(wanted)
    runpy.run_path(str(REPO / wanted["arguments"][0]), run_name="__main__")
