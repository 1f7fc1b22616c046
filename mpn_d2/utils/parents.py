"""Processes that end when the one that started them is gone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

# Seconds between two looks at the parent.
_LOOK = 1.0


def is_orphan() -> bool:
    """Whether this process was started by multiprocessing, by a process that has ended since."""
    parent = multiprocessing.parent_process()
    return parent is not None and os.getppid() != parent.pid


def end_with_parent() -> None:
    """From now on this process ends soon after the one that started it, however that ends.

    PyTorch's own watch over its workers begins when they have imported everything, and takes
    whoever has adopted them by then for their parent.
    """
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while not is_orphan():
        time.sleep(_LOOK)
    os._exit(1)  # the main thread may wait for its parent, and so would its end
