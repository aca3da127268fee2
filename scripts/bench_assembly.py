"""How long a set's pictures take, and what of it can be done beside one another: IPC 100 of ImageNet's 1,000 classes.

    python scripts/bench_assembly.py --pictures 200

Makes pictures of 224 pixels from drawn photographs (500 x 375, JPEG), as `diffsel select` does after the choice.  Threads work
beside one another in the calls that give Python's lock away (decoding, resizing, packing, hashing); the rest is counted as if
it could be done by one at a time.  ``before`` is one thread that flushes each file; the seconds at ImageNet's size follow from
the pieces: the larger of all work shared by the cores, and what one at a time can do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFile

from diffsel.data import images
from diffsel.data.images import open_data
from diffsel.machine.files import write_atomically
from diffsel.report.text import table
from diffsel.sets import assembly
from diffsel.sets.selection import Pick
from diffsel.settings.sections import AssemblySettings, DataSettings

WANTED = 100_000  # pictures: IPC 100 of 1,000 classes


def photograph(number: int) -> Image.Image:
    """Soft colours and some grain: as many bytes in a JPEG as photographs have."""
    rng = np.random.default_rng(number)
    soft = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(soft) + rng.normal(0, 6, (375, 500, 3)), 0, 255).astype(np.uint8))


def cpu(work: Callable[[int], object], count: int) -> float:
    """Processor seconds of this thread for each of ``count`` pictures."""
    begin = time.thread_time()
    for number in range(count):
        work(number)
    return (time.thread_time() - begin) / count


def beside(work: Callable[[int], object], count: int) -> float:
    """Processor seconds of a work, for each picture, in calls that give the lock away: decoding, resizing, packing, hashing."""
    spent, inside = [0.0], [False]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            if inside[0]:
                return call(*args, **more)
            inside[0], begin = True, time.thread_time()
            try:
                return call(*args, **more)
            finally:
                inside[0] = False
                spent[0] += time.thread_time() - begin

        return wrapped

    with ExitStack() as stack:
        for owner, name in ((ImageFile.ImageFile, "load"), (Image.Image, "resize"), (Image.Image, "save"), (images, "digest")):
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        cpu(work, count)
    return spent[0] / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--cores", type=int, nargs="+", default=[8, 16, 32])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for number in range(12):
            file = out / "train" / "cat" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photograph(number).save(file, quality=92)
        data, settings = open_data(str(out / "train"), DataSettings(), 0), AssemblySettings(factor=1)

        def render(number: int) -> bytes:
            pick = Pick("cat", 0, number % 12, (16, 16, 224, 224), 0.0, None, None, None, "score")
            return assembly._render([pick], data, settings, 1)

        content = render(0)
        made = cpu(render, args.pictures)
        shared = beside(render, args.pictures)
        flushed, plain = (
            cpu(lambda i, flush=flush: write_atomically(out / "set" / f"{i}.png", content, flush), args.pictures)
            for flush in (True, False)
        )
        begin = time.perf_counter()
        for number in range(args.pictures):
            write_atomically(out / "set" / f"{number}.png", content)
        wait = (time.perf_counter() - begin) / args.pictures
    rows = [["before: one thread, each file flushed", f"{WANTED * (made + max(flushed, wait)):.0f}"]]
    serial = made - shared + plain
    for cores in args.cores:
        rows.append([f"threads, {cores} cores", f"{WANTED * max((made + plain) / cores, serial):.0f}"])
    print(f"a picture: {1e3 * made:.1f} ms, {1e3 * shared:.1f} beside one another; written in {1e3 * plain:.2f} ms, ", end="")
    print(f"flushed in {1e3 * flushed:.2f} ms and {1e3 * wait:.1f} ms of waiting")
    print(table(rows, [f"{WANTED:,} pictures", "seconds"]))


if __name__ == "__main__":
    main()
