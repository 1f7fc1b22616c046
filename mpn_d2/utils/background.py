"""Work beside the main thread: reading ahead, and finishing behind, both through bounded queues.

The main thread stays in charge: an error in a thread is raised there, and Ctrl-C, which reaches
it alone, ends the threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds after which a thread that waits on a queue looks whether it should end.
_LOOK = 0.05
_END = object()


class ReadAhead(Generic[T]):
    """Iterates over items that a thread takes from an iterable, a few ahead.

    Leaving the context ends the thread, once the iterable has handed out its next item.
    """

    def __init__(self, items: Iterable[T], size: int, newest_only: bool = False) -> None:
        """
        Args:
            items: used by the thread alone from now on.
            size: items read ahead, at least 1.
            newest_only: drop the oldest item where the reader is slower, as with a camera,
                instead of waiting.
        """
        self._items = items
        self._newest_only = newest_only
        self._queue: queue.Queue = queue.Queue(max(size, 1))
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ReadAhead[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> ReadAhead[T]:
        return self

    def __next__(self) -> T:
        item = self._queue.get()
        if item is not _END:
            return item
        self._queue.put(_END)  # for whoever asks again
        if self._error is not None:
            raise self._error
        raise StopIteration

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as error:
            self._error = error
        self._put(_END)

    def _put(self, item: object) -> bool:
        """False once nobody reads any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0 if self._newest_only else _LOOK)
                return True
            except queue.Full:
                if self._newest_only and item is not _END:
                    self._drop_oldest()
                elif self._newest_only:
                    self._stopped.wait(_LOOK)
        return False

    def _drop_oldest(self) -> None:
        try:
            self._queue.get_nowait()
        except queue.Empty:
            pass


class Finisher(Generic[T]):
    """Hands items to a function that a thread runs, one after another.

    Leaving the context waits until all are done; after an error, only for the one in work.
    """

    def __init__(self, function: Callable[[T], None], size: int) -> None:
        """
        Args:
            function: called in the thread, in the order of `put`.
            size: items that may wait, at least 1.
        """
        self._function = function
        self._queue: queue.Queue = queue.Queue(max(size, 1))
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def put(self, item: T) -> None:
        """Adds an item, waiting for room; raises what the function has raised, if anything."""
        self._add(item)
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Finisher[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._add(_END)
                while self._thread.is_alive():  # with a timeout Ctrl-C gets through everywhere
                    self._thread.join(_LOOK)
        finally:
            self._stopped.set()
            self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _add(self, item: object) -> None:
        while self._error is None:
            try:
                self._queue.put(item, timeout=_LOOK)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    item = self._queue.get(timeout=_LOOK)
                except queue.Empty:
                    continue
                if item is _END:
                    return
                self._function(item)
        except BaseException as error:
            self._error = error
