"""A study's jobs made real: data, teachers, sets and students, each once, and what is measured of them.

    OUT/  data/                 scenes, where the scale asks for them      teachers/   trained where they are missing
          runs/DATA-PX-KEY/     one scoring pass for all jobs it serves     sets/       distilled sets
          results/              one JSON a student                          timing/     sets made anew, to be timed

Every pipeline that is given the same OUT shares all of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import method
from ..data.albums import validation_pictures
from ..data.pool import known_classes
from ..evaluation.bench import Bench
from ..evaluation.cells import Cell, gather, make_cell, run_cells
from ..evaluation.judging import advice
from ..evaluation.protocols import validation_resize
from ..evaluation.results import Spread
from ..evaluation.teaching import is_trained, train
from ..machine.files import write_atomically
from ..machine.formats import read_yaml
from ..runs.run import open_run
from ..runs.session import start
from ..scoring.features import random_clip
from ..sets.baselines import select_baseline
from ..sets.candidates import check_set
from ..sets.opening import open_set
from ..settings.errors import StoreError
from ..settings.sections import BASELINES
from ..settings.settings import Settings, fingerprint
from .cases import Job, Scale, place
from .demo import compose_data
from .tables import Place, Value


def make_set(
    source: str,
    classes: Sequence[str] | None,
    ipc: int,
    teacher: str,
    folder: Path,
    run: Path,
    s: Settings,
    bench: Bench,
    draw: int = 0,
) -> None:
    """The distilled set of ``s.selection.method``, where it is missing; ``run`` holds the scoring pass where one is needed.

    ``draw``: which of several sets that chance alone makes different.

    Raises StoreError where the set or the run that is there was made of other images, by another model or teacher.
    """
    if s.selection.method in BASELINES:
        if bench.workers.is_main:
            data = bench.images.training(source, s)
            names = known_classes(data, classes)
            known, seeded = advice(bench, teacher, data, names, s), s.model_copy(update={"seed": s.seed + draw})
            select_baseline(data, ipc, folder, seeded, names, progress=bench.progress, seen=bench.seen, **known)
    else:
        session = start(source, run, s, bench.progress)
        drawn = session.seen(session.run.reseeded(draw))
        check_set(drawn.run, ipc, folder, classes)
        if not (folder / "set.yaml").exists():  # else it is this very set
            method.score(session)
            method.embed(session)
            method.select(drawn, ipc, folder, classes)
    bench.workers.wait_for([folder / "set.yaml"])


# ---- jobs ------------------------------------------------------------------------------------------------------------


def prepare(jobs: Sequence[Job], scale: Scale, out: Path, bench: Bench) -> list[Job]:
    """The jobs with real paths; scenes composed, CLIP's stand-in written and teachers trained where they are missing.

    Raises ConfigError for a path that names a variable which the environment lacks.
    """
    ready, workers = [_placed(job, scale, out) for job in jobs], bench.workers
    if scale.scenes and workers.is_main:
        compose_data(out / "data", 0, scale.scenes, bench.progress)
    if scale.scenes:
        workers.wait_for([out / "data" / "truth.csv"])
    if scale.random_clip and any(job.settings.features.kind == "clip" for job in ready):
        if workers.is_main:
            random_clip(out / "clip-random-weights")
        workers.wait_for([out / "clip-random-weights" / "model.safetensors"])
    for teacher, job in {job.teacher: job for job in ready if job.trains and job.needs_teacher}.items():
        _train(Path(teacher), job, bench)
    return ready


def _placed(job: Job, scale: Scale, out: Path) -> Job:
    source = replace(job.source, train=place(job.source.train, out), val=place(job.source.val, out))
    settings = job.settings
    if scale.random_clip:
        clip = settings.features.model_copy(update={"clip_model": str(out / "clip-random-weights")})
        settings = settings.model_copy(update={"features": clip})
    teacher = place(job.teacher, out) if job.needs_teacher else job.teacher
    return replace(job, source=source, teacher=teacher, settings=settings)


def _train(folder: Path, job: Job, bench: Bench) -> None:
    """The teacher of a job; of one that is there, only the images and settings are compared."""
    s, images = job.taught or job.settings, bench.images
    t, data = s.training, images.training(job.source.train, s)
    resize = t.size if t.crop != "resized" else validation_resize(t.size)
    album = validation_pictures(images.validation(job.source.val, s), data.classes, t.size, resize)
    with _advised(folder):
        if not is_trained(folder, data, album, t, s.seed, bench.machine):
            train(data, album.load(bench.progress, bench.threads), folder, t, s.seed, bench)


@contextmanager
def _advised(*folders: Path) -> Iterator[None]:
    """Says what to do where one of these was made of other images, by another model or teacher, or with other settings."""
    try:
        yield
    except StoreError as error:
        there = " and ".join(str(folder) for folder in folders if folder.exists())
        if not there:
            raise
        raise StoreError(f"{error}\nto have it made as things are now: give a new --out, or delete {there}") from None


def make_job(job: Job, folder: Path, run: Path, bench: Bench) -> None:
    """The distilled set of a job.  One that is there is kept; StoreError where anything that decides it is other now."""
    with _advised(folder, *([] if job.baseline else [run])):
        classes = _some_classes(job, run, bench)
        make_set(job.source.train, classes, job.ipc, job.teacher, folder, run, job.settings, bench)


def _some_classes(job: Job, run: Path, bench: Bench) -> tuple[str, ...] | None:
    if job.case.classes is None:
        return None
    known = (run / "run.yaml").exists()
    infos = open_run(run).classes if known else bench.images.training(job.source.train, job.settings).classes
    return tuple(info.folder for info in infos[: job.case.classes])


def make_sets(jobs: Sequence[Job], out: Path, bench: Bench) -> dict[str, Path]:
    """The set of every job, by its name; the scoring pass comes first and is shared.  Errors as ``make_job``."""
    folders = {job.set_name: out / "sets" / job.set_name for job in jobs}
    for job in {job.set_name: job for job in jobs}.values():
        make_job(job, folders[job.set_name], out / "runs" / job.run_name, bench)
    return folders


def accuracies(jobs: Sequence[Job], out: Path, bench: Bench) -> dict[Place, Value]:
    """Top-1 on the validation images, percent, of the students of every job; empty on other processes than the main one."""
    sets = {name: open_set(folder) for name, folder in make_sets(jobs, out, bench).items()}
    cells: dict[int, tuple[Job, Cell]] = {}
    for job in jobs:
        s, validation = job.settings, bench.images.validation(job.source.val, job.settings)
        cell = make_cell(job.set_name, sets[job.set_name], validation, job.student, s.protocol, job.teacher, bench)
        cells[id(cell)] = job, cell
    seeds = range(jobs[0].settings.seed, jobs[0].settings.seed + jobs[0].students)
    values: dict[Place, Value] = {}

    def done_with(cell: Cell) -> None:
        if bench.workers.is_main:
            job, top1 = cells[id(cell)][0], gather([cell], seeds, out / "results", bench.machine)[0].top1
            values.update(_value(job, cell, top1))
            bench.tell(f"{job.case.row}, {job.case.column}: {top1 or 'diverged'}   [{job.ran_as}, {cell.student}]")

    run_cells([cell for _, cell in cells.values()], seeds, out / "results", bench, done_with)
    return {place: values[place] for job in jobs if (place := (job.case.row, job.case.column)) in values}


def _value(job: Job, cell: Cell, top1: Spread | None) -> dict[Place, Value]:
    if top1 is None:
        return {}
    teacher = Path(job.teacher).name if cell.teacher else "hard labels"
    ran_as = f"{job.ran_as}, {teacher} to {cell.student}"
    return {(job.case.row, job.case.column): Value.of(top1, ran_as)}


def timings(jobs: Sequence[Job], out: Path, bench: Bench) -> dict[Place, Value]:
    """Wall seconds and U-Net forwards of making each job's set anew; jobs of one method share a run, as they stand.

    A job that was timed is not timed again, but its set is checked as any (``make_job``); one that was interrupted says that
    only its rest was timed.
    """
    values: dict[Place, Value] = {}
    for name in dict.fromkeys(job.method for job in jobs):
        mine = [job for job in jobs if job.method == name]
        folder = out / "timing" / f"{name}-{fingerprint([job.set_name for job in mine])[:8]}"
        for job in mine:
            made = _timed(job, folder, job is mine[0], bench)
            if bench.workers.is_main:
                (row, column), ran_as = (job.case.row, job.case.column), job.ran_as + ", only its rest" * made["rest"]
                values[row, f"{column}, s"] = Value(made["seconds"], ran_as=ran_as)
                values[row, f"{column}, forwards"] = Value(made["forwards"], ran_as=ran_as)
                bench.tell(f"{row}, {column}: {made['seconds']} s, {made['forwards']} U-Net forwards")
    return values


def _timed(job: Job, folder: Path, first: bool, bench: Bench) -> dict[str, Any]:
    """What the set of a job took; where it is there already, as it was recorded.

    Raises StoreError where the record speaks of another model or teacher, and as ``make_job``.
    """
    set_, file, before = folder / job.set_name, folder / f"{job.set_name}.json", _taken(folder)
    there, begin = (set_ / "set.yaml").exists(), time.monotonic()
    alone = Bench(bench.machine, bench.workers, bench.progress)  # nothing is shared with those before
    make_job(job, set_, folder / "run", alone)
    record = read_yaml(set_ / "set.yaml")
    made = {
        "seconds": round(time.monotonic() - begin, 3),
        "forwards": _taken(folder) - before,
        "rest": there or (first and before > 0),
        "processes": bench.workers.count,
        "model": record.get("model"),
        "teacher": (record.get("teacher") or {}).get("digest"),
    }
    if there and file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if any(known.get(key, "") != made[key] for key in ("model", "teacher")):
            raise StoreError(f"{file} is not of the model and teacher that {set_} tells; delete {folder} to time anew")
        return known
    if bench.workers.is_main:
        write_atomically(file, (json.dumps(made) + "\n").encode())
    return made


def _taken(folder: Path) -> int:
    """U-Net samples of the run in a folder of timings so far."""
    return open_run(folder / "run").forwards_taken() if (folder / "run" / "run.yaml").exists() else 0
