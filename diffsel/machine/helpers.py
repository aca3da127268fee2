"""Processes that help this one on a CPU: copies of it, each with one thread.

A second thread adds less to the training of a small network than a second network trained beside it.
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
from multiprocessing.context import ForkProcess

import torch

GRACE = 10.0  # seconds that a helper has to end in


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
    processes: list[ForkProcess] = []
    try:
        with contextlib.suppress(OSError):  # no memory for another process: fewer helpers
            for _ in range(helpers):
                process = context.Process(target=_help, args=(job,), daemon=True)
                process.start()
                processes.append(process)
        yield
    except BaseException:
        _end(processes)
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
    try:
        job()
    except Exception as error:  # this process's parent takes over, and meets the error itself if it is more than bad luck
        print(f"note: a helping process failed and is missed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _end(processes: list[ForkProcess]) -> None:
    """At once, and giving claims back if they can."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(GRACE)
        process.kill()
