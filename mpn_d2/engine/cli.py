"""What the command lines share: one clear line for a mistake, a full disk, a lost process."""

from __future__ import annotations

import builtins
import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from mpn_d2.utils.files import failed_write

# FloatingPointError: a loss that is NaN or infinite.
_MISTAKES = (ValueError, OSError, FloatingPointError)
# Last line of a traceback: "FileNotFoundError: ...", "PIL.UnidentifiedImageError: ...".
_RAISED = re.compile(r"^((?:\w+\.)*\w+(?:Error|Exception)): ", re.MULTILINE)
# A DataLoader worker and a spawned process hand on the text of their traceback.
_WORKER = "Original Traceback (most recent call last):"
# What the DataLoader says of a worker that is gone, and gloo and NCCL of another process.
_WORKER_ENDED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:exited unexpectedly|is killed by signal: "
    r"([\w ]+))"
)
_PEER_ENDED = re.compile(r"Connection (?:closed|reset) by peer|remote process has terminated")
# Of a line; what is longer (a value that a file holds) loses its middle.
_HEAD, _TAIL = 700, 250
_AGAIN = "run it again (a training: with --resume)"


def run_command(main: Callable[[], None]) -> None:
    """Runs a command; a mistake in its input ends it with one line on stderr and exit code 2.

    So do a loss that is not finite (FloatingPointError), a disk without space, and a process that
    helped and was ended from outside.

    MPN_TRACEBACK=1 shows the whole traceback instead.
    """
    try:
        with quiet_logging():
            main()
    except Exception as error:
        line = one_line(error)
        if line is None or _shows_tracebacks():
            raise
        if failed_write(error) is not None:
            _close_full_logs()
        print(f"error: {line} (MPN_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def one_line(error: BaseException) -> str | None:
    """What `run_command` says of an error, None where it is raised: an error of the program."""
    failed = failed_write(error)
    if failed is not None and (failed is error or not isinstance(error, _MISTAKES)):
        return f"{_flat(failed)}: free some space and {_AGAIN}"
    gone = _ended_process(error)
    if gone is not None:
        return f"{gone} was ended from outside, as when memory runs out: {_AGAIN}"
    if isinstance(error, (*_MISTAKES, ProcessRaisedException)):
        return _one_line(error)
    return None


def _shows_tracebacks() -> bool:
    return os.environ.get("MPN_TRACEBACK") == "1"


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Inside, a log file on a full disk prints no traceback for each message."""
    before, logging.raiseExceptions = logging.raiseExceptions, _shows_tracebacks()
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _close_full_logs() -> None:
    """Log files hold back what cannot be written, and would each say so when Python ends."""
    logging.raiseExceptions = False
    loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        stream = getattr(handler, "stream", None)
        try:
            if stream is not None:
                stream.flush()
        except ValueError:  # closed
            continue
        except OSError:
            with contextlib.suppress(OSError):
                stream.close()


def _ended_process(error: BaseException | None) -> str | None:
    """A process whose end stands behind an error, None where there is none."""
    while error is not None:
        message = str(error)
        # Perhaps of another process, which handed on the text alone.
        is_told = isinstance(error, RuntimeError | ProcessRaisedException)
        found = _WORKER_ENDED.search(message) if is_told else None
        if found:
            how = f", {found[2].strip()}" if found[2] else ""
            return f"a process that reads data (DATALOADER.NUM_WORKERS; {found[1]}{how})"
        if isinstance(error, ProcessExitedException):
            return f"process {error.error_index} ({error.signal_name or error.exit_code})"
        if isinstance(error, BrokenProcessPool):
            return "a process that works on a part"
        if isinstance(error, ProcessRaisedException) and _PEER_ENDED.search(message):
            return "another process of the command"
        error = error.__cause__ or error.__context__
    return None


def _one_line(error: BaseException) -> str | None:
    """The message on one line, of the first error where it passed through other processes.

    None for an error in another process that is no mistake in the input.
    """
    message = str(error)
    if isinstance(error, ProcessRaisedException) or _WORKER in message:
        raised = list(_RAISED.finditer(message))
        if not raised:
            return None
        if isinstance(error, ProcessRaisedException) and not _is_mistake(raised[-1][1]):
            return None
        message = message[raised[-1].end() :]
    return _flat(message) or type(error).__name__


def _flat(message: object) -> str:
    """One line that a terminal shows as it is: names and values come from files of others."""
    line = " ".join(str(message).split())
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
    return line if len(line) <= _HEAD + _TAIL else f"{line[:_HEAD]} ... {line[-_TAIL:]}"


def _is_mistake(name: str) -> bool:
    """Whether an error's name in a traceback is that of one of `_MISTAKES`."""
    module, _, name = name.rpartition(".")
    kind = getattr(sys.modules.get(module, builtins), name, None)
    return isinstance(kind, type) and issubclass(kind, _MISTAKES)
