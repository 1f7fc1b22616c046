"""The client of `fault_server.py`: starts commands, looks how they end and for orphans."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# Seconds after which a command that says nothing more counts as hanging; orphans as such after
# half of them: workers of a loader look every five seconds whether their parent lives, but those
# that were just spawned import PyTorch first, which takes a while on a busy machine.
PATIENCE = float(os.environ.get("MPN_FAULTS_PATIENCE", "240"))
LOOK = 0.01


class Unanswered(AssertionError):
    """A command hangs, or ends without a clear line."""


class Lost(AssertionError):
    """A result differs from that without the fault, or a file or process is left behind."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int  # negative: by this signal
    seconds: float
    session: int
    out: str
    err: str
    events: list[str]  # what it did with files, one a line


class Running:
    """A command at work."""

    def __init__(self, pid: int, answers: Callable[[float], dict | None]) -> None:
        self.pid = pid
        self.start = time.monotonic()
        self.status: int | None = None
        self._answers = answers

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after so many seconds at most."""
        if self.status is None:
            answer = self._answers(max(seconds, 0.0))
            self.status = None if answer is None else answer["status"]
        return self.status is not None

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether a condition came true before it ended."""
        while not condition():
            if self.wait(LOOK):
                return False
            if time.monotonic() - self.start > PATIENCE:
                return False
        return True

    def kill(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)

    def workers(self) -> list[int]:
        """Processes that it has forked or spawned for its work (not git, gcc ...)."""
        found = [pid for pid in members(self.pid) if pid != self.pid and is_python(pid)]
        return [pid for pid in found if "resource_tracker" not in command_of(pid)]


class Commands:
    """Runs commands of the repository, one after another."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("fault_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=REPO,
            env=env,
        )
        self._sessions: list[int] = []
        # It imports all that there is, on a busy machine perhaps beside a training.
        if self._answer(5 * PATIENCE) is None:
            raise Unanswered("the server of the faults does not start")

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(PATIENCE)

    def _answer(self, seconds: float) -> dict | None:
        ready, _, _ = select.select([self._server.stdout], [], [], seconds)
        if not ready:
            return None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the server of the faults has ended")
        return json.loads(line)

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        root: Path,
        env: Mapping[str, str],
        fault: Callable[[Running], None] | None = None,
        kill_at: int = 0,
        file_size: int = 0,
        deadly: bool = False,
    ) -> Ended:
        """Runs `python ARGUMENTS` to its end, with a fault.

        Args:
            arguments: the file first.
            folder: for what it prints.
            root: where files are watched.
            env: added to the environment.
            fault: called when it runs.
            kill_at, file_size, deadly: see fault_server.py.

        Raises:
            Unanswered: it does not end.
        """
        files = {name: str(folder / name) for name in ("out", "err", "events")}
        limits = {"kill_at": kill_at, "file_size": file_size, "deadly": deadly}
        request = {"arguments": list(arguments), "env": dict(env), "root": str(root)}
        self._server.stdin.write(json.dumps({**request, **files, **limits}).encode() + b"\n")
        running = Running(self._answer(PATIENCE)["pid"], self._answer)
        self._sessions.append(running.pid)
        if fault is not None:
            fault(running)
        if not running.wait(PATIENCE):
            running.kill()
            end_session(running.pid)
            running.wait(PATIENCE)
            raise Unanswered(f"{' '.join(arguments)} does not end")
        text = {name: Path(file).read_text(errors="replace") for name, file in files.items()}
        seconds = time.monotonic() - running.start
        events = text["events"].splitlines()
        return Ended(running.status, seconds, running.pid, text["out"], text["err"], events)

    def check_orphans(self) -> None:
        """Waits for the processes that ended commands have started.

        Raises:
            Lost: some of them do not end; they are ended then.
        """
        end = time.monotonic() + PATIENCE / 2
        while any(map(members, self._sessions)) and time.monotonic() < end:
            time.sleep(0.05)
        orphans = [pid for session in self._sessions for pid in members(session)]
        commands = [f"{pid} ({command_of(pid)})" for pid in orphans]
        for session in self._sessions:
            end_session(session)
        self._sessions.clear()
        if orphans:
            raise Lost(f"orphan processes: {', '.join(commands)}")


def members(session: int) -> list[int]:
    """Processes of a session that run; those that nobody has waited for yet do not."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        try:
            stat = Path(entry.path, "stat").read_text()
        except OSError:  # it has ended
            continue
        # pid (name) state parent group session ...; the name may hold anything.
        state, _, _, its_session = stat.rpartition(")")[2].split()[:4]
        if int(its_session) == session and state != "Z":
            found.append(int(entry.name))
    return found


def is_python(pid: int) -> bool:
    try:
        return os.path.samefile(f"/proc/{pid}/exe", sys.executable)
    except OSError:
        return False


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return "ended"


def end_session(session: int) -> None:
    for pid in members(session):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
