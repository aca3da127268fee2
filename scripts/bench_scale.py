"""A run of millions of images without one pixel: what opening, sharing, selecting and reporting cost at that size.

    python scripts/bench_scale.py                    # 20,000 images of 100 classes: seconds
    python scripts/bench_scale.py --scale imagenet   # 1,281,167 images of 1,000 classes
    python scripts/bench_scale.py --scale imagenet-21k   # 14,197,122 images of 21,841 classes: minutes, 3 GB of small files

Names, sizes and digests of the images are made up, and nothing is read, decoded, scored or embedded: what is left is the
main process's own work, which grows with the number of images, classes and units.  Each stage is a process of its own:

    first     `diffsel score` on new images: list, index, write RUN       (without reading and hashing files)
    again     the same command on the RUN that is there
    second    the same as process 1 of a launch
    open      what every later command does first
    claim     claiming every unit, one after the other; a file of no bytes is the work
    late      a process that comes when all is done
    shards    1,000 shards (`--shard I/1000`), one after the other: what each does beside its own units
    crowd     1,000 workers that share all units by claims, in turn, by a clock of their own (20 s a unit)
    select    a set of one image a class: candidates, ranking and picks of small vectors in one cluster; no picture is cut
    report    opening RUN and SET; then seconds of one class, of three

``seconds`` are of the processor, of helping processes too (other programs may use it as well), ``memory`` is the most that
the process held; ``listed`` counts folder entries that it listed below OUT, ``asked`` files there whose state it asked for.
--json FILE appends the rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from joblib.externals.loky import get_reusable_executor
from PIL import Image

from diffsel import method
from diffsel.data import images
from diffsel.data.classes import Listing
from diffsel.data.images import ImageData
from diffsel.data.rows import Row
from diffsel.machine import claims
from diffsel.machine.claims import Shared
from diffsel.machine.files import existing
from diffsel.machine.processes import Workers
from diffsel.report import classes as report_classes
from diffsel.report.opening import open_target
from diffsel.report.text import table
from diffsel.runs import run as runs
from diffsel.runs.run import UNIT_ROWS, Run, open_run
from diffsel.runs.session import Session, open_features, resume, start
from diffsel.sets import assembly
from diffsel.sets import candidates as choosing
from diffsel.sets.figures import Hand
from diffsel.settings.settings import Settings, resolve

SCALES = {"small": (20_000, 100), "imagenet": (1_281_167, 1_000), "imagenet-21k": (14_197_122, 21_841)}  # images, classes
WORKERS = 1000
CELLS, BINS, CHANNELS = 32, 3, 8


def settings() -> Settings:
    return resolve(
        {"model": {"model": "demo"}, "selection": {"clusters": 1, "restarts": 1}, "assembly": {"format": "jpeg", "size": 64}}
    )


# ---- what is not there ------------------------------------------------------------------------------------------------


def listing(count: int, classes: int) -> Listing:
    """As many names as ImageNet's files have, in classes of nearly equal sizes."""
    names = [f"n{number:08d}" for number in range(classes)]
    ends = np.linspace(0, count, classes + 1).astype(int).tolist()
    found = {name: [f"{name}/{name}_{i}.JPEG" for i in range(ends[k], ends[k + 1])] for k, name in enumerate(names)}
    return Listing(found, lambda name: b"")


def look(label: str, name: str, *_: object) -> Row:
    return Row(-1, name, label, 500, 375, hashlib.blake2b(name.encode(), digest_size=16).hexdigest())


def tensors_of(run: Run) -> Callable[..., tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """``read_unit`` for units that have no bytes: maps and patches in one."""
    units = {unit.name: unit for unit in run.units}

    def read(file: Path, *_: object) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        unit = units[file.stem]
        rows = list(range(unit.rows.start, unit.rows.stop))  # type: ignore[attr-defined]
        rng = np.random.default_rng(rows[0])
        gap = rng.uniform(1e-4, 5e-4, (1, BINS, CELLS, CELLS)).astype(np.float16)
        null = np.zeros((BINS, CELLS, CELLS), np.float32)
        maps = {
            f"{row}.{name}": value for row in rows for name, value in (("gap", gap), ("differential", -gap), ("null", null))
        }
        found: dict[str, np.ndarray] = {
            "row": np.array(rows),
            "box": np.tile(np.array([16, 16, 224, 224]), (len(rows), 1)),
            "score": rng.standard_normal(len(rows)),
            "differential": rng.normal(-1e-4, 1e-4, len(rows)),
            "gap": rng.uniform(1e-4, 4e-4, len(rows)),
            "vector": rng.standard_normal((len(rows), CHANNELS)).astype(np.float32),
        }
        return {**maps, **found}, {"label": unit.label, "rows": rows, "draws": [6] * len(rows), "skipped": []}

    return read


def no_pixels(scale: tuple[int, int]) -> None:
    """Put the above in the place of everything that reads image files, and of the rendering of pictures."""
    grey = Image.new("RGB", (500, 375), "grey")
    images._list = lambda *_: listing(*scale)
    images._look = look
    ImageData.image = lambda self, row, least=None: grey  # type: ignore[method-assign]
    assembly._render = lambda *_: b"no picture"


# ---- stages -----------------------------------------------------------------------------------------------------------


def opened(out: Path) -> Session:
    (out / "train").mkdir(parents=True, exist_ok=True)
    return start(str(out / "train"), out / "run", settings())


def second(out: Path) -> None:
    os.environ.update(RANK="1", WORLD_SIZE="2")
    opened(out)


def claim(out: Path) -> None:
    session = resume(out / "run", settings())
    open_features(session.run)
    with session.left(session.run.feature_file, "claiming") as (units, _):
        for unit in units:
            session.run.feature_file(unit).touch()


def late(out: Path) -> None:
    session = resume(out / "run", settings())
    with session.left(session.run.feature_file, "claiming") as (units, _):
        assert not list(units)


def unit_names(scale: tuple[int, int]) -> list[str]:
    """Of all units, as a run of that size has them."""
    ends = np.linspace(0, scale[0], scale[1] + 1).astype(int)
    return [f"n{k:08d}-{part:03d}" for k, n in enumerate(np.diff(ends)) for part in range(-(-n // UNIT_ROWS))]


def shards(out: Path, scale: tuple[int, int]) -> None:
    """All of them leave every unit's file, once."""
    (out / "shards").mkdir(parents=True)
    files, workers = [out / "shards" / name for name in unit_names(scale)], Workers()
    for shard in range(WORKERS):
        workers.shard = shard, WORKERS
        mine = workers.own(files)
        assert not existing(mine)
        for file in mine:
            file.touch(exist_ok=False)
    assert len(os.listdir(out / "shards")) == len(files)


def crowd(out: Path, scale: tuple[int, int]) -> None:
    """No file is made twice.  Threads, and waiting for others at the end, are left out."""
    units, made = [out / "crowd" / name for name in unit_names(scale)], list[Path]()
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    with mock.patch.object(claims, "time", clock):
        _crowd(units, made, clock)
    assert sorted(made) == sorted(units)
    print(f"          {len(units):,} units, {clock.now / 60:.0f} minutes by their clock")


def _crowd(units: list[Path], made: list[Path], clock: SimpleNamespace) -> None:
    workers = [Shared(units, lambda file: file, first=len(units) * i // WORKERS) for i in range(WORKERS)]
    begun, running = dict[int, Path](), {i: iter(worker) for i, worker in enumerate(workers)}
    for worker in workers:
        worker.give_up()  # ends where nothing is left to take
    while running:
        for i, each in list(running.items()):
            if i in begun:
                begun[i].touch(exist_ok=False)
                made.append(begun.pop(i))
            if (unit := next(each, None)) is None:
                del running[i]
            else:
                begun[i] = unit
            clock.now += 20 / WORKERS


def select(out: Path) -> None:
    session = resume(out / "run", settings())
    runs.read_unit = tensors_of(session.run)
    choosing.read_column = lambda file, name: runs.read_unit(file)[0][name]
    choosing.read_extra = lambda file: runs.read_unit(file)[1]
    choosing.has_column = lambda *_: False  # no look of an image is stored
    choosing.check_set(session.run, 1, out / "run" / "ipc1")
    method.select(session, 1, out / "run" / "ipc1")


def report(out: Path) -> None:
    begin = time.process_time()
    found = open_target(out / "run")
    print(f"          opening the report: {time.process_time() - begin:.1f} s")
    assert found.run
    runs.read_unit, choosing.has_column = tensors_of(found.run), lambda *_: False
    Run.map_file = Run.feature_file  # type: ignore[method-assign]  # there is one file a unit
    for number in range(min(3, len(found.classes))):
        begin = time.process_time()
        report_classes.class_part(found.run, found.sets, number, found.classes[number], Hand(), brief=len(found.classes) > 100)
        print(f"          one class: {time.process_time() - begin:.2f} s", flush=True)


STAGES: dict[str, Callable[..., object]] = {
    "first": opened,
    "again": opened,
    "second": second,
    "open": lambda out: open_run(out / "run", settings()),
    "claim": claim,
    "late": late,
    "shards": shards,
    "crowd": crowd,
    "select": select,
    "report": report,
}


# ---- measured ---------------------------------------------------------------------------------------------------------


def counted(out: Path) -> dict[str, int]:
    """Entries below ``out`` that this process lists, and files there that it asks for, from now on."""
    counts = {"listed": 0, "asked": 0}
    listdir, scandir, stat = os.listdir, os.scandir, os.stat

    def ours(args: tuple[Any, ...]) -> bool:
        return bool(args) and str(args[0]).startswith(str(out))

    def listing_(*args: Any) -> list:
        found = listdir(*args)
        counts["listed"] += len(found) * ours(args)
        return found

    def scanning(*args: Any) -> Any:
        counts["listed"] += len(listdir(*args)) if ours(args) else 0
        return scandir(*args)

    def asking(*args: Any, **more: Any) -> os.stat_result:
        counts["asked"] += ours(args)
        return stat(*args, **more)

    os.listdir, os.scandir, os.stat = listing_, scanning, asking  # type: ignore[assignment]
    return counts


def run_stage(name: str, out: Path, scale: tuple[int, int], pipe: Any) -> None:
    no_pixels(scale)
    counts = counted(out)
    begin = time.process_time()
    STAGES[name](*((out, scale) if name in ("shards", "crowd") else (out,)))
    get_reusable_executor().shutdown()  # else this process waits at its end for workers that wait for work
    seconds = time.process_time() - begin + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    pipe.send({"stage": name, "seconds": round(seconds, 1), "memory, GB": round(peak * 2**20 / 1e9, 2), **counts})


def measure(scale: tuple[int, int], out: Path, stages: list[str]) -> list[dict[str, Any]]:
    context, rows = multiprocessing.get_context("spawn"), []
    for name in stages:
        mine, theirs = context.Pipe()
        process = context.Process(target=run_stage, args=(name, out, scale, theirs))
        process.start()
        theirs.close()
        try:
            rows.append(mine.recv())
        except EOFError:
            sys.exit(f"stage {name} failed")
        finally:
            process.join()
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="each needs those before it, once")
    parser.add_argument("--out", type=Path, help="folder to work in, which stays; a temporary one by default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="diffsel-scale-"))
    try:
        rows = measure(SCALES[args.scale], out, args.stages)
    finally:
        if not args.out:
            shutil.rmtree(out)
    count, classes = SCALES[args.scale]
    print(f"\n{count:,} images of {classes:,} classes")
    print(table([list(row.values()) for row in rows], list(rows[0])))
    if args.json:
        with args.json.open("a") as stream:
            for row in rows:
                print(json.dumps({"benchmark": "scale", "images": count, "classes": classes, **row}), file=stream)


if __name__ == "__main__":
    main()
