"""The command line.  Every setting is a flag and a YAML key; flags win over ``--config`` files.

Exit codes: 0 all well; 1 ran, but something is wrong with the data (under --strict); 2 bad usage, settings or input.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..machine.progress import progress
from ..settings.errors import ConfigError, DiffselError
from ..settings.settings import Settings
from . import evaluation as cli_evaluation
from . import looking as cli_study
from .flags import Classes, DataArg, Ipcs, Quiet, RunArg, RunOut, Strict, finish, settings_flags, split_names

app = typer.Typer(
    help="Distil a labelled image data set into a few images per class, by Stable Diffusion driven patch selection.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def version(
    show: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    if show:
        from importlib.metadata import version as installed

        print(f"diffsel {installed('diffsel')}")
        raise typer.Exit


cli_evaluation.register(app)
cli_study.register(app)

# ---- commands --------------------------------------------------------------------------------------------------------


@app.command("inspect")
@settings_flags("data", "model", "compute", "scoring")
def inspect_data(data: DataArg, settings: Settings, quiet: Quiet = False) -> None:
    """Print all that was understood of a data set: classes, names, prompts, sizes, what would be passed over."""
    from ..data.images import open_data
    from ..report.text import describe_data

    opened = open_data(data, settings.data, settings.seed, settings.compute.workers, progress(quiet))
    print(describe_data(opened, settings))


@app.command()
@settings_flags("data", "model", "compute", "scoring", "patches")
def score(
    data: DataArg,
    settings: Settings,
    out: RunOut,
    strict: Strict = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would cost here: forwards, FLOP, bytes, hours.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Images to stored loss maps: the one expensive pass.  Started again, it goes on where it was."""
    from .. import method
    from ..runs import forecast as planning
    from ..runs import session

    if dry_run:
        model, batch_size = session.load_model(settings)
        return print(planning.plan(data, settings, model, batch_size))
    opened = session.start(data, out, settings, progress(quiet))
    method.score(opened)
    finish(opened, strict, f"next: diffsel select {out} --ipc 10 --out SET")


@app.command()
@settings_flags("compute", "patches", "features")
def embed(run: RunArg, settings: Settings, quiet: Quiet = False) -> None:
    """Stored maps to best patches and their vectors."""
    from .. import method
    from ..runs import session

    opened = session.resume(run, settings, progress(quiet))
    method.embed(opened)
    finish(opened, False, f"next: diffsel select {run} --ipc 10 --out SET")


@app.command()
@settings_flags("data", "compute", "patches", "features", "selection", "baseline", "assembly")
def select(
    run: Annotated[str, typer.Argument(metavar="RUN|DATA", help="A scored RUN; for random and rded also a plain data set.")],
    settings: Settings,
    ipc: Ipcs,
    out: Annotated[Path, typer.Option("--out", metavar="SET", help="Folder for the set; several IPCs: SET/ipcN.")],
    only: Classes = None,
    teacher: Annotated[str | None, typer.Option("--teacher", metavar="T", help="For --method rded: who judges crops.")] = None,
    quiet: Quiet = False,
) -> None:
    """A distilled set out of a stored run, for any IPC and any classes.  Patches not embedded yet are, first."""
    from .. import method
    from ..runs import session

    sets = {n: out if len(ipc) == 1 else out / f"ipc{n}" for n in ipc}
    if settings.selection.method in ("random", "rded"):
        return _baseline(run, settings, sets, only, teacher, quiet)
    opened = session.resume(Path(run), settings, progress(quiet))
    names = split_names(only, opened.classes)
    for n, target in sets.items():
        method.check_set(opened, n, target, names)
    method.embed(opened)
    for n, target in sets.items():
        method.select(opened, n, target, names)
    return finish(opened, False, f"the set: {out}")


def _baseline(run: str, settings: Settings, sets: dict[int, Path], only: list[str] | None, teacher: str | None,
              quiet: bool) -> None:  # fmt: skip
    """`select --method random|rded`: the images of a run, or of any data set; the main process does it alone."""
    from .. import method
    from ..data.images import open_data
    from ..evaluation.cells import Bench, machine_of
    from ..runs import session

    if settings.selection.method == "rded" and not teacher:
        raise ConfigError("--method rded needs a classifier that judges crops: --teacher NAME, FOLDER or FILE")
    machine, workers = machine_of(settings)
    if not workers.is_main:
        return workers.wait_for([target / "set.yaml" for target in sets.values()])
    if (Path(run) / "run.yaml").exists():
        session.check_data(Path(run), settings)
        data = session.look(Path(run), settings).data
    else:
        data = open_data(run, settings.data, settings.seed, settings.compute.workers, progress(quiet))
    names = method.known_classes(data, split_names(only, [info.folder for info in data.classes]))
    judge = None
    if settings.selection.method == "rded" and teacher:
        judge = Bench(machine, progress(quiet), tell=print).judge(teacher, data, names, settings)
    for n, target in sets.items():
        method.select_baseline(data, n, target, settings, names, judge, progress(quiet))
        print(f"ipc {n}: {target}")


@app.command()
@settings_flags("data", "model", "compute", "scoring", "patches", "features", "selection", "assembly")
def distill(data: DataArg, settings: Settings, out: RunOut, ipc: Ipcs, strict: Strict = False, quiet: Quiet = False) -> None:
    """Images to distilled sets RUN/ipcN: score, embed and select in one go."""
    from .. import method

    opened = method.distill(data, out, {n: out / f"ipc{n}" for n in ipc}, settings, progress(quiet))
    finish(opened, strict, "\n".join(f"ipc {n}: {out / f'ipc{n}'}" for n in ipc))


@app.command()
@settings_flags("patches", "features", "selection", "assembly")
def trace(
    run: RunArg,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A row number, or (the end of) an image's path.")],
    settings: Settings,
    set_: Annotated[list[Path] | None, typer.Option("--set", help="Sets to look in; default: those in RUN.")] = None,
) -> None:
    """One image's whole way: row, map, boxes, vector, cluster and rank, mosaic tile."""
    from ..report.text import trace_image
    from ..runs import session

    for path in set_ or []:
        if not (path / "set.yaml").exists():
            raise ConfigError(f"--set {path}: not a distilled set (no set.yaml)")
    sets = set_ or sorted(path.parent for path in run.glob("*/set.yaml"))
    print(trace_image(session.resume(run, settings), image, sets))


@app.command()
def check(
    run: RunArg,
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete damaged files, so that the next start makes them again.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Read every file of a RUN against its checksum.  Exit code 1 where one is damaged."""
    from ..runs import run as store

    opened = store.open_run(run)
    store.read_index(opened)
    files, bad = 0, []
    with progress(quiet)(desc="checking", unit="file") as bar:
        for file, reason in store.damaged(opened):
            files += 1
            bar.update()
            if reason:
                bad.append(file)
                print(f"{file} {reason}{': removed' if remove else ''}")
                file.unlink() if remove else None
    print(f"{files} files, {len(bad)} damaged")
    if bad and not remove:
        raise typer.Exit(1)


@app.command()
def report(
    target: Annotated[Path, typer.Argument(metavar="RUN|SET", help="A scored RUN, or a distilled SET.")],
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
    page_size: Annotated[int, typer.Option(min=1, max=1000, help="Most megabytes of a file; more goes on further pages.")] = 16,
    quiet: Quiet = False,
) -> None:
    """What was selected and why, as one HTML file: pictures, heat maps, clusters, scores, accuracies, cost, settings."""
    from ..report.page import write_report

    files = write_report(target, out, set_ or (), run, results or (), limit=page_size * 10**6, progress=progress(quiet))
    more = f" and {len(files) - 1} pages beside it" if len(files) > 1 else ""
    print(f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB: {files[0]}{more}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder for the data, the run, the sets.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seeds scenes and noise.")] = 0,
    scenes: Annotated[int, typer.Option(min=40, help="Training scenes per class.")] = 64,
    quiet: Quiet = False,
) -> None:
    """Distil the embedded data set with the embedded checkpoint, and show whether the patches hold the digits."""
    from ..studies.demo import run_demo

    print(run_demo(out, seed, scenes, progress(quiet)))


# ---- the program ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the command line; every foreseeable error is one line on stderr and exit code 2."""
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (DiffselError, OSError) as error:  # OSError: no space, no permission; it names the file
        rank = f" (process {os.environ['RANK']})" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        print(f"error{rank}: {error}", file=sys.stderr)
        return 2
    return 0
