"""Images decoded and resized a second, by threads and by processes.

    python scripts/bench_decoding.py photos/train --workers 1 2

`diffsel score` decodes in threads (compute.workers).  Processes are the alternative that loaders of training data take; their
pixels come back through a pipe.  Turns alternate; the median round is printed: images a second, images per second of processor
time (which other programs on the machine disturb less), and the seconds that a pool needs until its first images.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from statistics import median

import psutil

from diffsel.data.images import ImageData, open_data
from diffsel.data.pixels import Pixels
from diffsel.data.rows import Row
from diffsel.report.text import table
from diffsel.settings.sections import DataSettings

_data: ImageData


def _open(path: str, size: int) -> None:
    """Each worker process opens the data set once."""
    global _data
    _data = open_data(path, DataSettings(image_size=size), 0, 1)


def _pixels(row: Row) -> Pixels:
    return _data.pixels(row)


def busy() -> float:
    """Processor seconds of this process and its children so far."""
    whole = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (whole, *whole.children(recursive=True)))


def rate(pool: Executor, rows: list[Row], one: Callable[[Row], Pixels]) -> tuple[float, float, float]:
    """(images a second, images a processor second, seconds to the first images)."""
    begin = time.perf_counter()
    list(pool.map(one, rows[:8]))
    started, used = time.perf_counter(), busy()
    list(pool.map(one, rows))
    return len(rows) / (time.perf_counter() - started), len(rows) / (busy() - used), started - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="folder of class folders")
    parser.add_argument("--size", type=int, default=256, help="shortest side after resizing, pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    _open(args.images, args.size)
    rows, found = list(_data.rows), {}
    context = multiprocessing.get_context("spawn")  # as a program must that already has threads, and a GPU
    for _ in range(args.rounds):
        for number in args.workers:
            with ThreadPoolExecutor(number) as pool:
                found.setdefault(("threads", number), []).append(rate(pool, rows, _data.pixels))
            make = partial(ProcessPoolExecutor, mp_context=context, initializer=_open, initargs=(args.images, args.size))
            with make(number) as processes:
                found.setdefault(("processes", number), []).append(rate(processes, rows, _pixels))
    lines = [[*way, *map(median, zip(*each, strict=True))] for way, each in found.items()]
    print(f"{len(rows)} images, shortest side {args.size}")
    print(table(lines, ["by", "workers", "images/s", "per CPU s", "to the first, s"]))


if __name__ == "__main__":
    main()
