"""The commands that make sets: `score`, `embed`, `select`, `distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..machine.processes import as_shard
from ..machine.progress import progress
from ..settings.errors import ConfigError
from ..settings.sections import BASELINES, CORESETS
from ..settings.settings import Settings
from .flags import (
    STORING,
    STUDENTS,
    Classes,
    DataArg,
    Ipcs,
    Moved,
    Quiet,
    RunArg,
    RunOut,
    Shard,
    Strict,
    at_work,
    finish,
    settings_flags,
    split_names,
)


def register(app: typer.Typer) -> None:
    for command in (score, embed, select, distill):
        app.command()(command)


@settings_flags("data", "model", "compute", "scoring", "patches", without=STUDENTS)
def score(
    data: DataArg,
    settings: Settings,
    out: RunOut,
    strict: Strict = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would cost here: forwards, FLOP, bytes, hours.")
    ] = False,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Only list and hash the images and make RUN, which shards then take up.")
    ] = False,
    shard: Shard = None,
    quiet: Quiet = False,
) -> None:
    """Images to stored loss maps: the one expensive pass.  Started again, it goes on where it was."""
    bars = at_work(quiet)
    from .. import method
    from ..runs.session import start

    if dry_run:
        from ..runs.forecast import forecast
        from ..scoring.draws import open_scorer

        return print(forecast(data, settings, open_scorer(settings)))
    with as_shard(shard):
        opened = start(data, out, settings, bars)
        if not index_only:
            method.score(opened)
    return finish(opened, strict, f"next: diffsel select {out} --ipc 10 --out SET")


@settings_flags("compute", "patches", "features", without=STORING)
def embed(run: RunArg, settings: Settings, moved: Moved = None, shard: Shard = None, quiet: Quiet = False) -> None:
    """Stored maps to best patches and their vectors."""
    bars = at_work(quiet)
    from .. import method
    from ..runs.session import resume

    with as_shard(shard):
        opened = resume(run, settings, bars, moved)
    method.embed(opened)
    finish(opened, False, f"next: diffsel select {run} --ipc 10 --out SET")


@settings_flags("data", "compute", "patches", "features", "selection", "baseline", "assembly", without=STORING)
def select(
    run: Annotated[str, typer.Argument(metavar="RUN|DATA", help="A scored RUN; for random and rded also a plain data set.")],
    settings: Settings,
    ipc: Ipcs,
    out: Annotated[Path, typer.Option("--out", metavar="SET", help="Folder for the set; several IPCs: SET/ipcN.")],
    only: Classes = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="T",
            help="For rded, who judges crops; for el2n and such, who kept records; for a coreset, whose last features it sees.",
        ),
    ] = None,
    sets: Annotated[
        int, typer.Option("--sets", min=1, help="So many sets that chance alone makes different: SET/set-0, set-1 ...")
    ] = 1,
    moved: Moved = None,
    quiet: Quiet = False,
) -> None:
    """A distilled set out of a stored run, for any IPC and any classes.  Patches not embedded yet are, first."""
    from .. import method
    from ..runs.session import resume
    from ..sets.candidates import check_set

    if sets > 1 and not settings.selection.by_chance:
        raise ConfigError(f"--sets {sets}: --method {settings.selection.method} leaves nothing to chance; all would be one set")
    if teacher and settings.selection.method.startswith("diffsel"):
        raise ConfigError(f"--teacher: --method {settings.selection.method} asks none")
    folders = {n: out if len(ipc) == 1 else out / f"ipc{n}" for n in ipc}
    wanted = [(n, k, where / f"set-{k}" if sets > 1 else where) for n, where in folders.items() for k in range(sets)]
    if settings.selection.method in BASELINES or (teacher and settings.selection.method in CORESETS):
        return _baseline(run, settings, wanted, only, teacher, moved, quiet)
    opened = resume(Path(run), settings, progress(quiet), moved)
    names = split_names(only, opened.run.infos)
    for n, k, target in wanted:
        check_set(opened.run.reseeded(k), n, target, names)
    method.embed(opened)
    for n, k, target in wanted:
        method.select(opened.seen(opened.run.reseeded(k)), n, target, names)
    return finish(opened, False, f"the set: {out}")


def _baseline(
    run: str,
    settings: Settings,
    sets: list[tuple[int, int, Path]],
    only: list[str] | None,
    teacher: str | None,
    moved: str | None,
    quiet: bool,
) -> None:
    """`select --method random` and such: the images of a run, or of any data set; the main process does it alone."""
    bars = at_work(quiet)
    from ..data.images import open_data
    from ..data.pool import copies_note, known_classes, near_note
    from ..data.rows import lost_note
    from ..evaluation.bench import Bench
    from ..evaluation.judging import advice
    from ..runs.run import open_run
    from ..sets.baselines import check_teacher, select_baseline
    from ..sets.usable import Seen

    check_teacher(settings, teacher)
    bench = Bench.of(settings, bars)
    if not bench.workers.is_main:
        return bench.workers.wait_for([target / "set.yaml" for _, _, target in sets])
    if (Path(run) / "run.yaml").exists():
        data = open_run(Path(run), settings, moved=moved).data
    elif moved:
        raise ConfigError(f"--data tells where the images of a RUN are now, but {run} is none; give the images themselves")
    else:
        data = open_data(run, settings.data, settings.seed, settings.compute.workers, bars, out=sets[0][2])
    names = known_classes(data, split_names(only, [info.folder for info in data.classes]))
    known, seen = advice(bench, teacher, data, names, settings), Seen()
    for n, k, target in sets:
        seeded = settings.model_copy(update={"seed": settings.seed + k})
        select_baseline(data, n, target, seeded, names, progress=bars, seen=seen, **known)
        print(f"ipc {n}: {target}")
    lost = lost_note(data.root, data.rows, data.skipped, names, sorted(seen.lost))
    notes = filter(None, [copies_note(data, names), near_note(list(seen.near.items())), lost, *data.notes])
    print("".join(f"note: {text}\n" for text in notes), end="")


@settings_flags("data", "model", "compute", "scoring", "patches", "features", "selection", "assembly", without=STUDENTS)
def distill(
    data: DataArg,
    settings: Settings,
    out: RunOut,
    ipc: Ipcs,
    strict: Strict = False,
    shard: Shard = None,
    quiet: Quiet = False,
) -> None:
    """Images to distilled sets RUN/ipcN: score, embed and select in one go."""
    bars = at_work(quiet)
    from .. import method

    sets = {n: out / f"ipc{n}" for n in ipc}
    with as_shard(shard):
        opened = method.make_sets(data, out, sets, settings, bars)
    finish(opened, strict, "\n".join(f"ipc {n}: {place}" for n, place in sets.items() if place.exists()))
