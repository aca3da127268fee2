"""The commands that hand over: export, rebuild, apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from ..machine.addresses import is_address
from ..machine.files import beside
from ..machine.progress import progress
from ..settings.errors import ConfigError, StoreError
from ..settings.settings import Settings
from .flags import Moved, Quiet, settings_flags

if TYPE_CHECKING:
    from ..sets.scores import Scores

OfSet = Literal["hf", "webdataset", "fiftyone", "csv", "list"]
OfRun = Literal["parquet", "datasets", "fiftyone", "cleanlab"]
ListArg = Annotated[Path, typer.Argument(metavar="LIST", help="A SET, `export --to list`, or the metadata.jsonl of either.")]
Sources = Annotated[str, typer.Option("--data", metavar="DATA", help="The images that the set was made from.")]


def register(app: typer.Typer) -> None:
    for command in (export, rebuild, apply):
        app.command()(command)


@settings_flags("patches", "features", "selection")
def export(
    run: Annotated[str, typer.Argument(metavar="SET|RUN", help="A distilled set, or a scored run.")],
    settings: Settings,
    to: Annotated[
        Literal["hf", "webdataset", "fiftyone", "csv", "list", "parquet", "datasets", "cleanlab"],
        typer.Option(
            "--to", help="Of a SET: hf, webdataset, fiftyone, csv, list; of a RUN: parquet, datasets, fiftyone, cleanlab."
        ),
    ],
    out: Annotated[
        str | None, typer.Option("--out", metavar="OUT", help="Folder or address; default: SET-FORM, beside it.")
    ] = None,
    source: Annotated[str, typer.Option("--source", metavar="TEXT", help="For a SET's card: whose images these are.")] = "",
    vectors: Annotated[bool, typer.Option("--vectors", help="Of a RUN: the vector of each best patch too.")] = False,
    moved: Moved = None,
    push: Annotated[str | None, typer.Option("--push", metavar="HUB_ID", help="Upload it there too (`hf auth login`).")] = None,
    public: Annotated[bool, typer.Option("--public", help="For --push: a public repository.")] = False,
    quiet: Quiet = False,
) -> None:
    """A set, or the scores of every image of a run, in the form that another tool reads, with a filled-in card."""
    from ..sets.export import check_login, export_set, push_to_hub
    from ..sets.handover import export_scores

    if not Path(run).exists():
        raise StoreError(f"{run}: no such folder; give a run or a set")
    scored = (Path(run) / "run.yaml").exists()
    forms = get_args(OfRun if scored else OfSet)
    if to not in forms:
        raise ConfigError(f"--to {to}: {run} is a {'run' if scored else 'set'}, which can be {', '.join(forms)}")
    target = out or str(beside(Path(run), to))
    if push and is_address(target):
        raise ConfigError(f"--push uploads a folder, but --out is {target}; give one of the two")
    if push:
        print(f"logged in to the hub as {check_login(push)}")
    if scored:
        made = export_scores(_scores(Path(run), settings, vectors or to == "cleanlab", moved), to, target, progress(quiet))  # type: ignore[arg-type]
    else:
        made = export_set(Path(run), to, target, source)  # type: ignore[arg-type]
    print(f"{'written' if made else 'there already'}: {target}")
    if push:
        print(f"uploaded: {push_to_hub(target, push, private=not public)}")


def _scores(path: Path, settings: Settings, vectors: bool, moved: str | None) -> Scores:
    """Clusters are those of the largest set in RUN."""
    from ..runs.run import open_run
    from ..sets.opening import read_set
    from ..sets.scores import Scores
    from ..sets.selection import patches_needed

    run = open_run(path, settings, moved=moved)
    made = [read_set(file.parent) for file in sorted(path.glob("*/set.yaml"))]
    need = patches_needed(settings, [(found.record["ipc"], found.factor) for found in made])
    if run.nats is None:
        print("note: no nats: the run does not say the unit of its scores, and its model is not on this machine")
    return Scores(run, need, vectors)


@settings_flags("data")
def rebuild(
    listed: ListArg,
    settings: Settings,
    data: Sources,
    out: Annotated[Path | None, typer.Option("--out", metavar="SET", help="Default: LIST-rebuilt, beside it.")] = None,
    quiet: Quiet = False,
) -> None:
    """A set made again from its list and the source images: publish the list, not the pixels."""
    from ..sets.lists import open_list
    from ..sets.lists import rebuild as make

    found = open_list(listed)
    target = out or beside(found.path, "rebuilt")
    other = make(found, data, settings.data, target, progress(quiet))
    print(f"the set: {target}")
    if other:
        print(f"note: {len(other)} files have other bytes than {found.path} tells, such as {other[0]} (another Pillow?)")


@settings_flags("data")
def apply(
    listed: ListArg,
    settings: Settings,
    data: Sources,
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="New folder, with one folder per class.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copies of the images instead of links to them.")] = False,
) -> None:
    """Only those source images that a set was made from, whole: a filter of DATA, as links or copies."""
    from ..sets import lists

    count = lists.apply(lists.open_list(listed), data, settings.data, out, copy)
    print(f"{count} images: {out}")
