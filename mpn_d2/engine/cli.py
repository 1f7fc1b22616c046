"""What the command lines share: one clear line for a user's mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def run_command(main: Callable[[], None]) -> None:
    """Runs a command; a mistake in its input ends it with one line on stderr and exit code 2.

    MPN_TRACEBACK=1 shows the whole traceback instead.
    """
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("MPN_TRACEBACK") == "1":
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {line} (MPN_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
