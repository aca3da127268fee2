"""The one `main` of all pipelines: options, the plan and its cost, the work, and the table beside the paper's.

    accelerate launch pipelines/NAME.py [--scale demo|cifar10|paper|FILE.yaml] --out OUT [--dry-run]

writes OUT/tables/NAME.md, .csv and .png.  Stopped and started again it goes on; pipelines that are given the same OUT share
scoring passes, sets, teachers and students.  Nothing heavy is imported before there is something to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..cli.flags import Quiet
from ..machine.progress import progress
from ..settings.errors import ConfigError, DiffselError
from .cases import Case, Job, Scale, costs, plan, read_scale
from .tables import Expected, Shape, Value, as_csv, markdown, picture

if TYPE_CHECKING:
    from ..machine.progress import Progress
    from .tables import Place

__all__ = ["Case", "main"]

Measure = Literal["accuracy", "time", "spread", "sheet"]
UNITS = {"accuracy": "top-1, percent", "time": "seconds", "spread": "percent", "sheet": "pictures"}


def main(file: str, doc: str | None, cases: Sequence[Case], expected: Expected, claim: str = "", measure: Measure = "accuracy",
         shape: Shape = "bars") -> None:  # fmt: skip
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
        quiet: Quiet = False,
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
            study = Study(source.stem, f"{title}, scale {Path(scale).stem}", cases, jobs, chosen, out, measure, shape)
            print(study.run(expected, claim, progress(quiet)), end="")

    command.__doc__ = doc
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
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
        [job.case.row, job.case.column, job.ran_as + f" to {job.student}" * trains, f"{cost.forwards:,}", f"{cost.vectors:,}",
         f"{cost.images * trains:,}"]
        for job, cost in zip(jobs, every, strict=True)
    ]  # fmt: skip
    widths = [max(len(row[k]) for row in rows) for k in range(6)]
    shown = ["  ".join(cell.rjust(w) if k > 2 else cell.ljust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
             for row in rows]  # fmt: skip
    lines += [shown[0], "-" * len(shown[0]), *shown[1:]]
    passes, vectors, images = (sum(getattr(cost, name) for cost in every) for name in ("forwards", "vectors", "images"))
    seconds = sum(cost.seconds - (0 if trains else cost.training) for cost in every)
    trained = sum(job.students for job in jobs) if trains else 0
    lines += ["", f"U-Net forwards {passes:,} and {vectors:,} half ones (features); {trained} students, "
              f"{images if trains else 0:,} student images; estimated {seconds / 3600:.2f} hours at "
              f"{scale.speed['forward']:,.0f} forwards and {scale.speed['student']:,.0f} student images a second"]  # fmt: skip
    return "\n".join([*lines, *_needs(jobs)])


def _needs(jobs: Sequence[Job]) -> list[str]:
    """What a run of these jobs asks for: teachers, and variables of the environment."""
    teachers = dict.fromkeys(job.teacher + ", trained here" * job.trains for job in jobs if job.needs_teacher)
    names = dict.fromkeys(name for job in jobs for name in job.variables)
    told = [name if name in os.environ else f"{name} (not set)" for name in names]
    lines = [("teachers: ", list(teachers)), ("environment: ", told)]
    return [head + "; ".join(items) for head, items in lines if items]


class Study:
    """One pipeline at one scale."""

    def __init__(self, name: str, title: str, cases: Sequence[Case], jobs: Sequence[Job], scale: Scale, out: Path,
                 measure: Measure, shape: Shape):  # fmt: skip
        self.name, self.title, self.scale, self.out, self.measure, self.shape = name, title, scale, out, measure, shape
        self.jobs = jobs
        self.places = [(case.row, case.column) for case in cases]

    def run(self, expected: Expected, claim: str, progress: Progress) -> str:
        """Do what is missing, write the table and its picture; returns the table (nothing on other processes than the main)."""
        from ..evaluation.cells import machine_of

        machine, workers = machine_of(self.jobs[0].settings)
        values, pages = self.measured(expected, machine, workers, progress)
        return self.write(values, pages, expected, claim) if workers.is_main else ""

    def measured(self, expected: Expected, machine, workers, progress: Progress):  # type: ignore[no-untyped-def]
        """(values by place, pictures by suffix): what this pipeline is about."""
        from ..data.albums import Opener
        from ..evaluation.cells import Bench
        from . import figures as gallery
        from . import making as products

        images = Opener(progress)
        jobs = products.prepare(self.jobs, self.scale, self.out, machine, workers, images)
        bench = Bench(machine, progress, tell=print if workers.is_main else lambda text: None)
        pages: dict[str, bytes] = {}
        values: dict[Place, Value] = {}
        match self.measure:
            case "accuracy":
                values = products.accuracies(jobs, self.out, bench, workers, images)
            case "time":
                values = products.timings(jobs, self.out, bench, workers)
            case "spread" | "sheet":
                folders = products.make_sets(jobs, self.out, bench, workers, images)
                if workers.is_main and self.measure == "spread":
                    values, pages[""] = gallery.spreads(jobs, folders, self.out, progress)
                elif workers.is_main:
                    values, sheets = gallery.sheets(jobs, folders, expected, self.out, progress)
                    pages = {"-" + figure.lower().replace(" ", "-"): page for figure, page in sheets.items()}
        return values, pages

    def write(self, values: Mapping[Place, Value], pages: Mapping[str, bytes], expected: Expected, claim: str) -> str:
        from ..machine.files import write_atomically

        folder, notes = self.out / "tables", list(self.scale.notes)
        if self.scale.random_clip and any(job.settings.features.kind == "clip" for job in self.jobs):
            notes.append("CLIP stands here with random weights, since none can be had: its column shows the path, not CLIP.")
        text = markdown(self.title, self.places, values, expected, claim, notes)
        shown = {place: value for place, value in values.items() if not place[1].endswith(", forwards")}
        drawn = pages or {"": picture(self.title, self.shape, self.places, shown, expected, UNITS[self.measure])}
        for suffix, page in drawn.items():
            write_atomically(folder / f"{self.name}{suffix}.png", page)
        write_atomically(folder / f"{self.name}.md", text.encode())
        write_atomically(folder / f"{self.name}.csv", as_csv(values, self.places, expected).encode())
        pictures = ", ".join(str(folder / f"{self.name}{suffix}.png") for suffix in drawn)
        return f"\n{text}\ntable:    {folder / self.name}.md, .csv\npicture:  {pictures}\n"
