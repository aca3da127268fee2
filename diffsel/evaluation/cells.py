"""Many runs: every cell of a table once, one JSON for each student, and the table with its intervals.

    RESULTS/ STUDENT-PROTOCOL-KEY/seed-0.json   one student: what it was trained on, and how well it did

A cell is everything but the seed; KEY is the hash of all that decides its numbers (set, validation images, teacher,
student, protocol, precision), so that results of other settings never mix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..data.albums import Album, validation_pictures
from ..data.images import ImageData
from ..data.rows import lost
from ..machine.device import Machine
from ..machine.files import safe_name, write_atomically
from ..machine.formats import dump_yaml, read_yaml
from ..machine.helpers import can_fork, helped
from ..sets.opening import DistilledSet
from ..settings.errors import ConfigError
from ..settings.settings import fingerprint, identity
from ..settings.training import ProtocolSettings
from . import students as evaluation
from .bench import Bench
from .fixed import check, source_of
from .networks import canonical, check_size
from .protocols import Recipe, check_batches, resolve_recipe, whole_name
from .results import Line, as_result, line_of, read_result, result_key
from .students import Diverged
from .teachers import Teacher


@dataclass(frozen=True)
class Cell:
    """One line of a table: a set, a student, a protocol and a teacher, for any number of seeds."""

    name: str  # for people and for paths: method, ipc, student ...
    train: Album
    validation: Album
    student: str
    protocol: ProtocolSettings
    recipe: Recipe
    teacher: Teacher | None
    labels: Path | None = None  # stored labels; None: the teacher labels as the student learns
    author: Mapping[str, str] | None = None  # network and digest of the teacher whose labels these are, stored or not
    leaked: int = 0  # images that the set was made from and that are validation images too

    @property
    def labelling(self) -> str:
        """hard, fixed (one soft label an image), online (each student sees its own batches) or stored (all see the same)."""
        return self.protocol.labels if self.protocol.labels != "soft" else "online" if self.labels is None else "stored"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the numbers, apart from the seed and the precision; not what tables show and call them."""
        protocol = {key: value for key, value in identity(self.protocol).items() if key not in ("name", "report")}
        fixed = self.protocol.labels == "fixed"  # the same labels, stored or not
        return {
            "set": self.train.digest,
            "images": len(self.train.rows),
            "classes": [info.folder for info in self.train.classes],
            "validation": self.validation.digest,
            "student": self.student,
            "protocol": {**protocol, "resolved": _plain(self.recipe)},
            "protocol_hash": fingerprint(protocol),
            "teacher": dict(self.author) if self.author else None,
            "labels": fingerprint(dump_yaml(read_yaml(self.labels / "labels.yaml")).decode())
            if self.labels and not fixed
            else "online",
        }


def make_cell(
    name: str,
    found: DistilledSet,
    data: ImageData,
    student: str,
    protocol: ProtocolSettings,
    teacher: str | None,
    bench: Bench,
    ipc: int | None = None,
    labels: Path | None = None,
) -> Cell:
    """A cell, with everything that can be refused refused: no training has begun yet.

    Raises ConfigError for a student, size or batches that do not work, or a missing teacher; DataError where classes or images
    are missing; StoreError where stored labels do not fit.
    """
    student, size = canonical(student), protocol.size or found.side
    check_size(student, size)
    train = found.album(ipc, size)
    soft = protocol.labels != "hard"
    if soft and not teacher and not labels:
        raise ConfigError(f"protocol {protocol.name!r} needs a teacher (--teacher), stored labels, or protocol.labels = hard")
    loaded = bench.teacher(teacher, train) if teacher and soft else None
    recipe = resolve_recipe(
        protocol,
        classes=len(train.classes),
        ipc=ipc or found.ipc,
        factor=found.factor,
        size=size,
        student=student,
        teacher=loaded.name if loaded else None,
    )
    check_batches(protocol, recipe.batch_size, len(train.rows))
    validation = validation_pictures(data, train.classes, size, recipe.val_resize, protocol.val_images_per_class)
    if shared := found.made_from(ipc) & {row.digest for row in validation.rows}:
        bench.tell(
            f"note: {len(shared)} of the images that {found.name} was made from are validation images too: its accuracy "
            "on them says nothing about new images"
        )
    author = {"network": loaded.name, "digest": loaded.digest} if loaded else None
    if labels and soft:
        record = check(labels, train.digest, protocol, recipe, loaded.digest if loaded else None)
        author = author or {"network": record.get("network", record["teacher"][:8]), "digest": record["teacher"]}
    return Cell(name, train, validation, student, protocol, recipe, loaded, labels if soft else None, author, len(shared))


def run_cells(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    out: Path | Sequence[Path],
    bench: Bench,
    done_with: Callable[[Cell], object] = lambda cell: None,
) -> None:
    """Train every (cell, seed) that has no result yet, each in one process, several at a time; returns when all have one.

    Results are written to ``out``, one folder for all or one for each cell; ``done_with`` is told of each cell whose students
    have all finished.  A student whose loss stops being a number gets a result that says so, and the others go on.
    """
    folders = [out] * len(cells) if isinstance(out, Path) else out
    each = list(zip(cells, folders, strict=True))
    todo = {result_file(folder, cell, seed, bench.machine): (cell, seed) for cell, folder in each for seed in seeds}
    missing = [file for file in todo if not file.exists()]
    for file in todo.keys() - set(missing):
        read_result(file)  # what is there must be this student's, which is told before any other is trained
    for cell, _ in (todo[file] for file in missing):
        if cell.teacher:
            bench.check_teacher(cell.teacher, cell.validation)
    at_once = students_at_once(bench.machine, len(todo))
    if at_once > 1:  # read validation images once, before helpers copy this process
        for album in {cell.validation.digest: cell.validation for cell, _ in (todo[file] for file in missing)}.values():
            bench.pictures(album, stays=True)

    def train(bench: Bench, finished: Callable[[Path], object]) -> None:
        with bench.workers.share(missing, lambda file: file, finished, patience=math.inf) as left:
            for file in left:
                result = train_one(*todo[file], bench)
                write_atomically(file, as_result(result))
                finished(file)

    def finished(file: Path) -> None:
        cell, seed = todo[file]
        score = read_result(file).get(cell.protocol.report)  # none: it failed
        bench.track({f"{cell.name} top-1": score["top1"]} if score else {}, seed)
        bar.update()
        for cell, files in lacking:  # several may wait for one file: sets of the same images
            if file in files:
                files.discard(file)
                done_with(cell) if not files else None

    results = [{result_file(folder, cell, seed, bench.machine) for seed in seeds} for cell, folder in each]
    lacking = [(cell, files & set(missing)) for (cell, _), files in zip(each, results, strict=True)]
    for cell, files in lacking:
        done_with(cell) if not files else None
    helpers = min(at_once, len(missing)) - 1
    helping = helped(lambda: train(bench.silent(), lambda file: None), helpers) if at_once > 1 else nullcontext()
    done = len(todo) - len(missing)
    with bench.progress(total=len(todo), initial=done, desc="students", unit="student") as bar, helping:
        train(bench, finished)


def students_at_once(machine: Machine, students: int) -> int:
    """How many of so many students are trained at a time: on a CPU one for each thread, where there are as many; else one.

    Not how many are still missing decides: a student that is trained after a break has as many threads as before.
    """
    if machine.compile or not can_fork(machine.device.type):
        return 1
    if machine.at_once:
        return min(students, machine.at_once)
    threads = torch.get_num_threads()
    return threads if students >= threads else 1


def train_one(cell: Cell, seed: int, bench: Bench) -> dict[str, Any]:
    """One student; a teacher is measured on the validation images before it labels anything."""
    known = bench.check_teacher(cell.teacher, cell.validation) if cell.teacher else None
    train, validation = bench.pictures(cell.train), bench.pictures(cell.validation, stays=True)
    source = source_of(train, cell.protocol, cell.recipe, seed, cell.teacher, cell.labels, bench.machine)
    result = {
        "cell": cell.name,
        "seed": seed,
        "protocol": whole_name(cell.protocol),
        "labels": cell.labelling,
        "report": cell.protocol.report,
        "identity": cell.identity,
        "precision": bench.machine.precision,
        "teacher_top1": known,
        "validation_images": {
            "read": len(cell.validation.rows),
            "unreadable": len(lost(cell.validation.data.skipped, cell.validation.places)),
            **({"of_the_set": cell.leaked} if cell.leaked else {}),
        },
    }
    try:
        outcome = evaluation.train_student(
            cell.student, source, validation, cell.protocol, cell.recipe, seed, bench.machine, bench.progress
        )
    except Diverged as error:
        return {**result, "failed": {"epoch": error.epoch, "reason": str(error)}}
    return {**result, **outcome, "torch": torch.__version__}


def result_file(out: Path, cell: Cell, seed: int, machine: Machine) -> Path:
    key = result_key(cell.identity, machine.precision)
    return out / f"{safe_name(cell.student.replace(':', '-'))}-{safe_name(cell.protocol.name)}-{key}" / f"seed-{seed}.json"


def gather(cells: Sequence[Cell], seeds: Sequence[int], out: Path, machine: Machine) -> list[Line]:
    """Means and intervals of finished cells.  Raises StoreError where a result is missing or damaged."""
    lines = []
    for cell in cells:  # cells of other names may share results: of the same pictures, or shown by another epoch
        found = [read_result(result_file(out, cell, seed, machine)) for seed in seeds]
        lines.append(replace(line_of(found, cell.protocol.report), name=cell.name, protocol=whole_name(cell.protocol)))
    return lines


def _plain(recipe: Recipe) -> dict[str, Any]:
    return json.loads(json.dumps(recipe.__dict__))
