"""A study's jobs made real: data, teachers, sets and students, each once, and what is measured of them.

    OUT/  data/                 scenes, where the scale asks for them      teachers/   trained where they are missing
          runs/DATA-PX-KEY/     one scoring pass for all jobs it serves     sets/       distilled sets
          results/              one JSON a student                          timing/     sets made anew, to be timed

Every pipeline that is given the same OUT shares all of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from . import matrix
from .config import fingerprint
from .data import ImageData, Progress, open_data
from .demo import compose_data
from .distributed import Workers
from .evaluation import Machine, Spread
from .experiment import Bench, Cell, gather, make_cell, run_cells
from .features import random_clip
from .pictures import open_set, validation_pictures
from .protocols import validation_resize
from .scales import Job, Scale, place
from .store import open_run, read_yaml, write_atomically
from .tables import Place, Value
from .teaching import train_teacher

Tell = Callable[[str], None]


def prepare(jobs: Sequence[Job], scale: Scale, out: Path, machine: Machine, workers: Workers, progress: Progress) -> list[Job]:
    """The jobs with real paths; scenes composed, CLIP's stand-in written and teachers trained where they are missing.

    Raises ConfigError for a path that names a variable which the environment lacks.
    """
    ready = [_placed(job, scale, out) for job in jobs]
    if scale.scenes and workers.is_main:
        compose_data(out / "data", 0, scale.scenes, progress)
    if scale.scenes:
        workers.wait_for([out / "data" / "truth.csv"])
    if scale.random_clip and any(job.settings.features.kind == "clip" for job in ready):
        if workers.is_main:
            random_clip(out / "clip-random-weights")
        workers.wait_for([out / "clip-random-weights" / "model.safetensors"])
    for job in {job.teacher: job for job in ready if job.trains and _needs_teacher(job)}.values():
        _train(job, machine, workers, progress)
    return ready


def _placed(job: Job, scale: Scale, out: Path) -> Job:
    source = replace(job.source, train=place(job.source.train, out), val=place(job.source.val, out))
    settings = job.settings
    if scale.random_clip:
        clip = settings.features.model_copy(update={"clip_model": str(out / "clip-random-weights")})
        settings = settings.model_copy(update={"features": clip})
    teacher = place(job.teacher, out) if _needs_teacher(job) else job.teacher
    return replace(job, source=source, teacher=teacher, settings=settings)


def _needs_teacher(job: Job) -> bool:
    return job.method == "rded" or job.settings.protocol.labels == "soft"


def _train(job: Job, machine: Machine, workers: Workers, progress: Progress) -> None:
    s, folder = job.settings, Path(job.teacher)
    t, done = s.training, folder / "metrics.jsonl"
    if done.exists() and len(done.read_text(encoding="utf-8").splitlines()) >= t.epochs:
        return
    data = open_data(job.source.train, s.data, s.seed, s.compute.workers, progress)
    album = validation_pictures(
        _validation(job, progress), data.classes, t.size, t.size if t.crop != "resized" else validation_resize(t.size)
    )
    train_teacher(data, album.load(progress), folder, t, s.seed, workers, machine, 0, progress)


def _validation(job: Job, progress: Progress) -> ImageData:
    """All validation images: the cap on images a class is for training."""
    s = job.settings
    return open_data(job.source.val, s.data.model_copy(update={"images_per_class": None}), s.seed, s.compute.workers, progress)


def make_set(job: Job, folder: Path, run: Path, machine: Machine, workers: Workers, progress: Progress) -> None:
    """The distilled set of a job; what is there already is kept."""
    source = matrix.Source(job.source.train, job.source.val)
    subset = {"all": _some_classes(job, run, progress)}
    one = matrix.Matrix(
        {job.dataset: source}, (cast(matrix.Method, job.method),), (job.ipc,), (job.teacher,), (job.student,), subset
    )
    matrix.make_set(matrix.points(one)[0], one, folder, run, job.settings, workers, Bench(machine, progress, print))


def _some_classes(job: Job, run: Path, progress: Progress) -> tuple[str, ...] | None:
    if job.case.classes is None:
        return None
    s, known = job.settings, (run / "run.yaml").exists()
    infos = open_run(run).classes if known else open_data(job.source.train, s.data, s.seed, s.compute.workers, progress).classes
    return tuple(info.folder for info in infos[: job.case.classes])


def make_sets(jobs: Sequence[Job], out: Path, machine: Machine, workers: Workers, progress: Progress) -> dict[str, Path]:
    """The set of every job, by its name; the scoring pass comes first and is shared."""
    folders = {job.set_name: out / "sets" / job.set_name for job in jobs}
    for job in {job.set_name: job for job in jobs}.values():
        if not (folders[job.set_name] / "set.yaml").exists():
            make_set(job, folders[job.set_name], out / "runs" / job.run_name, machine, workers, progress)
    return folders


def accuracies(jobs: Sequence[Job], out: Path, machine: Machine, workers: Workers, progress: Progress,
               tell: Tell) -> dict[Place, Value]:  # fmt: skip
    """Top-1 on the validation images, percent, of the students of every job; empty on other processes than the main one."""
    bench = Bench(machine, progress, tell if workers.is_main else lambda text: None)
    folders = make_sets(jobs, out, machine, workers, progress)
    sets = {name: open_set(folder) for name, folder in folders.items()}
    shown = {job.source.val: _validation(job, progress) for job in jobs}
    cells: list[Cell] = [
        make_cell(
            job.set_name, sets[job.set_name], shown[job.source.val], job.student, job.settings.protocol, job.teacher, bench
        )
        for job in jobs
    ]
    values: dict[Place, Value] = {}
    if workers.count > 1:  # all at once, so that no process waits for the students of one cell
        run_cells(
            cells, range(jobs[0].settings.seed, jobs[0].settings.seed + jobs[0].students), out / "results", bench, workers
        )
    for job, cell in zip(jobs, cells, strict=True):
        seeds = range(job.settings.seed, job.settings.seed + job.students)
        run_cells([cell], seeds, out / "results", bench, workers)
        if workers.is_main:
            line = gather([cell], seeds, out / "results", machine)[0]
            values |= _value(job, cell, line.top1)
            tell(f"{job.case.row}, {job.case.column}: {line.top1 or 'diverged'}   [{job.ran_as}, {cell.student}]")
    return values


def _value(job: Job, cell: Cell, top1: Spread | None) -> dict[Place, Value]:
    if top1 is None:
        return {}
    teacher = Path(job.teacher).name if cell.teacher else "hard labels"
    ran_as = f"{job.ran_as}, {teacher} to {cell.student}"
    return {(job.case.row, job.case.column): Value(top1.mean, top1.std, top1.ci95, top1.n, ran_as)}


def timings(jobs: Sequence[Job], out: Path, machine: Machine, workers: Workers, progress: Progress,
            tell: Tell) -> dict[Place, Value]:  # fmt: skip
    """Wall seconds and U-Net forwards of making each job's set anew; jobs of one method share a run, as they stand.

    A job that was timed is not timed again; a first one that was interrupted says that only its rest was timed.
    """
    values: dict[Place, Value] = {}
    for method in dict.fromkeys(job.method for job in jobs):
        mine = [job for job in jobs if job.method == method]
        folder = out / "timing" / f"{method}-{fingerprint([job.set_name for job in mine])[:8]}"
        for job in mine:
            file = folder / f"{job.set_name}.json"
            if not file.exists():
                made = _timed(job, folder, job is mine[0], machine, workers, progress)
                if workers.is_main:
                    write_atomically(file, (json.dumps(made) + "\n").encode())
            if workers.is_main:
                made = json.loads(file.read_text(encoding="utf-8"))
                (row, column), ran_as = (job.case.row, job.case.column), job.ran_as + ", only its rest" * made["rest"]
                values[row, f"{column}, s"] = Value(made["seconds"], ran_as=ran_as)
                values[row, f"{column}, forwards"] = Value(made["forwards"], ran_as=ran_as)
                tell(f"{row}, {column}: {made['seconds']} s, {made['forwards']} U-Net forwards")
    return values


def _timed(job: Job, folder: Path, first: bool, machine: Machine, workers: Workers, progress: Progress) -> dict[str, Any]:
    before, begin = _forwards(folder / "run"), time.monotonic()
    make_set(job, folder / job.set_name, folder / "run", machine, workers, progress)
    return {
        "seconds": round(time.monotonic() - begin, 3),
        "forwards": _forwards(folder / "run") - before,
        "rest": first and before > 0,
        "processes": workers.count,
    }


def _forwards(run: Path) -> int:
    """U-Net samples that the units of a run have taken so far."""
    if not (run / "run.yaml").exists():
        return 0
    record: dict[str, Any] = read_yaml(run / "run.yaml")
    scoring = record["settings"]["scoring"]
    images = sum(_images(unit) for unit in (run / "maps").glob("*.safetensors"))
    return images * scoring["draws"] * (1 + len(scoring["prompts"]))


def _images(unit: Path) -> int:
    from safetensors import safe_open

    with safe_open(unit, framework="numpy") as file:
        return len(json.loads(file.metadata()["diffsel"])["extra"]["rows"])
