"""The command line.  Every setting is a flag and a YAML key; flags win over ``--config`` files.

Exit codes: 0 all well; 1 ran, but something is wrong with the data (under --strict); 2 bad usage, settings or input.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from .config import DiffselError, Settings, load_settings, without_execution

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from .session import Session

app = typer.Typer(
    help="Distil a labelled image data set into a few images per class, by Stable Diffusion driven patch selection.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DataArg = Annotated[str, typer.Argument(metavar="DATA", help="Folder with one folder of images per class, or a data set id.")]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `diffsel score` or `distill`.")]
RunOut = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for the stored pass; made, or taken up again.")]
Ipcs = Annotated[list[int], typer.Option("--ipc", min=1, help="Images per class; repeat for several sets.")]
Classes = Annotated[list[str] | None, typer.Option("--only", metavar="CLASS", help="Only this class; repeat, or A,B,..")]
Config = Annotated[list[Path] | None, typer.Option("--config", metavar="YAML", help="Settings file; repeatable, later wins.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if any image was passed over.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def settings_flags(*sections: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one flag for every field of these settings sections, and ``settings`` as their outcome.

    A command on a RUN starts from the settings recorded there.
    """
    flags: dict[str, tuple[str, FieldInfo]] = {"seed": ("seed", Settings.model_fields["seed"])}
    for section in sections:
        fields = Settings.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        for name, field in fields.items():
            flags["class_names" if name == "classes" else name] = (f"{section}.{name}", field)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def wrapper(config: list[Path] | None = None, **given: Any) -> Any:
            chosen = {key: _plain(name, given[name]) for name, (key, _) in flags.items() if given[name] is not None}
            rest = {name: value for name, value in given.items() if name not in flags}
            base = _recorded(rest["run"]) if "run" in rest else {}
            return command(settings=load_settings(config or [], chosen, base), **rest)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        options = [_option(name, key, field) for name, (key, field) in flags.items()]
        config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        wrapper.__signature__ = inspect.Signature([*keyword, config, *options])  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _option(name: str, key: str, field: FieldInfo) -> inspect.Parameter:
    """A settings field as a command line option, with the field's own type, sentence and default."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kind: Any = kinds[0] if type(None) in get_args(field.annotation) else field.annotation
    if get_origin(kind) is tuple:
        kind = list[str] if name == "prompts" else str
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    flag = {"class_names": "--classes", "prompts": "--prompt"}.get(name, "--" + name.replace("_", "-"))
    option = typer.Option(
        flag,
        metavar={"t_range": "LOW,HIGH", "class_names": "A,B,.."}.get(name),
        help=f"{field.description}" + ("" if default is None else f"  [default: {default}]"),
        rich_help_panel=key.partition(".")[0],
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def _recorded(run: Path) -> dict[str, Any]:
    from .store import open_run

    return without_execution(open_run(run).record["settings"])


def _plain(name: str, value: Any) -> Any:
    return value.split(",") if name in ("class_names", "t_range") else value


# ---- commands --------------------------------------------------------------------------------------------------------


@app.command("inspect")
@settings_flags("data", "model", "compute", "scoring")
def inspect_data(data: DataArg, settings: Settings, quiet: Quiet = False) -> None:
    """Print all that was understood of a data set: classes, names, prompts, sizes, what would be passed over."""
    from .data import open_data
    from .report import describe_data

    opened = open_data(data, settings.data, settings.seed, settings.compute.workers, _progress(quiet))
    print(describe_data(opened, settings))


@app.command()
@settings_flags("data", "model", "compute", "scoring")
def score(data: DataArg, settings: Settings, out: RunOut, strict: Strict = False, quiet: Quiet = False) -> None:
    """Images to stored loss maps: the one expensive pass.  Started again, it goes on where it was."""
    from . import method, session

    opened = session.start(data, out, settings, _progress(quiet))
    method.score(opened)
    _finish(opened, strict, f"next: diffsel select {out} --ipc 10 --out SET")


@app.command()
@settings_flags("compute", "patches", "features")
def embed(run: RunArg, settings: Settings, quiet: Quiet = False) -> None:
    """Stored maps to best patches and their vectors."""
    from . import method, session

    opened = session.resume(run, settings, _progress(quiet))
    method.embed(opened)
    _finish(opened, False, f"next: diffsel select {run} --ipc 10 --out SET")


@app.command()
@settings_flags("compute", "patches", "features", "selection", "assembly")
def select(
    run: RunArg,
    settings: Settings,
    ipc: Ipcs,
    out: Annotated[Path, typer.Option("--out", metavar="SET", help="Folder for the set; several IPCs: SET/ipcN.")],
    only: Classes = None,
    quiet: Quiet = False,
) -> None:
    """A distilled set out of a stored run, for any IPC and any classes.  Patches not embedded yet are, first."""
    from . import method, session

    opened = session.resume(run, settings, _progress(quiet))
    names = [n for part in only or [] for n in ([part] if part in opened.classes else part.split(","))]
    sets = {n: out if len(ipc) == 1 else out / f"ipc{n}" for n in ipc}
    for n, target in sets.items():
        method.check_set(opened, n, target, names)
    method.embed(opened)
    for n, target in sets.items():
        method.select(opened, n, target, names)
    _finish(opened, False, f"the set: {out}")


@app.command()
@settings_flags("data", "model", "compute", "scoring", "patches", "features", "selection", "assembly")
def distill(data: DataArg, settings: Settings, out: RunOut, ipc: Ipcs, strict: Strict = False, quiet: Quiet = False) -> None:
    """Images to distilled sets RUN/ipcN: score, embed and select in one go."""
    from . import method

    opened = method.distill(data, out, {n: out / f"ipc{n}" for n in ipc}, settings, _progress(quiet))
    _finish(opened, strict, "\n".join(f"ipc {n}: {out / f'ipc{n}'}" for n in ipc))


@app.command()
@settings_flags("patches", "features", "selection", "assembly")
def trace(
    run: RunArg,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A row number, or (the end of) an image's path.")],
    settings: Settings,
    set_: Annotated[list[Path] | None, typer.Option("--set", metavar="SET", help="Sets to look in; default: RUN/ipc*.")] = None,
) -> None:
    """One image's whole way: row, map, boxes, vector, cluster and rank, mosaic tile."""
    from . import session
    from .report import trace_image

    print(trace_image(session.resume(run, settings), image, set_ or sorted(run.glob("ipc*"))))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder for the data, the run, the sets.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seeds scenes and noise.")] = 0,
    scenes: Annotated[int, typer.Option(min=40, help="Training scenes per class.")] = 64,
    quiet: Quiet = False,
) -> None:
    """Distil the embedded data set with the embedded checkpoint, and show whether the patches hold the digits."""
    from .demo import run_demo

    print(run_demo(out, seed, scenes, _progress(quiet)))


# ---- around a command ------------------------------------------------------------------------------------------------


def _progress(quiet: bool) -> Any:
    """Bars on the main process only, and only where a person looks."""
    import os
    from functools import partial

    from tqdm import tqdm

    hidden = quiet or os.environ.get("RANK", "0") != "0"
    every = 0.2 if sys.stderr.isatty() else 30  # seconds; a log file wants few lines
    return partial(tqdm, disable=hidden, dynamic_ncols=True, mininterval=every, file=sys.stderr)


def _finish(opened: Session, strict: bool, last: str) -> None:
    """The summary; with ``strict``, exit 1 if an image was passed over."""
    from .store import read_skipped

    if not opened.workers.is_main:
        return
    skipped = read_skipped(opened.run.path)
    facts = {"run": opened.run.path, "classes": len(opened.classes), "images": len(opened.data.rows), **opened.counts}
    width = max(map(len, facts))
    lines = [
        f"{key:<{width}}  {value:,}" if isinstance(value, int) else f"{key:<{width}}  {value}" for key, value in facts.items()
    ]
    print("\n".join([*lines, *(f"note: {text}" for text in opened.notes), last]))
    if skipped:
        where = opened.run.path / "skipped.jsonl"
        first = f"{ascii(skipped[0].path)[1:-1]}: {skipped[0].reason}"  # a file name may hold anything
        print(f"{len(skipped)} image(s) passed over, listed in {where}; the first: {first}", file=sys.stderr)
    if skipped and strict:
        raise typer.Exit(1)


def main() -> int:
    """Run the command line; every foreseeable error is one line on stderr and exit code 2."""
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (DiffselError, OSError) as error:  # OSError: no space, no permission; it names the file
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
