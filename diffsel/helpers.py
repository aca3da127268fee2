"""Processes that help this one on a CPU: copies of it, each with one thread.

A training step of a small network gains little from a second thread; two students at a time use two cores better.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait

import torch


@contextlib.contextmanager
def helped(job: Callable[[], object], helpers: int) -> Iterator[None]:
    """Several processes at the same ``job`` on a CPU: ``helpers`` copies of this process run it during a ``with`` block.

    The job takes its items by claims, so that what a helper leaves undone, for whatever reason, is left to this process,
    which will meet the reason itself.  With helpers every process has one thread: OpenMP's do not survive a fork, and for
    small networks one thread a process is the faster way to use the cores.  They end with the block, or with this process.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_help, args=(job,), daemon=True) for _ in range(helpers)]
    try:
        for process in processes:
            process.start()
        yield
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()
        torch.set_num_threads(threads)


def can_fork(device: str) -> bool:
    """Whether copies of this process can train networks: not with a GPU's driver in it, and not where forks are unsafe."""
    safe = sys.platform == "linux" and not multiprocessing.current_process().daemon
    return safe and device == "cpu" and not torch.cuda.is_available()


def _help(job: Callable[[], object]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends its helpers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that claims are given back
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    with contextlib.suppress(Exception):
        job()
