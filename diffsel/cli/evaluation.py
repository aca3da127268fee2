"""The commands about what a distilled set is worth: `teacher`, `relabel`, `evaluate`, `experiment`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..machine.progress import progress
from ..settings.errors import ConfigError
from ..settings.sections import ProtocolSettings
from ..settings.settings import Settings
from .flags import DataArg, Quiet, settings_flags

SetArg = Annotated[Path, typer.Argument(metavar="SET", help="A distilled set, or any folder of class folders.")]
Val = Annotated[str, typer.Option("--val", metavar="VAL", help="Validation images: folder of class folders, or data set id.")]
TeacherOpt = Annotated[
    str | None, typer.Option("--teacher", metavar="T", help="Network name, teacher folder, or weights file.")
]
Factor = Annotated[int | None, typer.Option("--factor", min=1, help="Tiles per mosaic side, for sets of other tools.")]
Ipc = Annotated[int | None, typer.Option("--ipc", min=1, help="Only the first N images of each class.")]
Seeds = Annotated[int, typer.Option("--students", min=1, help="Students, seeded from `seed` on.")]


def register(app: typer.Typer) -> None:
    for command in (teacher, relabel, evaluate, experiment):
        app.command()(command)


@settings_flags("training", "data", "compute")
def teacher(
    data: DataArg,
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", metavar="TEACHER", help="Folder for weights and metrics.")],
    val: Annotated[str | None, typer.Option("--val", metavar="VAL", help="Validation images, measured every epoch.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a network on a labelled data set, to judge crops and to label distilled images.  Resumable."""
    from ..data.albums import open_validation, validation_pictures
    from ..data.images import open_data
    from ..evaluation.cells import machine_of
    from ..evaluation.networks import canonical, check_size
    from ..evaluation.protocols import validation_resize
    from ..evaluation.teaching import train_teacher

    t = settings.training
    canonical(t.network)
    check_size(t.network, t.size)
    machine, workers = machine_of(settings)
    images = open_data(data, settings.data, settings.seed, settings.compute.workers, progress(quiet))
    album = None
    if val:
        opened = open_validation(val, settings, progress(quiet))
        album = validation_pictures(
            opened, images.classes, t.size, t.size if t.crop != "resized" else validation_resize(t.size)
        )
        if workers.is_main and (note := album.note()):
            print(note)
    pictures = album.load(progress(quiet)) if album else None
    track, loaders = (
        workers.tracker(settings.compute.tracker, out / "logs", t.model_dump(mode="json")),
        min(settings.compute.workers, os.cpu_count() or 1),  # more is slower, and torch warns
    )
    line = train_teacher(images, pictures, out, t, settings.seed, workers, machine, loaders, progress(quiet), track)
    if workers.is_main:
        shown = {key: line[key] for key in ("epoch", "loss", "train_top1", "top1", "top5") if key in line}
        print("  ".join(f"{key} {value}" for key, value in shown.items()))
        print(f"the teacher: {out}")


@settings_flags("protocol", "compute")
def relabel(
    set_: SetArg,
    settings: Settings,
    teacher: Annotated[str, typer.Option("--teacher", metavar="T", help="Network name, teacher folder, or weights file.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="LABELS", help="Default: SET-labels, beside SET.")] = None,
    val: Annotated[
        str | None, typer.Option("--val", metavar="VAL", help="Measure the teacher on these images first, instead of on SET.")
    ] = None,
    ipc: Ipc = None,
    factor: Factor = None,
    student: Annotated[str, typer.Option("--student", metavar="S", help="Whose batches the labels are for.")] = "conv3",
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Keep only the k largest logits of an image.")] = None,
    quiet: Quiet = False,
) -> None:
    """A teacher's labels for every epoch that students will be trained, stored once: `evaluate --stored` reads them."""
    from ..data.albums import open_set, open_validation, set_pictures, validation_pictures
    from ..evaluation.batches import relabel as write_labels
    from ..evaluation.batches import stored_bytes
    from ..evaluation.cells import Bench, machine_of
    from ..evaluation.networks import canonical
    from ..evaluation.protocols import resolve_recipe

    p, (machine, _) = settings.protocol, machine_of(settings)
    found = open_set(set_, factor, progress(quiet))
    album = set_pictures(found, ipc, p.size or found.side)
    bench = Bench(machine, progress(quiet), tell=print)
    loaded = bench.teacher(teacher, album)
    recipe = resolve_recipe(p, classes=len(album.classes), ipc=ipc or found.ipc, factor=found.factor, size=album.size,
                            student=canonical(student), teacher=loaded.name)  # fmt: skip
    if val:
        images = open_validation(val, settings, progress(quiet))
        bench.check_teacher(loaded, validation_pictures(images, album.classes, album.size, recipe.val_resize))
    else:
        bench.check_teacher(loaded, album, recorded=False, images="images of the set itself")
    size = stored_bytes(len(album.rows), len(album.classes), p.epochs, top_k, recipe.factor)
    print(f"{p.epochs} epochs of {len(album.rows)} images: {size / 1e6:,.1f} MB")
    target = out or beside(set_, "labels")
    written = write_labels(target, bench.pictures(album), p, recipe, settings.seed, loaded, p.epochs, top_k, progress(quiet))
    print(f"{written} epochs written, {p.epochs - written} were there: {target}")


@settings_flags("protocol", "compute")
def evaluate(
    sets: Annotated[list[Path], typer.Argument(metavar="SET ...", help="Distilled sets, or any folders of class folders.")],
    settings: Settings,
    val: Val,
    student: Annotated[list[str], typer.Option("--student", metavar="S", help="conv3, resnet18, ...; repeatable.")],
    teacher: TeacherOpt = None,
    stored: Annotated[
        Path | None,
        typer.Option("--stored", metavar="LABELS", help="Labels written by `relabel`; all students see its batches."),
    ] = None,
    students: Seeds = 5,
    ipc: Ipc = None,
    factor: Factor = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="RESULTS", help="Default: SET-results, beside SET.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train fresh students on distilled sets and measure them on the validation images: mean, deviation, 95% interval."""
    from ..data.albums import open_set, open_validation
    from ..evaluation.cells import Bench, gather, machine_of, make_cell, run_cells
    from ..report.text import accuracy_table, over_random

    refuse_unused(settings.protocol, {"--teacher": teacher, "--stored": stored})
    machine, workers = machine_of(settings)
    bench = Bench(machine, progress(quiet), tell=print if workers.is_main else lambda text: None)
    found = [open_set(path, factor, progress(quiet)) for path in sets]
    images = open_validation(val, settings, progress(quiet))
    seeds = range(settings.seed, settings.seed + students)
    cells = {  # all of them, so that what cannot work is refused before anything is trained
        (one.path, name): make_cell(named(one.path).name, one, images, name, settings.protocol, teacher, bench, ipc, stored)
        for one in found
        for name in dict.fromkeys(student)
    }
    logs = (out or beside(sets[0], "results")) / "logs"
    bench.track = workers.tracker(settings.compute.tracker, logs, settings.protocol.model_dump(mode="json"))
    targets = [out or beside(path, "results") for path, _ in cells]
    run_cells(list(cells.values()), seeds, targets, bench, workers)
    if workers.is_main:
        lines = [gather([cell], seeds, to, machine)[0] for cell, to in zip(cells.values(), targets, strict=True)]
        print(accuracy_table(lines))
        random = {one.path for one in found if one.method == "random"}
        if text := over_random(lines, [path in random for path, _ in cells]):
            print(text)
        print(f"results: {out or ', '.join(map(str, dict.fromkeys(targets)))}")
        if any(line.failed for line in lines):
            raise typer.Exit(1)


@settings_flags("protocol", "compute")
def experiment(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to compare; see configs/experiments/.")],
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder for sets, runs and results.")],
    quiet: Quiet = False,
) -> None:
    """Every combination of data sets, class subsets, methods, ipc, teachers, students and protocols; each once."""
    from ..evaluation.cells import machine_of
    from ..studies.matrix import read_matrix, run_matrix

    machine, workers = machine_of(settings)
    print(run_matrix(read_matrix(file), out, settings, machine, workers, progress(quiet)), end="")


def refuse_unused(protocol: ProtocolSettings, given: Mapping[str, object]) -> None:
    """Raises ConfigError for options about a teacher's labels beside a protocol that uses none."""
    for option, value in given.items() if protocol.labels == "hard" else ():
        if value:
            raise ConfigError(
                f"{option} {value}, but protocol.labels = hard uses no teacher's labels; leave it out, or take --labels soft"
            )


def named(path: Path) -> Path:
    """The same folder by a path that ends in its name, as `.` and `..` do not."""
    return path.resolve() if path.name in ("", "..") else path


def beside(path: Path, what: str) -> Path:
    """Where a set's ``what`` is written by default: SET-WHAT."""
    return named(path).with_name(f"{named(path).name}-{what}")
