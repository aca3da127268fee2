"""Selection at ImageNet's size, from a synthetic store: how long, and how much memory.

    python scripts/bench_selection.py --out STORE              # 1,000 classes of 1,300 patches, 1,280 numbers each: 6.7 GB
    python scripts/bench_selection.py --out STORE --classes 50 # the first 50 of them

OUT holds a store as `diffsel embed` leaves it, of random vectors around a few centres; it is made where it is not there.
Timed is what `diffsel select` does until every patch is chosen: opening the run, reading its index and vectors class by
class, K-means, ranking.  Cutting the chosen patches out of their images is not, since there are none.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil

from diffsel.data.classes import ClassInfo, imagenet_wnids
from diffsel.data.images import ImageData
from diffsel.data.rows import Row, Rows
from diffsel.machine.progress import progress
from diffsel.machine.tensors import write_unit
from diffsel.report.text import table
from diffsel.runs import run as store
from diffsel.runs.run import Run, image_identity, open_run, pass_identity
from diffsel.runs.session import create_run, open_features
from diffsel.sets import selection
from diffsel.sets.candidates import candidates
from diffsel.settings.settings import resolve

CHANNELS, CENTRES = 1280, 60  # of Stable Diffusion v1.5's second up block


def make_store(out: Path, classes: int, images: int) -> None:
    """Index and features of a run that was scored and embedded; units that are there stay."""
    settings = resolve({"model": {"model": "demo"}})
    infos = tuple(ClassInfo(folder, folder) for folder in imagenet_wnids()[:classes])
    rows = []
    for info in infos:
        for i in range(images):
            path = f"{info.folder}/{i:04}.jpg"
            digest = hashlib.blake2b(path.encode(), digest_size=16).hexdigest()
            rows.append(Row(len(rows), path, info.folder, 500, 375, digest))
    (out / "train").mkdir(parents=True, exist_ok=True)
    data = ImageData(str(out / "train"), infos, Rows.of([rows]), (), settings.data, lambda name: b"")
    described = {**pass_identity(settings), "precision": "fp32", "model": "none", "images": image_identity(data)}
    described["classes"] = [asdict(info) for info in infos]
    run = Run(out / "run", create_run(out / "run", described, settings, data), settings, infos, data)
    open_features(run)
    with progress(False)(total=len(rows), desc="making the store", unit="patch") as bar:
        for unit in run.units:
            if not run.feature_file(unit).exists():
                write_unit(run.feature_file(unit), run.feature_mark, columns(unit), {"label": unit.label})
            bar.update(len(unit.rows))


def columns(unit: store.Unit) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(unit.rows[0].row)
    n = len(unit.rows)
    own = np.random.default_rng(int(hashlib.sha256(unit.label.encode()).hexdigest()[:8], 16))
    centres = own.standard_normal((CENTRES, CHANNELS), np.float32)
    vectors = centres[rng.integers(0, CENTRES, n)] + 0.7 * rng.standard_normal((n, CHANNELS), np.float32)
    return {
        "row": np.array([row.row for row in unit.rows], np.int64),
        "box": np.tile(np.array([16, 16, 224, 224]), (n, 1)),
        "score": rng.standard_normal(n),
        "differential": rng.normal(-1e-4, 1e-4, len(unit.rows)),
        "gap": rng.uniform(1e-4, 4e-4, len(unit.rows)),
        "vector": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
    }


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Seconds of the block, and the most memory that this process and its children had together, bytes."""
    found, stop, whole = {"bytes": 0.0}, threading.Event(), psutil.Process()

    def watch() -> None:
        while not stop.wait(0.2):
            tree = [whole, *whole.children(recursive=True)]
            sizes = []
            for each in tree:
                try:
                    sizes.append(each.memory_full_info().uss)
                except psutil.Error:
                    continue
            found["bytes"] = max(found["bytes"], sum(sizes))

    thread = threading.Thread(target=watch)
    thread.start()
    begin = time.perf_counter()
    try:
        yield found
    finally:
        found["seconds"] = time.perf_counter() - begin
        stop.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1300, help="per class")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--jobs", type=int, nargs="+", default=[-1], help="classes at a time; -1: as many as there are cores")
    args = parser.parse_args()
    if not (args.out / "run" / "run.yaml").exists():
        make_store(args.out, args.classes, args.images)
    rows = []
    for jobs in args.jobs:
        with watched() as found:
            run = open_run(args.out / "run", resolve({"model": {"model": "demo"}}))
            names = [info.folder for info in run.data.classes][: args.classes]
            opened = time.perf_counter()
            pool = (candidates(run, name) for name in progress(False)(names, desc="selecting", unit="class"))
            picks = selection.select_all(pool, args.ipc, 2, run.settings.selection, 0, jobs)
            chosen = time.perf_counter() - opened
        assert all(len(found) == args.ipc * 4 for found in picks.values())
        rows.append([jobs, len(picks), f"{found['seconds'] - chosen:.1f}", f"{chosen:.1f}", f"{found['bytes'] / 2**30:.2f}"])
    print(table(rows, ["classes at a time", "classes", "opening, s", "selecting, s", "peak memory, GiB"]))


if __name__ == "__main__":
    main()
