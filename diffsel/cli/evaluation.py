"""The commands about what a distilled set is worth: `teacher`, `relabel`, `evaluate`, `experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..machine.files import beside
from ..machine.progress import on_main
from ..settings.settings import Settings
from .flags import NETWORKS, STUDENTS, DataArg, Quiet, at_work, settings_flags

SETS = "Distilled sets, folders of several (`select --sets`), any folders of class folders, or hub:OWNER/NAME."
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


@settings_flags("training", "data", *NETWORKS, "compute.tracker")
def teacher(
    data: DataArg,
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", metavar="TEACHER", help="Folder for weights and metrics.")],
    val: Annotated[str | None, typer.Option("--val", metavar="VAL", help="Validation images, measured every epoch.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a network on a labelled data set, to judge crops and to label distilled images.  Resumable."""
    bars = at_work(quiet)
    from ..evaluation.tasks import train_teacher

    line = train_teacher(data, out, settings, val, bars)
    if on_main():
        shown = {key: line[key] for key in ("epoch", "loss", "train_top1", "top1", "top5") if key in line}
        print("  ".join(f"{key} {value}" for key, value in shown.items()))
        print(f"the teacher: {out}")


@settings_flags("protocol", *NETWORKS)
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
    bars = at_work(quiet)
    from ..evaluation import tasks

    tasks.relabel(set_, teacher, settings, out, val, ipc, factor, student, top_k, bars)


@settings_flags("protocol", *NETWORKS, *STUDENTS, "compute.tracker")
def evaluate(
    sets: Annotated[list[Path], typer.Argument(metavar="SET ...", help=SETS)],
    settings: Settings,
    val: Val,
    student: Annotated[list[str], typer.Option("--student", metavar="S", help="conv3, resnet18, ...; repeatable.")],
    teacher: TeacherOpt = None,
    stored: Annotated[
        Path | None,
        typer.Option("--stored", metavar="LABELS", help="Labels written by `relabel`; all students see its batches."),
    ] = None,
    students: Seeds = 5,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets", metavar="A,B,..", help="Train at these shares of the epochs, and tell what sets cost: 0.25,0.5,1."
        ),
    ] = None,
    ipc: Ipc = None,
    factor: Factor = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="RESULTS", help="Default: SET-results, beside SET.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train fresh students on distilled sets and measure them on the validation images: mean, deviation, 95% interval."""
    bars = at_work(quiet)
    from ..evaluation import tasks
    from ..report.text import accuracy_table, over_random
    from ..sets.opening import home, members, open_set
    from ..studies.budgets import columns, read_budgets, write_curves

    shares = read_budgets(budgets or "1")
    given = (teacher, stored, students, ipc, factor, out, bars)
    lines = tasks.evaluate(sets, val, student, settings, *given, budgets=shares)
    if not on_main():
        return
    opened = [open_set(members(path)[0], factor) for path in sets]
    of = [one for one in opened for _ in range(len(lines) // len(opened))]
    print(accuracy_table(lines, columns(lines, of) if budgets else None))
    if text := over_random(lines, [one.method == "random" for one in of]):
        print(text)
    places = [out] if out else [beside(home(one), "results") for path in sets for one in members(path)]
    if budgets:
        print(write_curves(lines, places[0]))
    print(f"results: {', '.join(map(str, dict.fromkeys(places)))}")
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
    bars = at_work(quiet)
    from ..evaluation.bench import Bench
    from ..studies.matrix import read_matrix, run_matrix

    print(run_matrix(read_matrix(file), out, settings, Bench.of(settings, bars)), end="")
