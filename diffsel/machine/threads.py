"""Threads that work a little ahead of whoever takes what they make, or a little behind whoever gives them work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

T = TypeVar("T")
U = TypeVar("U")
AHEAD = 4  # items a thread, that wait or are made


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threaded(items: Iterable[T], make: Callable[[T], U], workers: int) -> Iterator[U]:
    """What ``make`` gives of each item, in the order of the items, made by threads.

    However many items there are, few are held at a time.  The first error in that order is raised, and nothing more begun.
    """
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Behind:
    """A thread that does what it is given, in order, while its giver goes on; a few things wait at most (``with`` block).

    An error is raised to whoever gives the next thing, or at the end of the block.  What was given is done in any case.
    """

    def __init__(self) -> None:
        self._pool, self._waiting = ThreadPoolExecutor(1), deque[Future[Any]]()

    def __call__(self, make: Callable[..., U], *args: Any) -> Future[U]:
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= AHEAD):
            self._waiting.popleft().result()
        self._waiting.append(future := self._pool.submit(make, *args))
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown()
        while self._waiting and kind is None:
            self._waiting.popleft().result()
