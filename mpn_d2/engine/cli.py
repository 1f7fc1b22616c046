"""What the command lines share: one clear line for a user's mistake."""

from __future__ import annotations

import builtins
import os
import re
import sys
from collections.abc import Callable

from torch.multiprocessing import ProcessRaisedException

# FloatingPointError: a loss that is NaN or infinite.
_MISTAKES = (ValueError, OSError, FloatingPointError)
# Last line of a traceback: "FileNotFoundError: ...", "PIL.UnidentifiedImageError: ...".
_RAISED = re.compile(r"^((?:\w+\.)*\w+(?:Error|Exception)): ", re.MULTILINE)
# A DataLoader worker and a spawned process hand on the text of their traceback.
_WORKER = "Original Traceback (most recent call last):"


def run_command(main: Callable[[], None]) -> None:
    """Runs a command; a mistake in its input ends it with one line on stderr and exit code 2.

    So does a loss that is not finite (FloatingPointError).

    MPN_TRACEBACK=1 shows the whole traceback instead.
    """
    try:
        main()
    except (*_MISTAKES, ProcessRaisedException) as error:
        line = _one_line(error)
        if line is None or os.environ.get("MPN_TRACEBACK") == "1":
            raise
        print(f"error: {line} (MPN_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _one_line(error: Exception) -> str | None:
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
    return " ".join(message.split()) or type(error).__name__


def _is_mistake(name: str) -> bool:
    """Whether an error's name in a traceback is that of one of `_MISTAKES`."""
    module, _, name = name.rpartition(".")
    kind = getattr(sys.modules.get(module, builtins), name, None)
    return isinstance(kind, type) and issubclass(kind, _MISTAKES)
