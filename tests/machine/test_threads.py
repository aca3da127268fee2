"""Threads work ahead: in order, a little, and not after an error."""

from __future__ import annotations

import threading
import time

import pytest

from diffsel.machine.threads import AHEAD, threaded


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
