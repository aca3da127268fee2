"""Settings as command line flags, and what every command shares: progress bars and the closing summary."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from ..machine.progress import Progress, progress
from ..machine.terminal import shown
from ..settings.errors import DiffselError
from ..settings.presets import presets
from ..settings.settings import SECTIONS, Settings, load_settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from ..runs.session import Session

STUDENTS = ("compute.students_at_once",)  # nothing to those who train none
STORING = ("compute.keep_latents", *STUDENTS)  # nor this to those who score nothing
NETWORKS = ("compute.device", "compute.precision", "compute.compile", "compute.workers")  # all that trainings use of it
FLAGS = {
    "data.classes": "class_names",
    "data.config": "data_config",
    "data.revision": "data_revision",
}  # others: the field's name
DataArg = Annotated[str, typer.Argument(metavar="DATA", help="Folder with one folder of images per class, or a data set id.")]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by `diffsel score` or `distill`.")]
Moved = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="Where the images of RUN are now, if not where they were.")
]
RunOut = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for the stored pass; made, or taken up again.")]
Ipcs = Annotated[list[int], typer.Option("--ipc", min=1, help="Images per class; repeat for several sets.")]
Classes = Annotated[list[str] | None, typer.Option("--only", metavar="CLASS", help="Only this class; repeat, or A,B,..")]
Config = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        metavar="YAML|NAME",
        help="Settings file, or the name of a preset (`diffsel configs`); later wins.",
        autocompletion=lambda incomplete: [name for name in presets() if name.startswith(incomplete)],
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if any image was passed over.")]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Only every Nth unit, from I (0 to N - 1) on: shards share RUN, and never meet."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]


def settings_flags(*wanted: str, without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for every ``section`` or ``section.field`` that it uses, and ``settings`` as their outcome.

    A command on a RUN starts from the settings recorded there.
    """
    flags: dict[str, tuple[str, FieldInfo]] = {"seed": ("seed", Settings.model_fields["seed"])}
    for section, fields in _fields(wanted, without):
        for name, field in fields.items():
            flag = FLAGS.get(f"{section}.{name}", name)
            flags[f"{section}_{flag}" if flag in flags else flag] = (f"{section}.{name}", field)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def wrapper(config: list[Path] | None = None, **given: Any) -> Any:
            chosen = {key: _plain(name, given[name]) for name, (key, _) in flags.items() if given[name] is not None}
            rest = {name: value for name, value in given.items() if name not in flags}
            classes = chosen.pop("data.classes", None)
            base = _recorded(Path(rest["run"]), needed=not isinstance(rest["run"], str)) if "run" in rest else {}
            settings = load_settings(config or [], chosen, base)
            if classes:
                chosen["data.classes"] = split_names(classes, _held(str(rest.get("data") or rest.get("run")), settings))
                settings = load_settings(config or [], chosen, base)
            return command(settings=settings, **rest)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
        options = [_option(name, key, field) for name, (key, field) in flags.items()]
        config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        wrapper.__signature__ = inspect.Signature([*keyword, config, *options])  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _fields(wanted: Collection[str], without: Collection[str]) -> Iterator[tuple[str, dict[str, FieldInfo]]]:
    for section in dict.fromkeys(each.partition(".")[0] for each in wanted):
        fields = {f"{section}.{name}": field for name, field in SECTIONS[section].model_fields.items()}
        kept = {key: field for key, field in fields.items() if {section, key} & {*wanted} and key not in without}
        yield section, {key.partition(".")[2]: field for key, field in kept.items()}


def _option(name: str, key: str, field: FieldInfo) -> inspect.Parameter:
    """A settings field as a command line option, with the field's own type, sentence and default."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    kind: Any = kinds[0] if type(None) in get_args(field.annotation) else field.annotation
    if get_origin(kind) is tuple or name == "rivals":
        kind = list[str] if name in ("prompts", "class_names") else str
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    flag = {"class_names": "--classes", "prompts": "--prompt", "prompt": "--prompt-index"}.get(
        name, "--" + name.replace("_", "-")
    )
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        metavar={"t_range": "LOW,HIGH", "log_snr": "HIGH,LOW", "class_names": "A,B,..", "rivals": "K|A,B,.."}.get(name),
        help=f"{field.description}" + ("" if default is None else f"  [default: {default}]"),
        rich_help_panel=key.partition(".")[0] if "." in key else None,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def _recorded(run: Path, needed: bool) -> dict[str, Any]:
    """The settings of a RUN; nothing where it is a data set and that will do."""
    from ..runs.record import read_record, recorded_settings

    if not needed and not (run / "run.yaml").exists():
        return {}
    return recorded_settings(read_record(run))


def _held(source: str, settings: Settings) -> list[str]:
    """The classes of a RUN or data set; none where it cannot be opened, which is told when it is."""
    from ..data.images import class_names
    from ..runs.record import read_record

    try:
        if (Path(source) / "run.yaml").exists():
            return [entry["folder"] for entry in read_record(Path(source))["classes"]]
        return class_names(source, settings.data)
    except (DiffselError, KeyError, TypeError):
        return []


def split_names(only: list[str] | None, known: Collection[str]) -> list[str]:
    """``--only A,B --only C``: names may be joined by commas, unless a class is called so; spelled as they are known."""
    from ..data.classes import spelled

    names = []
    for part in only or []:
        pieces = part.split(",")
        while pieces:
            for count in range(len(pieces), 0, -1):  # the longest name that there is
                name = ",".join(pieces[:count])
                found = spelled([name, name.strip()], known)
                if count == 1 or any(found):
                    names.append(found[0] or found[1] or name)
                    del pieces[:count]
                    break
    return names


def _plain(name: str, value: Any) -> Any:
    if name == "rivals" and value.isdecimal():
        return int(value)
    return value.split(",") if name in ("t_range", "log_snr", "rivals") else value


# ---- around a command ------------------------------------------------------------------------------------------------


def at_work(quiet: bool) -> Progress:
    """Progress of a command that needs a network; first of loading PyTorch, which would be seconds of silence."""
    bars = progress(quiet)
    with bars(total=1, desc="loading PyTorch", unit="library", leave=False) as bar:
        import_module("..machine.device", __package__)
        bar.update()
    return bars


def finish(opened: Session, strict: bool, last: str) -> None:
    """The summary; with ``strict``, exit 1 if an image was passed over."""
    from ..runs.index import read_skipped

    if not opened.workers.is_main:
        return
    skipped = read_skipped(opened.run.path)
    facts = {"run": opened.run.path, "classes": len(opened.run.classes), "images": len(opened.data.rows), **opened.counts}
    width = max(map(len, facts))
    lines = [
        f"{key:<{width}}  {value:,}" if isinstance(value, int) else f"{key:<{width}}  {value}" for key, value in facts.items()
    ]
    print("\n".join([*lines, *(f"note: {text}" for text in opened.notes), last]))
    if skipped:
        where = opened.run.path / "skipped.jsonl"
        first = f"{shown(skipped[0].path)}: {skipped[0].reason}"  # a file name may hold anything
        print(f"{len(skipped)} image(s) passed over, listed in {where}; the first: {first}", file=sys.stderr)
    if skipped and strict:
        raise typer.Exit(1)
