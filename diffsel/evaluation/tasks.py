"""What the commands `teacher`, `relabel` and `evaluate` do, as functions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ..data.albums import open_validation, validation_pictures
from ..data.images import open_data
from ..data.rows import lost_note
from ..machine.files import AsPath, beside, named
from ..machine.processes import Workers
from ..machine.progress import Progress, quiet
from ..machine.threads import cores
from ..sets.opening import home, members, open_set
from ..settings.errors import ConfigError
from ..settings.sections import ComputeSettings
from ..settings.settings import DEFAULT, Settings
from ..settings.training import ProtocolSettings
from .bench import Bench
from .cells import Cell, gather, make_cell, run_cells
from .checkpoints import read_checkpoint
from .fixed import write_fixed
from .networks import canonical, check_size
from .protocols import resolve_recipe, validation_resize
from .results import Line, over_sets
from .storing import stored_bytes, write_labels
from .teaching import train


def train_teacher(
    data: AsPath, out: AsPath, settings: Settings = DEFAULT, val: AsPath | None = None, progress: Progress = quiet
) -> dict[str, Any]:
    """Train ``settings.training.network`` on a labelled data set, or go on training it; the last line of metrics.jsonl.

    ``val``: images that it is measured on after each epoch.  Raises ConfigError, DataError, SettingsDiffer.
    """
    t, out = settings.training, Path(out)
    check_size(canonical(t.network), t.size)
    bench = Bench.of(settings, progress)
    if t.batch_size % bench.workers.count:
        near = max(2, round(t.batch_size / bench.workers.count)) * bench.workers.count
        raise ConfigError(
            f"training.batch_size = {t.batch_size} cannot be divided among {bench.workers.count} processes; take {near}"
        )
    images = open_data(data, settings.data, settings.seed, settings.compute.workers, progress, out=out)
    lost = lost_note(images.root, images.rows, images.skipped, [info.folder for info in images.classes])
    for note in filter(None, [*images.notes, lost]):
        bench.tell(f"note: {note}")
    album = None
    if val:
        resize = t.size if t.crop != "resized" else validation_resize(t.size)
        album = validation_pictures(open_validation(str(val), settings, progress), images.classes, t.size, resize)
        for note in (*album.data.notes, album.note()):
            bench.tell(note) if note else None
    bench.track = bench.workers.tracker(settings.compute.tracker, out / "logs", t.model_dump(mode="json"))
    loaders = loaders_of(settings.compute, bench.workers)
    # one process measures; the others know the pictures by their digest
    pictures = album.load(progress, settings.compute.workers) if album and bench.workers.is_main else album
    return train(images, pictures, out, t, settings.seed, bench, loaders)


def loaders_of(compute: ComputeSettings, workers: Workers) -> int:
    """Processes that read a training's images: as many as ``compute.workers`` says where it was set, else one for each core
    that this process has of its machine; more are slower, and torch warns of them."""
    own = max(1, cores() // workers.here)
    return min(compute.workers, own) if "workers" in compute.model_fields_set else own


def relabel(
    set_: AsPath,
    teacher: AsPath,
    settings: Settings = DEFAULT,
    out: AsPath | None = None,
    val: AsPath | None = None,
    ipc: int | None = None,
    factor: int | None = None,
    student: str = "conv3",
    top_k: int | None = None,
    progress: Progress = quiet,
) -> Path:
    """A teacher's labels for every epoch that students will be trained, stored once; where they lie.

    ``out``: by default SET-labels, beside SET.  ``val``: images to measure the teacher on, instead of the set's own.
    ``top_k``: keep only the k largest logits of an image.  Raises ConfigError, DataError, SettingsDiffer.
    """
    p, bench, teacher = settings.protocol, Bench.of(settings, progress), str(teacher)
    read_checkpoint(teacher), canonical(student)
    found = open_set(set_, factor, progress)
    album = found.album(ipc, p.size or found.side)
    loaded = bench.teacher(teacher, album)
    recipe = resolve_recipe(
        p,
        classes=len(album.classes),
        ipc=ipc or found.ipc,
        factor=found.factor,
        size=album.size,
        student=canonical(student),
        teacher=loaded.name,
    )
    if val:
        images = open_validation(str(val), settings, progress)
        bench.check_teacher(loaded, validation_pictures(images, album.classes, album.size, recipe.val_resize))
    else:
        bench.check_teacher(loaded, album, recorded=False, images="images of the set itself")
    target = Path(out or beside(home(found.path), "labels"))
    if p.labels == "fixed":
        new = write_fixed(target, bench.pictures(album), loaded, bench.workers)
        bench.tell(f"one label each of {len(album.rows)} images {'written' if new else 'was there'}: {target}")
        return target
    size = stored_bytes(len(album.rows), len(album.classes), p.epochs, top_k, recipe.factor)
    bench.tell(f"{p.epochs} epochs of {len(album.rows)} images: {size / 1e6:,.1f} MB")
    pictures = bench.pictures(album)
    written = write_labels(target, pictures, p, recipe, settings.seed, loaded, p.epochs, top_k, progress, bench.workers)
    bench.tell(f"{written} epochs written, {p.epochs - written} were there: {target}")
    return target


def evaluate(
    sets: AsPath | Iterable[AsPath],
    val: AsPath,
    students: str | Sequence[str],
    settings: Settings = DEFAULT,
    teacher: AsPath | None = None,
    stored: AsPath | None = None,
    count: int = 5,
    ipc: int | None = None,
    factor: int | None = None,
    out: AsPath | None = None,
    progress: Progress = quiet,
    names: Sequence[str] = (),
    budgets: Sequence[float] = (1.0,),
) -> list[Line]:
    """Train ``count`` fresh students of each network on each set, and measure them on the validation images.

    >>> hard = load_settings("hard", {"protocol.epochs": 1})  # no teacher; one epoch, to be quick
    >>> [line] = evaluate("run/ipc1", "new-photos", "conv3w8", hard, count=1)
    >>> 0 <= line.top1.mean <= 100
    True

    A folder of several sets (``opening.members``) is one line, whose intervals cover the choice of the set.  ``budgets``:
    shares of the protocol's epochs; each is a training with a schedule of its own, and a line.
    Results are written to ``out`` (by default SET-results, beside each SET); what is there is not trained again.  A line for
    each set and network, called ``names`` instead of their folders' names; empty on other processes than the main one.
    Raises ConfigError, DataError, StoreError before anything is trained.
    """
    refuse_unused(settings.protocol, {"--teacher": teacher, "--stored": stored})
    students = [students] if isinstance(students, str) else students
    judge, kept = str(teacher) if teacher else None, Path(stored) if stored else None
    paths = [Path(path) for path in ([sets] if isinstance(sets, str | os.PathLike) else sets)]
    _ = [canonical(student) for student in students]  # what is mistyped is told before any image is read
    if judge and settings.protocol.labels != "hard":
        read_checkpoint(judge)
    bench = Bench.of(settings, progress)
    found = [[open_set(one, factor, progress) for one in members(path)] for path in paths]
    images = open_validation(str(val), settings, progress)
    cells: list[Cell] = []
    targets: list[Path] = []
    rows: list[tuple[str, slice]] = []  # a line's name, and its cells
    for group, name in zip(found, names or [named(path).name for path in paths], strict=True):
        for student, protocol in product(dict.fromkeys(students), lengths(settings.protocol, budgets)):
            rows.append((name, slice(len(cells), len(cells) + len(group))))
            for one in group:
                own = name if len(group) == 1 else f"{name}/{one.path.name}"
                cells.append(make_cell(own, one, images, student, protocol, judge, bench, ipc, kept))
                targets.append(Path(out or beside(home(one.path), "results")))
    track, seeds = settings.compute.tracker, range(settings.seed, settings.seed + count)
    bench.track = bench.workers.tracker(track, targets[0] / "logs", settings.protocol.model_dump(mode="json"))
    run_cells(cells, seeds, targets, bench)
    if not bench.workers.is_main:
        return []
    lines = [gather([cell], seeds, to, bench.machine)[0] for cell, to in zip(cells, targets, strict=True)]
    return [over_sets(lines[each], name) for name, each in rows]


def lengths(protocol: ProtocolSettings, budgets: Sequence[float]) -> list[ProtocolSettings]:
    """The protocol at these shares of its epochs, at least one epoch each."""
    epochs = dict.fromkeys(max(1, round(budget * protocol.epochs)) for budget in budgets)
    return [protocol.model_copy(update={"epochs": each}) for each in epochs]


def refuse_unused(protocol: ProtocolSettings, given: dict[str, object]) -> None:
    """Raises ConfigError for options about a teacher's labels beside a protocol that uses none."""
    for option, value in given.items() if protocol.labels == "hard" else ():
        if value:
            raise ConfigError(
                f"{option} {value}, but protocol.labels = hard uses no teacher's labels; leave it out, or take --labels soft"
            )


def check_evaluation(val: str, student: str, settings: Settings, teacher: str | None) -> None:
    """Refuse what ``evaluate`` would refuse, as far as it can be told before there is a set."""
    canonical(student)
    refuse_unused(settings.protocol, {"--teacher": teacher})
    if settings.protocol.labels != "hard" and not teacher:
        raise ConfigError(f"protocol {settings.protocol.name!r} needs a teacher (--teacher), or protocol.labels = hard")
    if teacher:
        read_checkpoint(teacher)
    open_validation(val, settings)
