"""Threads that work a little ahead of whoever takes what they make."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
AHEAD = 4  # items a thread, that wait or are made


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
