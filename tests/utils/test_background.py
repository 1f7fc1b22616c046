"""Threads beside the main one: order, bounds, errors, and their end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from mpn_d2.utils.background import Finisher, ReadAhead

WAIT = 10  # seconds after which a test gives up


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before


def until(condition) -> bool:
    end = time.monotonic() + WAIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def counted(taken: list[int]) -> Iterator[int]:
    for i in itertools.count():
        taken.append(i)
        yield i


def test_reads_all_in_order_in_another_thread():
    seen = []

    def items() -> Iterator[int]:
        for i in range(50):
            seen.append(threading.current_thread())
            yield i

    with ReadAhead(items(), 3) as ahead:
        assert list(ahead) == list(range(50))
        assert list(ahead) == []
    assert threading.main_thread() not in seen


def test_reads_no_more_than_its_size_ahead():
    taken: list[int] = []
    with ReadAhead(counted(taken), 4) as ahead:
        assert until(lambda: len(taken) == 5)  # four wait, one is in the hand
        time.sleep(0.1)
        assert len(taken) == 5
        assert next(ahead) == 0
        assert until(lambda: len(taken) == 6)


def test_newest_only():
    taken: list[int] = []
    with ReadAhead(counted(taken), 1, newest_only=True) as ahead:
        assert until(lambda: len(taken) > 50)
        first = next(ahead)
        assert first >= 49
        assert next(ahead) > first
    with ReadAhead(iter("ab"), 1, newest_only=True) as ahead:
        assert list(ahead)[-1:] == ["b"]


@pytest.mark.parametrize("newest_only", [False, True])
def test_errors_of_the_reader_come_after_what_it_read(newest_only: bool):
    def items() -> Iterator[int]:
        yield 1
        assert until(lambda: taken == [1])
        raise ValueError("damaged")

    taken = []
    with ReadAhead(items(), 3, newest_only) as ahead:
        with pytest.raises(ValueError, match="damaged"):
            for item in ahead:
                taken.append(item)
        with pytest.raises(ValueError, match="damaged"):
            next(ahead)
    assert taken == [1]


def test_reader_ends_with_an_error_outside():
    with pytest.raises(KeyboardInterrupt), ReadAhead(counted([]), 2) as ahead:
        next(ahead)
        raise KeyboardInterrupt


def test_finishes_all_in_order_in_another_thread():
    done, threads = [], set()

    def finish(item: int) -> None:
        time.sleep(0.001)
        threads.add(threading.current_thread())
        done.append(item)

    with Finisher(finish, 2) as finisher:
        for i in range(30):
            finisher.put(i)
    assert done == list(range(30))
    assert len(threads) == 1 and threading.main_thread() not in threads


def test_no_more_than_its_size_waits():
    go = threading.Event()
    count = 0
    with Finisher(lambda _: go.wait(WAIT), 3) as finisher:

        def put_all() -> None:
            nonlocal count
            for i in range(6):
                finisher.put(i)
                count += 1

        putting = threading.Thread(target=put_all)
        putting.start()
        assert until(lambda: count == 4)  # three wait, one is in work
        time.sleep(0.1)
        assert count == 4
        go.set()
        putting.join()
    assert count == 6


def test_errors_of_the_function_are_raised_by_put():
    done = []

    def finish(item: int) -> None:
        if item == 2:
            raise OSError("disk full")
        done.append(item)

    with pytest.raises(OSError, match="disk full"), Finisher(finish, 1) as finisher:
        for i in range(1000):
            finisher.put(i)
    assert done == [0, 1]


def test_errors_of_the_last_items_are_raised_at_the_end():
    def finish(item: int) -> None:
        time.sleep(0.02)
        if item == 3:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Finisher(finish, 9) as finisher:
        for i in range(4):
            finisher.put(i)


def test_after_an_error_outside_what_waits_is_dropped():
    done = []
    go = threading.Event()

    def finish(item: int) -> None:
        go.wait(WAIT)
        done.append(item)

    def let_go() -> None:
        time.sleep(0.05)
        go.set()

    with pytest.raises(KeyboardInterrupt), Finisher(finish, 9) as finisher:
        for i in range(5):
            finisher.put(i)
        letting = threading.Thread(target=let_go)
        letting.start()
        raise KeyboardInterrupt
    letting.join()
    assert done in ([], [0])
