"""What happens to a command, and what must be true afterwards.

Kinds of faults: "moment" (SIGKILL at a seeded moment), "file" (SIGKILL when it is about to open,
rename, remove or make the nth file), "write" (ended by the kernel in the middle of a write), "disk"
(no space left), "data" (what it reads is taken away), "worker" (SIGKILL to a process that helps
it). Afterwards no file under a final name is broken; what a command survives it answers with one
clear line and an exit code that is not 0. Then the fault is mended and the command repeated: it
leaves what it leaves without a fault, and no process.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fault_cases import Case, make_data
from fault_files import assert_same, check_files, files_in, partial_files
from fault_runs import Commands, Ended, Lost, Running, Unanswered

KINDS = ("moment", "file", "write", "disk", "data", "worker")
KILLS = ("moment", "file", "write")
# (kind, "faults" | "ended" | "answered" | "without effect" | "lost" | "unanswered").
COUNTS: Counter[tuple[str, str]] = Counter()
_NOISE = re.compile(r"Traceback \(most recent|Exception ignored in|--- Logging error ---")


@dataclass(frozen=True)
class Reference:
    """A run without a fault."""

    folder: Path
    seconds: float
    events: int
    printed: int  # bytes
    sizes: tuple[int, ...]  # of its files, in bytes


class Scene:
    """The folder in which commands run: each in `run`, so that all paths are the same."""

    def __init__(self, root: Path, commands: Commands) -> None:
        self.root = root
        self.run = root / "run"
        self.data = root / "data"
        self._away = root / "away"
        self._commands = commands
        self._references: dict[str, Reference] = {}
        for name in ("prints", "tmp", "references"):
            (root / name).mkdir()
        make_data(self.data)

    def start(self, case: Case, *, again: bool = False, **fault) -> Ended:
        """Runs a case's command; `fault` as in Commands.run."""
        file, *rest = case.arguments
        places = {"run": str(self.run), "data": str(self.data)}
        arguments = [file, *(case.again if again else ()), *rest]
        for name, place in places.items():
            arguments = [argument.replace(f"{{{name}}}", place) for argument in arguments]
        env = {"MPN_CACHE": str(self.run / "cache"), "TMPDIR": str(self.root / "tmp")}
        env |= {"TQDM_MININTERVAL": "1000"}
        return self._commands.run(arguments, self.root / "prints", root=self.run, env=env, **fault)

    def reference(self, case: Case) -> Reference:
        """What a case leaves without a fault."""
        if case.name not in self._references:
            self._empty()
            ended = self.start(case)
            if ended.code != 0:
                raise RuntimeError(f"{case.name} fails without a fault: {ended.err[-2000:]}")
            self._commands.check_orphans()
            check_files(self.run)
            folder = self.root / "references" / case.name
            sizes = tuple(file.stat().st_size for file in files_in(self.run))
            self.run.rename(folder)
            printed = len(ended.out.encode()) + len(ended.err.encode())
            self._references[case.name] = Reference(
                folder, ended.seconds, len(ended.events), printed, sizes
            )
        return self._references[case.name]

    def play(self, case: Case, kind: str, seed: int) -> bool:
        """One fault of a kind and what follows; the same for the same seed, but for moments.

        Returns:
            whether the fault had an effect: it may come too late.

        Raises:
            Lost, Unanswered: see the head of this file.
        """
        reference = self.reference(case)
        COUNTS[kind, "faults"] += 1
        self._empty()
        try:
            ended = self._suffer(case, kind, seed, reference)
            self._check_answer(kind, ended)
            check_files(self.run)
            self._repair()
            if "--num-gpus" in case.arguments:
                self._commands.check_orphans()  # they hold the port for a moment
            if ended.code != 0:
                again = self.start(case, again=True)
                if again.code != 0:
                    raise Lost(f"the command repeated ends with {again.code}: {again.err[-1500:]}")
            check_files(self.run)
            assert_same(reference.folder, self.run, case.inexact)
            self._check_nothing_half()
            self._commands.check_orphans()
        except (Lost, Unanswered) as error:
            COUNTS[kind, type(error).__name__.lower()] += 1
            raise type(error)(f"{case.name}, {kind}, seed {seed}: {error}") from error
        finally:
            self._repair()
            self._empty(make=False)
        how = "ended" if ended.code < 0 else "answered" if ended.code else "without effect"
        COUNTS[kind, how] += 1
        return ended.code != 0

    # ------------------------------------------------------------------------------ the faults

    def _suffer(self, case: Case, kind: str, seed: int, reference: Reference) -> Ended:
        rng = random.Random(f"{case.name} {kind} {seed}")
        if kind == "moment":
            moment = rng.uniform(0.1, 1.0) * reference.seconds
            return self.start(case, fault=lambda run: None if run.wait(moment) else run.kill())
        if kind == "file":
            return self.start(case, kill_at=rng.randint(1, reference.events))
        if kind == "write":
            return self.start(case, file_size=_file_size(rng, reference), deadly=True)
        if kind == "disk":
            share = rng.uniform(0.05, 0.85)
            if self._mount(int(share * sum(reference.sizes))):
                COUNTS[kind, "small disk"] += 1
                return self.start(case)
            return self.start(case, file_size=_file_size(rng, reference))
        # The first of these at once when the work has begun, the others somewhat later.
        wait = rng.uniform(0, 0.5) * reference.seconds if seed else 0.0

        def fault(running: Running) -> None:
            if not running.wait_until(lambda: case.at_work(running, self.run)):
                return
            if running.wait(wait):
                return
            if kind == "data":
                self.data.rename(self._away)
            else:
                workers = running.workers()
                if workers:
                    _kill(rng.choice(workers))

        return self.start(case, fault=fault)

    def _mount(self, size: int) -> bool:
        """Whether `run` is a small disk now; only some may mount one."""
        if os.geteuid() != 0 or shutil.which("mount") is None:
            return False
        options = f"size={max(size, 4096)}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.run)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def _repair(self) -> None:
        """Puts the data back, and makes a small disk large."""
        if self._away.exists():
            # A command may have made the folder that it missed.
            shutil.rmtree(self.data, ignore_errors=True)
            self._away.rename(self.data)
        if os.path.ismount(self.run):
            command = ["mount", "-o", "remount,size=1g", str(self.run)]
            subprocess.run(command, check=True, capture_output=True)

    def _empty(self, make: bool = True) -> None:
        if os.path.ismount(self.run):
            subprocess.run(["umount", "-l", str(self.run)], check=True, capture_output=True)
        shutil.rmtree(self.run, ignore_errors=True)
        if make:
            self.run.mkdir()

    # ----------------------------------------------------------------------------- the answer

    def _check_answer(self, kind: str, ended: Ended) -> None:
        printed = f"{ended.out}\n{ended.err}"
        if ended.code == 0:
            return
        if kind in KILLS:
            if ended.code not in (-signal.SIGKILL, -signal.SIGXFSZ):
                raise Unanswered(f"it ends with {ended.code} instead: {printed[-1500:]}")
            return
        lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        some = ended.code == 1 and "inputs failed (named above)" in ended.err
        if ended.code < 0 or _NOISE.search(printed) or not (len(lines) == 1 or some):
            raise Unanswered(f"no clear line, exit code {ended.code}: {printed[-3000:]}")
        self._check_nothing_half()

    def _check_nothing_half(self) -> None:
        left = partial_files(self.run)
        if left:
            raise Lost(f"half-written files are left behind: {', '.join(map(str, left))}")


def _file_size(rng: random.Random, reference: Reference) -> int:
    """A limit that a file of the command meets, and what it prints does not."""
    low, high = 2 * reference.printed + 4096, max(reference.sizes)
    return rng.randint(low, high - 1) if low < high - 1 else high - 1


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
