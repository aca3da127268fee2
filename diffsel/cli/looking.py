"""The commands that look into a stored run, and hand a set over: `prompts`, `suspects`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..machine.progress import progress
from ..settings.errors import ConfigError
from ..settings.settings import Settings
from .evaluation import beside, refuse_unused
from .flags import Quiet, RunArg, settings_flags

if TYPE_CHECKING:
    from ..data.images import ImageData
    from ..runs.prompts import Study

Templates = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="Label prompt template; repeatable.  [default: those of RUN]"),
]
Words = Annotated[Path | None, typer.Option("--words", metavar="YAML", help="A classes.yaml with words for placeholders.")]


def register(app: typer.Typer) -> None:
    for command in (prompts, suspects, export):
        app.command()(command)


@settings_flags("compute", "patches", "features", "selection", "assembly", "protocol")
def prompts(
    run: RunArg,
    settings: Settings,
    templates: Templates = None,
    null: Annotated[str | None, typer.Option("--null", metavar="TEXT", help="Null prompt.  [default: that of RUN]")] = None,
    words: Words = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="OUT", help="Default: RUN-prompts, beside RUN.")] = None,
    ipc: Annotated[int, typer.Option("--ipc", min=0, help="Images per class of the sets compared; 0: no sets.")] = 10,
    shown: Annotated[int, typer.Option("--shown", min=1, help="Images in the picture of heat maps.")] = 8,
    val: Annotated[str | None, typer.Option("--val", metavar="VAL", help="Validation images: measure accuracy too.")] = None,
    student: Annotated[str, typer.Option("--student", metavar="S", help="For --val: conv3, resnet18, ...")] = "conv3",
    teacher: Annotated[str | None, typer.Option("--teacher", metavar="T", help="For --val: who labels the sets.")] = None,
    students: Annotated[int, typer.Option("--students", min=1, help="For --val: students, seeded from `seed` on.")] = 5,
    quiet: Quiet = False,
) -> None:
    """Compare prompts on a stored run: places, boxes, order, selection, accuracy.  New prompts are scored, and kept."""
    import io

    from .. import method
    from ..machine.files import write_atomically
    from ..runs import prompts as stage
    from ..runs import session
    from ..studies import agreement as comparison

    if val and not ipc:
        raise ConfigError("--val measures distilled sets; give --ipc 1 or more with it")
    opened = session.resume(run, settings, progress(quiet))
    study = stage.plan(opened, templates or [], null, words)
    judges = _judges(settings, val, student, teacher, quiet) if val else None
    target = out or beside(run, "prompts")
    views = study.views()
    for view in views if ipc else []:
        method.check_set(view, ipc, comparison.set_folder(view, target, ipc))
    if opened.workers.is_main:
        print("\n".join(comparison.legend(study)))
        print(f"U-Net forwards to compute: {study.forwards():,}")
    stage.score(study)
    sets = comparison.make_sets(views, target, ipc) if ipc else []
    table = _accuracies(study, sets, judges, student, teacher, students, quiet) if judges else ""
    if opened.workers.is_main:
        rows = comparison.compare(views, sets)
        comparison.write_tables(rows, study, target)
        buffer = io.BytesIO()
        comparison.heat_page(views, study, shown).save(buffer, "PNG", optimize=True)
        write_atomically(target / "heat.png", buffer.getvalue())
        print(f"\n{comparison.as_table(rows)}\n{table}")
        print(f"tables: {target / 'agreement.md'}, {target / 'agreement.csv'}\npicture: {target / 'heat.png'}")


@settings_flags("patches")
def suspects(
    run: RunArg,
    settings: Settings,
    top: Annotated[int, typer.Option("--top", min=1, help="Images shown of each class.")] = 3,
    out: Annotated[Path | None, typer.Option("--out", metavar="CSV", help="Write the whole list here.")] = None,
    quiet: Quiet = False,
) -> None:
    """Images whose label raises the loss, class by class; read from the stored maps.  `select --drop-suspects` skips them."""
    from ..machine.files import write_atomically
    from ..report.text import table
    from ..runs import session
    from ..sets.suspects import as_csv
    from ..sets.suspects import suspects as listed

    opened = session.resume(run, settings, progress(quiet))
    found = {label: listed(opened, label) for label in opened.classes}
    shown = [each for items in found.values() for each in items[:top]]
    rows = [[ascii(each.label)[1:-1], each.rank, each.statistic, ascii(each.path)[1:-1]] for each in shown]
    print(table(rows, ["class", "rank", "statistic", "path"]))
    flat = [each for items in found.values() for each in items]
    raised = sum(each.statistic < 0 for each in flat)
    print(f"the label raises the loss of {raised:,} of {len(flat):,} images (statistic < 0)")
    if out:
        write_atomically(out, as_csv(flat).encode("utf-8", "surrogateescape"))
        print(f"the list: {out}")


def export(
    set_: Annotated[Path, typer.Argument(metavar="SET", help="A distilled set made by diffsel.")],
    to: Annotated[Literal["hf", "webdataset", "fiftyone", "csv"], typer.Option("--to", help="Which form.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="OUT", help="Default: SET-FORM, beside SET.")] = None,
    source: Annotated[str, typer.Option("--source", metavar="TEXT", help="For the card: whose images these are.")] = "",
    push: Annotated[str | None, typer.Option("--push", metavar="HUB_ID", help="Upload it there too (`hf auth login`).")] = None,
    public: Annotated[bool, typer.Option("--public", help="For --push: a public repository.")] = False,
) -> None:
    """A distilled set in the form that another tool reads, with a filled-in card; the licence is left to you."""
    from ..sets.export import export as write

    target = out or beside(set_, to)
    if push:
        from ..sets import hub

        print(f"logged in to the hub as {hub.check_login(push)}")
    made = write(set_, to, target, source)
    print(f"{'written' if made else 'there already'}: {target}")
    if push:
        print(f"uploaded: {hub.push(target, push, private=not public)}")


def _judges(settings: Settings, val: str, student: str, teacher: str | None, quiet: bool) -> ImageData:
    """The validation images; what cannot be trained or judged is refused before any prompt is scored."""
    from ..data.albums import open_validation
    from ..evaluation.networks import canonical
    from ..evaluation.teachers import read_checkpoint

    canonical(student)
    refuse_unused(settings.protocol, {"--teacher": teacher})
    if settings.protocol.labels == "soft" and not teacher:
        raise ConfigError(f"protocol {settings.protocol.name!r} needs a teacher (--teacher), or protocol.labels = hard")
    if teacher:
        read_checkpoint(teacher)
    return open_validation(val, settings, progress(quiet))


def _accuracies(study: Study, sets: list[Path], images: ImageData, student: str, teacher: str | None,
                students: int, quiet: bool) -> str:  # fmt: skip
    """Accuracy of students trained on each prompt's set, through the shared evaluation."""
    from ..data.albums import open_set
    from ..evaluation.cells import Bench, gather, machine_of, make_cell, run_cells
    from ..report.text import accuracy_table

    s = study.session.settings
    machine, workers = machine_of(s)
    bench = Bench(machine, progress(quiet), tell=print if workers.is_main else lambda text: None)
    cells = [
        make_cell(f"prompt {n}", open_set(path), images, student, s.protocol, teacher, bench) for n, path in enumerate(sets)
    ]
    seeds, results = range(s.seed, s.seed + students), sets[0].parent.parent / "results"
    run_cells(cells, seeds, results, bench, workers)
    return f"\n{accuracy_table(gather(cells, seeds, results, machine))}\n" if workers.is_main else ""
