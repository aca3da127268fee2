"""The commands that look and compare: inspect, probe, compare-priors, trace, check, report, suspects, prompts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..machine.files import beside, write_atomically
from ..machine.progress import progress
from ..settings.errors import ConfigError
from ..settings.settings import Settings
from .flags import Classes, DataArg, Moved, Quiet, RunArg, at_work, settings_flags, split_names

if TYPE_CHECKING:
    from ..evaluation.seeing import TeacherEye
    from ..runs.knowledge import Answer

Templates = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="Label prompt template; repeatable.  [default: those of RUN]"),
]
Words = Annotated[Path | None, typer.Option("--words", metavar="YAML", help="A classes.yaml with words for placeholders.")]


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect_data)
    app.command("compare-priors")(compare_priors)
    for command in (probe, trace, check, report, suspects, prompts):
        app.command()(command)


@settings_flags("data", "model", "compute.workers", "scoring.prompts", "scoring.null_prompt")
def inspect_data(data: DataArg, settings: Settings, quiet: Quiet = False) -> None:
    """Print all that was understood of a data set: classes, names, prompts, sizes, what would be passed over."""
    from ..data.images import open_data
    from ..report.text import describe_data
    from ..scoring.folder import locate
    from ..scoring.suiting import pairs, suited

    opened = open_data(data, settings.data, settings.seed, settings.compute.workers, progress(quiet))
    try:
        folder = locate(settings.model, fetch=False)
    except ConfigError as error:
        print(describe_data(opened, settings))
        return print(f"whether the model takes these prompts is told when it is there: {error}")
    settings = suited(settings, folder, opened.classes)
    print("\n".join([describe_data(opened, settings), *folder.size_notes(settings.data.image_size)]))
    folder.check_prompts(pairs(settings.scoring, opened.classes))


@settings_flags("patches", "features", "selection", "assembly")
def trace(
    run: RunArg,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A row number, or (the end of) an image's path.")],
    settings: Settings,
    set_: Annotated[list[Path] | None, typer.Option("--set", help="Sets to look in; default: those in RUN.")] = None,
    moved: Moved = None,
) -> None:
    """One image's whole way: row, map, boxes, vector, cluster and rank, mosaic tile."""
    from ..report.text import trace_image
    from ..runs.run import open_run
    from ..sets.opening import read_set

    for path in set_ or []:
        if not (path / "set.yaml").exists():
            raise ConfigError(f"--set {path}: not a distilled set (no set.yaml)")
    sets = set_ or sorted(path.parent for path in run.glob("*/set.yaml"))
    print(trace_image(open_run(run, settings, moved=moved), image, [read_set(path) for path in sets]))


def check(
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="RUN, SET, LABELS, TEACHER, an export, or results.")],
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete damaged files that the next start makes again: of RUN, LABELS, results.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Read every file of a folder that diffsel wrote against what it should be.  Exit code 1 where one is damaged."""
    from ..runs.units import devices, mixed, told_by
    from ..studies.checking import Damage, check_folder, how_far, not_compared

    files, bad, left = 0, list[Damage](), 0
    with progress(quiet)(desc="checking", unit="file") as bar:
        for damage in check_folder(target):
            files += 1
            bar.update()
            if damage.reason:
                bad.append(damage)
                removed = remove and damage.remake and (damage.file.is_file() or damage.file.is_symlink())
                damage.file.unlink() if removed else None
                left += not (remove and damage.remake) or os.path.lexists(damage.file)
                named = "" if damage.reason.startswith(str(target)) else f"{damage.file} "  # a reason may name its file
                print(f"{named}{damage.reason}{': removed' if removed else ''}")
    for way in dict.fromkeys(way for damage in bad if (way := damage.remake or damage.way)):
        print(way)
    for told in filter(None, [mixed(devices(told_by(target))), *([] if bad else [not_compared(target), *how_far(target)])]):
        print(told)
    print(f"{files} files, {len(bad)} damaged")
    if left:
        raise typer.Exit(1)


def report(
    targets: Annotated[
        list[Path], typer.Argument(metavar="RUN|SET ...", help="A scored RUN, or a distilled SET; several SETs: side by side.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="HTML", help="Default: RUN-report.html or SET-report.html, beside it.")
    ] = None,
    set_: Annotated[
        list[Path] | None, typer.Option("--set", metavar="SET", help="Sets to show; default: RUN's own, in it and beside it.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", metavar="RUN", help="The run of a SET that lies elsewhere.")] = None,
    results: Annotated[
        list[Path] | None, typer.Option("--results", metavar="RESULTS", help="Further results of `evaluate`, say of baselines.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="T", help="Judges coverage by its features, and RDED's realism.")
    ] = None,
    only: Classes = None,
    page_size: Annotated[int, typer.Option(min=1, max=1000, help="Most megabytes of a file; more goes on further pages.")] = 16,
    quiet: Quiet = False,
) -> None:
    """What was selected and why, as one HTML file: pictures, heat maps, clusters, scores, accuracies, cost, settings."""
    from ..report.comparison import write_comparison
    from ..report.opening import open_target
    from ..report.page import write_report

    names = split_names(only, open_target(targets[0], (), run).classes) if only else []
    eye = _eye(teacher, targets, set_ or [], run) if teacher else None
    common: dict[str, Any] = {"limit": page_size * 10**6, "progress": progress(quiet), "eye": eye, "only": names}
    if len(targets) > 1:
        files = [write_comparison([*targets, *(set_ or [])], out, run, results or (), **common)]
    else:
        files = write_report(targets[0], out, set_ or (), run, results or (), **common)
    more = f" and {len(files) - 1} pages beside it" if len(files) > 1 else ""
    print(f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB: {files[0]}{more}")


def _eye(teacher: str, targets: list[Path], more: list[Path], run: Path | None) -> TeacherEye:
    """A teacher for the classes of a report's run, or of its first set, at the size of its sets."""
    from ..evaluation.seeing import teacher_eye
    from ..report.opening import open_target

    opened = open_target(targets[0], more if len(targets) == 1 else (), run)
    if not opened.sets:
        raise ConfigError(f"--teacher judges sets, but {targets[0]} has none; name some with --set")
    infos = opened.run.classes if opened.run else opened.sets[0].album(None, opened.sets[0].side).classes
    return teacher_eye(teacher, infos, opened.sets[0].record["assembly"]["size"])


@settings_flags("patches")
def suspects(
    run: RunArg,
    settings: Settings,
    top: Annotated[int, typer.Option("--top", min=1, help="Images shown of each class.")] = 3,
    out: Annotated[Path | None, typer.Option("--out", metavar="CSV", help="Write the whole list here.")] = None,
    quiet: Quiet = False,
) -> None:
    """Images whose label raises the loss, class by class; read from the stored maps.  `select --drop-suspects` skips them."""
    from ..report.text import table
    from ..runs.knowledge import what_it_knows
    from ..runs.run import open_run
    from ..sets.suspects import suspect_table
    from ..sets.suspects import suspects as listed

    opened = open_run(run, settings)
    with progress(quiet)(opened.infos, desc="reading maps", unit="class", leave=False) as labels:
        found = {label: listed(opened, label) for label in labels}
    shown = [each for items in found.values() for each in items[:top]]
    in_nats = opened.nats is not None
    rows = [[each.label, each.rank, each.statistic, *([each.nats] if in_nats else []), each.path] for each in shown]
    print(table(rows, ["class", "rank", "statistic", *(["nats"] if in_nats else []), "path"]))
    flat = [each for items in found.values() for each in items]
    print("\n".join(what_it_knows(opened)))
    raised = sum(each.statistic < 0 for each in flat)
    print(f"the label raises the loss of {raised:,} of {len(flat):,} images (below 0)")
    if out:
        write_atomically(out, suspect_table(flat))
        print(f"the list: {out}")


@settings_flags("data", "model", "compute", "scoring")
def probe(
    data: DataArg,
    settings: Settings,
    images: Annotated[int, typer.Option("--images", min=1, help="Images of each class, the first by name.")] = 10,
    quiet: Quiet = False,
) -> None:
    """Does this prior know my classes?  Zero-shot accuracy by loss, right against wrong labels, nats, calibration."""
    bars = at_work(quiet)
    from ..data.images import open_data
    from ..runs import probe as asking
    from ..scoring.draws import open_scorer
    from ..scoring.folder import locate
    from ..scoring.suiting import suited

    if settings.data.images_per_class is None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"images_per_class": 2 * images})})
    opened = open_data(data, settings.data, settings.seed, settings.compute.workers, bars)
    settings = suited(settings, locate(settings.model), opened.classes)
    answers = asking.probe(opened, open_scorer(settings), settings.scoring.prompts[0], images, bars)
    print(_knowledge(answers, min(asking.LABELS, len(opened.classes))))


@settings_flags("data", "compute", "scoring", "patches", "features", "selection", "assembly")
def compare_priors(
    a: Annotated[str, typer.Argument(metavar="A", help="A prior, as of --model.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    data: DataArg,
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder for both runs and the tables; taken up again.")],
    ipc: Annotated[int, typer.Option("--ipc", min=1, help="Images per class of the sets compared.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Which of two priors for my images?  What each knows and costs, and how far they agree, on 30 images of each class."""
    bars = at_work(quiet)
    from ..studies import priors
    from ..studies.agreement import as_table

    if settings.data.images_per_class is None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"images_per_class": 30})})
    found, rows = priors.compare_priors([a, b], data, out, settings, ipc, bars)
    print(f"{priors.priors_table(found)}\n\n{as_table(rows, of='priors')}")
    print(f"\ntables: {out / 'agreement.md'}, {out / 'agreement.csv'}; runs: {out / '0'}, {out / '1'}")


def _knowledge(answers: Mapping[str, Sequence[Answer]], labels: int) -> str:
    from ..report.text import table
    from ..runs.knowledge import knowledge, verdict

    known = {label: knowledge(found) for label, found in answers.items()}
    total = knowledge([each for found in answers.values() for each in found])
    head = ["class", "images", f"top-1 of {labels}, %", "AUROC right / wrong", f"nats (at most {math.log(labels):.2f})", "r"]
    rows = [
        [
            name,
            k.images,
            *(f"{value:.{digits}f} ± {half:.{digits}f}" for digits, (value, half) in ((1, k.top1), (3, k.auroc), (2, k.nats))),
            f"{k.calibration:.2f}",
        ]
        for name, k in {**known, "all": total}.items()
    ]
    scale = "± is half of a 95 % interval over images.  nats: log p(image | label) - log p(image), within the timesteps scored."
    return "\n".join([table(rows, head), scale, *verdict(known)])


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
    moved: Moved = None,
    quiet: Quiet = False,
) -> None:
    """Compare prompts on a stored run: places, boxes, order, selection, accuracy.  New prompts are scored, and kept."""
    bars = at_work(quiet)
    from ..evaluation.tasks import check_evaluation, evaluate
    from ..report.text import accuracy_table
    from ..runs import prompts as stage
    from ..runs.session import resume
    from ..sets.candidates import check_set
    from ..studies import agreement

    if val and not ipc:
        raise ConfigError("--val measures distilled sets; give --ipc 1 or more with it")
    opened = resume(run, settings, bars, moved)
    compared = stage.plan(opened, templates or [], null, words)
    if val:
        check_evaluation(val, student, settings, teacher)
    target = out or beside(run, "prompts")
    views = compared.views()
    for view in views if ipc else []:
        check_set(view.run, ipc, agreement.set_folder(view.run, target, ipc))
    if opened.workers.is_main:
        print("\n".join(agreement.legend(compared)))
        print(f"U-Net forwards to compute: {compared.forwards():,}")
    stage.score(compared)
    sets = agreement.make_sets(views, target, ipc) if ipc else []
    lines, names, to = [], [f"prompt {n}" for n in range(len(sets))], target / "results"
    if val:
        lines = evaluate(sets, val, [student], settings, teacher, count=students, out=to, progress=bars, names=names)
    if opened.workers.is_main:
        print(f"\n{agreement.write_pages(compared, [view.run for view in views], sets, target, shown)}")
        print(f"\n{accuracy_table(lines)}\n" if lines else "")
        print(f"tables: {target / 'agreement.md'}, {target / 'agreement.csv'}\npicture: {target / 'heat.png'}")
