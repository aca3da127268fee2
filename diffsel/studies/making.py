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
from typing import Any, cast

from ..data.albums import Opener, open_set, validation_pictures
from ..evaluation.cells import Bench, Cell, gather, make_cell, run_cells, students_at_once
from ..evaluation.protocols import validation_resize
from ..evaluation.students import Spread
from ..evaluation.teaching import is_trained, train_teacher
from ..machine.device import Machine
from ..machine.files import write_atomically
from ..machine.formats import read_yaml
from ..machine.processes import Workers
from ..runs.run import forwards_taken, open_run
from ..scoring.features import random_clip
from ..settings.errors import StoreError
from ..settings.settings import fingerprint
from . import matrix
from .cases import Job, Scale, place
from .demo import compose_data
from .tables import Place, Value


def prepare(jobs: Sequence[Job], scale: Scale, out: Path, machine: Machine, workers: Workers, images: Opener) -> list[Job]:
    """The jobs with real paths; scenes composed, CLIP's stand-in written and teachers trained where they are missing.

    Raises ConfigError for a path that names a variable which the environment lacks.
    """
    ready = [_placed(job, scale, out) for job in jobs]
    if scale.scenes and workers.is_main:
        compose_data(out / "data", 0, scale.scenes, images.progress)
    if scale.scenes:
        workers.wait_for([out / "data" / "truth.csv"])
    if scale.random_clip and any(job.settings.features.kind == "clip" for job in ready):
        if workers.is_main:
            random_clip(out / "clip-random-weights")
        workers.wait_for([out / "clip-random-weights" / "model.safetensors"])
    for teacher, job in {job.teacher: job for job in ready if job.trains and job.needs_teacher}.items():
        _train(Path(teacher), job, machine, workers, images)
    return ready


def _placed(job: Job, scale: Scale, out: Path) -> Job:
    source = replace(job.source, train=place(job.source.train, out), val=place(job.source.val, out))
    settings = job.settings
    if scale.random_clip:
        clip = settings.features.model_copy(update={"clip_model": str(out / "clip-random-weights")})
        settings = settings.model_copy(update={"features": clip})
    teacher = place(job.teacher, out) if job.needs_teacher else job.teacher
    return replace(job, source=source, teacher=teacher, settings=settings)


def _train(folder: Path, job: Job, machine: Machine, workers: Workers, images: Opener) -> None:
    """The teacher of a job; of one that is there, only the images and settings are compared."""
    s = job.taught or job.settings
    t, data = s.training, images.training(job.source.train, s)
    resize = t.size if t.crop != "resized" else validation_resize(t.size)
    album = validation_pictures(images.validation(job.source.val, s), data.classes, t.size, resize)
    with _advised(folder):
        if not is_trained(folder, data, album, t, s.seed, machine):
            train_teacher(data, album.load(images.progress), folder, t, s.seed, workers, machine, 0, images.progress)


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


def make_set(job: Job, folder: Path, run: Path, bench: Bench, workers: Workers, images: Opener) -> None:
    """The distilled set of a job.  One that is there is kept; StoreError where anything that decides it is other now."""
    source = matrix.Source(job.source.train, job.source.val)
    subset = {"all": _some_classes(job, run, images)}
    one = matrix.Matrix(
        {job.dataset: source}, (cast(matrix.Method, job.method),), (job.ipc,), (job.teacher,), (job.student,), subset
    )
    with _advised(folder, *([] if job.baseline else [run])):
        matrix.make_set(matrix.points(one)[0], one, folder, run, job.settings, workers, bench, images)


def _some_classes(job: Job, run: Path, images: Opener) -> tuple[str, ...] | None:
    if job.case.classes is None:
        return None
    known = (run / "run.yaml").exists()
    infos = open_run(run).classes if known else images.training(job.source.train, job.settings).classes
    return tuple(info.folder for info in infos[: job.case.classes])


def make_sets(jobs: Sequence[Job], out: Path, bench: Bench, workers: Workers, images: Opener) -> dict[str, Path]:
    """The set of every job, by its name; the scoring pass comes first and is shared.  Errors as ``make_set``."""
    folders = {job.set_name: out / "sets" / job.set_name for job in jobs}
    for job in {job.set_name: job for job in jobs}.values():
        make_set(job, folders[job.set_name], out / "runs" / job.run_name, bench, workers, images)
    return folders


def accuracies(jobs: Sequence[Job], out: Path, bench: Bench, workers: Workers, images: Opener) -> dict[Place, Value]:
    """Top-1 on the validation images, percent, of the students of every job; empty on other processes than the main one."""
    folders = make_sets(jobs, out, bench, workers, images)
    sets = {name: open_set(folder) for name, folder in folders.items()}
    cells: list[Cell] = [
        make_cell(job.set_name, sets[job.set_name], images.validation(job.source.val, job.settings), job.student,
                  job.settings.protocol, job.teacher, bench)
        for job in jobs
    ]  # fmt: skip
    values: dict[Place, Value] = {}
    seeds = range(jobs[0].settings.seed, jobs[0].settings.seed + jobs[0].students)
    if workers.count > 1 or students_at_once(bench.machine, len(cells) * len(seeds)) > 1:  # none waits for one cell's students
        run_cells(cells, seeds, out / "results", bench, workers)
    for job, cell in zip(jobs, cells, strict=True):
        seeds = range(job.settings.seed, job.settings.seed + job.students)
        run_cells([cell], seeds, out / "results", bench, workers)
        if workers.is_main:
            line = gather([cell], seeds, out / "results", bench.machine)[0]
            values |= _value(job, cell, line.top1)
            bench.tell(f"{job.case.row}, {job.case.column}: {line.top1 or 'diverged'}   [{job.ran_as}, {cell.student}]")
    return values


def _value(job: Job, cell: Cell, top1: Spread | None) -> dict[Place, Value]:
    if top1 is None:
        return {}
    teacher = Path(job.teacher).name if cell.teacher else "hard labels"
    ran_as = f"{job.ran_as}, {teacher} to {cell.student}"
    return {(job.case.row, job.case.column): Value(top1.mean, top1.std, top1.ci95, top1.n, ran_as)}


def timings(jobs: Sequence[Job], out: Path, bench: Bench, workers: Workers) -> dict[Place, Value]:
    """Wall seconds and U-Net forwards of making each job's set anew; jobs of one method share a run, as they stand.

    A job that was timed is not timed again, but its set is checked as any (``make_set``); one that was interrupted says that
    only its rest was timed.
    """
    values: dict[Place, Value] = {}
    for method in dict.fromkeys(job.method for job in jobs):
        mine = [job for job in jobs if job.method == method]
        folder = out / "timing" / f"{method}-{fingerprint([job.set_name for job in mine])[:8]}"
        for job in mine:
            made = _timed(job, folder, job is mine[0], bench, workers)
            if workers.is_main:
                (row, column), ran_as = (job.case.row, job.case.column), job.ran_as + ", only its rest" * made["rest"]
                values[row, f"{column}, s"] = Value(made["seconds"], ran_as=ran_as)
                values[row, f"{column}, forwards"] = Value(made["forwards"], ran_as=ran_as)
                bench.tell(f"{row}, {column}: {made['seconds']} s, {made['forwards']} U-Net forwards")
    return values


def _timed(job: Job, folder: Path, first: bool, bench: Bench, workers: Workers) -> dict[str, Any]:
    """What the set of a job took; where it is there already, as it was recorded.

    Raises StoreError where the record speaks of another model or teacher, and as ``make_set``.
    """
    set_, file, before = folder / job.set_name, folder / f"{job.set_name}.json", _taken(folder)
    there, alone, begin = (set_ / "set.yaml").exists(), Bench(bench.machine, bench.progress), time.monotonic()
    make_set(job, set_, folder / "run", alone, workers, Opener(bench.progress))  # nothing is shared with those before
    record = read_yaml(set_ / "set.yaml")
    made = {
        "seconds": round(time.monotonic() - begin, 3),
        "forwards": _taken(folder) - before,
        "rest": there or (first and before > 0),
        "processes": workers.count,
        "model": record.get("model"),
        "teacher": (record.get("teacher") or {}).get("digest"),
    }
    if there and file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if any(known.get(key, "") != made[key] for key in ("model", "teacher")):
            raise StoreError(f"{file} is not of the model and teacher that {set_} tells; delete {folder} to time anew")
        return known
    if workers.is_main:
        write_atomically(file, (json.dumps(made) + "\n").encode())
    return made


def _taken(folder: Path) -> int:
    """U-Net samples of the run in a folder of timings so far."""
    return forwards_taken(open_run(folder / "run")) if (folder / "run" / "run.yaml").exists() else 0
