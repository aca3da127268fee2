"""Threads work ahead: in order, a little, and not after an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from diffsel.machine.threads import AHEAD, Behind, threaded


def test_results_come_in_order_and_few_items_are_held() -> None:
    taken, done = [], []

    def items():
        for i in range(200):
            taken.append(i)
            yield i

    def make(i: int) -> int:
        time.sleep(0.001 * (i % 3))
        return i * i

    for value in threaded(items(), make, 3):
        done.append(value)
        assert len(taken) - len(done) < 3 * AHEAD
    assert done == [i * i for i in range(200)]


def test_several_threads_work_at_once() -> None:
    barrier = threading.Barrier(4, timeout=10)  # passes only if four wait together
    assert len(list(threaded(range(4), lambda i: barrier.wait(), 4))) == 4


def test_the_first_error_ends_it() -> None:
    begun = []

    def make(i: int) -> int:
        begun.append(i)
        return 1 // (5 - i)

    with pytest.raises(ZeroDivisionError):
        list(threaded(range(1000), make, 1))
    assert len(begun) < 5 + 2 * AHEAD


def test_work_is_done_behind_in_order_and_little_of_it_waits() -> None:
    gate, done = threading.Event(), list[int]()
    with Behind() as later:
        first = later(gate.wait, 10)
        for i in range(AHEAD - 1):
            later(done.append, i)
        assert not done  # whoever gives it goes on
        threading.Timer(0.05, gate.set).start()
        later(done.append, AHEAD - 1)  # one too many: waits for the first
        assert first.done()
    assert done == list(range(AHEAD))


def test_an_error_behind_is_told_at_the_next_thing_or_the_end() -> None:
    def broken() -> None:
        raise OSError("disk full")

    def give(*calls: Callable[[], object]) -> None:
        with Behind() as later:
            for call in calls:
                later(call)
                time.sleep(0.01)

    done: list[int] = []
    with pytest.raises(OSError, match="disk full"):
        give(broken)
    with pytest.raises(OSError, match="disk full"):
        give(broken, *[lambda: done.append(0)] * 100)
    assert len(done) < 100  # at the next thing given, not at the end
