"""The one `main` of all pipelines: options, the plan and its cost, the work, and the table beside the paper's.

    accelerate launch pipelines/NAME.py [--scale demo|cifar10|paper|FILE.yaml] --out OUT [--dry-run]

writes OUT/tables/NAME.md, .csv and .png.  Stopped and started again it goes on; pipelines that are given the same OUT share
scoring passes, sets, teachers and students.  Nothing heavy is imported before there is something to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..machine.files import check_words, write_atomically
from ..machine.progress import progress
from ..machine.terminal import guarded
from ..settings.errors import ConfigError, DiffselError
from .cases import Case, Job, Scale, costs, plan, read_scale
from .tables import Expected, Shape, Value, markdown, picture, table_csv

if TYPE_CHECKING:
    from ..machine.progress import Progress
    from .tables import Place

__all__ = ["Case", "main"]

Measure = Literal["accuracy", "time", "spread", "sheet"]
UNITS = {"accuracy": "top-1, percent", "time": "seconds", "spread": "percent", "sheet": "pictures"}


def main(
    file: str,
    doc: str | None,
    cases: Sequence[Case],
    expected: Expected,
    claim: str = "",
    measure: Measure = "accuracy",
    shape: Shape = "bars",
) -> None:
    """Run the pipeline ``file`` as a program.  ``doc``'s first line is its title; ``claim`` is the paper's finding in words.

    Every foreseeable error is one line on stderr and exit code 2.
    """
    source, title = Path(file).resolve(), (doc or "").strip().splitlines()[0].rstrip(".")

    def command(
        out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder of the study; pipelines may share one.")],
        scale: Annotated[str, typer.Option("--scale", help="demo, cifar10, paper, or a YAML file.")] = "demo",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="List cells, forwards and hours; do nothing.")] = False,
        model: Annotated[str | None, typer.Option("--model", help="Diffusion model, in place of the scale's.")] = None,
        students: Annotated[int | None, typer.Option("--students", min=1, help="Students a cell.")] = None,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
    ) -> None:
        configs = source.parent.parent / "configs"
        chosen = read_scale(scale, configs, model, students)
        jobs = plan(cases, chosen, configs, once=measure == "accuracy")
        if not jobs:
            raise ConfigError(f"scale {scale} leaves out every cell of this pipeline")
        if dry_run and os.environ.get("RANK", "0") != "0":
            return
        if dry_run:
            print(forecast(title, jobs, chosen, measure))
        else:
            named = f"{title}, scale {Path(scale).stem}"
            done = run_study(source.stem, named, cases, jobs, chosen, out, expected, claim, measure, shape, progress(quiet))
            print(done, end="")

    command.__doc__ = doc
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    with guarded():
        try:
            check_words(sys.argv[1:])
            app()
        except (DiffselError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def forecast(title: str, jobs: Sequence[Job], scale: Scale, measure: Measure) -> str:
    """Every cell with what it adds to those before it, and the sum, from nothing."""
    every = costs(jobs, scale)
    lines = [f"{title}: {len(jobs)} cells", ""]
    trains = measure == "accuracy"
    rows = [["row", "column", "run as", "forwards", "vectors", "student images"]] + [
        [
            job.case.row,
            job.case.column,
            job.ran_as + f" to {job.student}" * trains,
            f"{cost.forwards:,}",
            f"{cost.vectors:,}",
            f"{cost.images * trains:,}",
        ]
        for job, cost in zip(jobs, every, strict=True)
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(6)]
    shown = [
        "  ".join(cell.rjust(w) if k > 2 else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines += [shown[0], "-" * len(shown[0]), *shown[1:]]
    passes, vectors, images = (sum(getattr(cost, name) for cost in every) for name in ("forwards", "vectors", "images"))
    seconds = sum(cost.seconds - (0 if trains else cost.training) for cost in every)
    trained = sum(job.students for job in jobs) if trains else 0
    lines += [
        "",
        f"U-Net forwards {passes:,} and {vectors:,} half ones (features); {trained} students, "
        f"{images if trains else 0:,} student images; estimated {seconds / 3600:.2f} hours at "
        f"{scale.speed['forward']:,.0f} forwards and {scale.speed['student']:,.0f} student images a second",
    ]
    return "\n".join([*lines, *_needs(jobs)])


def _needs(jobs: Sequence[Job]) -> list[str]:
    """What a run of these jobs asks for: teachers, and variables of the environment."""
    teachers = dict.fromkeys(job.teacher + ", trained here" * job.trains for job in jobs if job.needs_teacher)
    names = dict.fromkeys(name for job in jobs for name in job.variables)
    told = [name if name in os.environ else f"{name} (not set)" for name in names]
    lines = [("teachers: ", list(teachers)), ("environment: ", told)]
    return [head + "; ".join(items) for head, items in lines if items]


def run_study(
    name: str,
    title: str,
    cases: Sequence[Case],
    jobs: Sequence[Job],
    scale: Scale,
    out: Path,
    expected: Expected,
    claim: str,
    measure: Measure,
    shape: Shape,
    progress: Progress,
) -> str:
    """Do what is missing, write the table and its picture; returns the table (nothing on other processes than the main)."""
    from ..evaluation.bench import Bench
    from . import figures, making

    bench = Bench.of(jobs[0].settings, progress)
    ready = making.prepare(jobs, scale, out, bench)
    pages: dict[str, bytes] = {}
    values: dict[Place, Value] = {}
    match measure:
        case "accuracy":
            values = making.accuracies(ready, out, bench)
        case "time":
            values = making.timings(ready, out, bench)
        case "spread" | "sheet":
            folders = making.make_sets(ready, out, bench)
            if bench.workers.is_main and measure == "spread":
                values, pages[""] = figures.spreads(ready, folders, out, progress)
            elif bench.workers.is_main:
                values, sheets = figures.sheets(ready, folders, expected, out, progress)
                pages = {"-" + figure.lower().replace(" ", "-"): page for figure, page in sheets.items()}
    if not bench.workers.is_main:
        return ""
    notes, places = list(scale.notes), [(case.row, case.column) for case in cases]
    if scale.random_clip and any(job.settings.features.kind == "clip" for job in jobs):
        notes.append("CLIP stands here with random weights, since none can be had: its column shows the path, not CLIP.")
    text = markdown(title, places, values, expected, claim, notes)
    if not pages:
        shown = {place: value for place, value in values.items() if not place[1].endswith(", forwards")}
        pages[""] = picture(title, shape, places, shown, expected, UNITS[measure])
    folder = out / "tables"
    for suffix, page in pages.items():
        write_atomically(folder / f"{name}{suffix}.png", page)
    write_atomically(folder / f"{name}.md", text.encode())
    write_atomically(folder / f"{name}.csv", table_csv(values, places, expected))
    pictures = ", ".join(str(folder / f"{name}{suffix}.png") for suffix in pages)
    return f"\n{text}\ntable:    {folder / name}.md, .csv\npicture:  {pictures}\n"
