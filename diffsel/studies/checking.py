"""Is what lies in a folder of diffsel's what it should be, and what makes a damaged file again?  For `diffsel check`."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.results import read_result
from ..machine.formats import read_yaml
from ..machine.tensors import read_unit
from ..runs.index import read_index, read_skipped
from ..runs.run import open_run, read_record
from ..sets.exported import EXPORT, listed
from ..sets.opening import damaged_pictures, read_set
from ..sets.record import SUMS, damaged_files, read_sums
from ..settings.errors import ConfigError, StoreError
from ..settings.settings import fingerprint


@dataclass(frozen=True)
class Damage:
    """A file that was looked at, and what is wrong with it (None: whole).

    ``remake``: what makes it again once it is removed, a whole sentence; empty where nothing does, then ``way`` tells why.
    """

    file: Path
    reason: str | None = None
    remake: str = ""
    way: str = ""


def check_folder(path: Path) -> Iterator[Damage]:
    """Every file of a RUN, SET, LABELS, TEACHER, EXPORT or RESULTS.  Raises StoreError for another folder."""
    kinds: dict[str, Callable[[Path], Iterator[Damage]]] = {
        "run.yaml": _run,
        EXPORT: _export,  # before a set, whose list it may hold
        "set.yaml": _set,
        "labels.yaml": _labels,
        "teacher.yaml": _teacher,
    }
    for name, check in kinds.items():
        if os.path.lexists(path / name):
            try:
                yield from check(path)
            except (StoreError, ConfigError) as error:  # its record tells nothing, so nothing can be told of the rest
                yield Damage(path / name, str(error).removeprefix(f"{path / name} "))
            return
    if any(path.glob("*/seed-*.json")):
        yield from _results(path)
        return
    read_record(path)  # tells what this folder is instead
    raise StoreError(f"{path} holds none of {', '.join(kinds)}: not a folder that diffsel wrote")


def not_compared(path: Path) -> str:
    """Whose contents nobody knows: a SET, EXPORT or TEACHER of an early version, or without its sums; empty for any other
    folder, and for a whole one."""
    export, made = (path / EXPORT).is_file(), any((path / name).is_file() for name in ("set.yaml", "teacher.yaml"))
    sums = listed(path) if export else read_sums(path) if made else True
    return "" if sums else f"{path} has no sums of its files: they are there, but their contents were compared with nothing"


def how_far(path: Path) -> Iterator[str]:
    """How far a folder, whole otherwise, has come: what a RUN still lacks, a line for each stage that is not at its end; how
    many epochs LABELS have and how many students RESULTS, for nobody knows how many they should be."""
    if epochs := len([*path.glob("epoch-*.safetensors")]):
        yield f"{path}: labels of {epochs} epochs"
    if seeds := Counter(file.parent for file in path.glob("*/seed-*.json")):
        counts = " or ".join(map(str, sorted(set(seeds.values()))))
        yield f"{path}: {seeds.total()} students, {counts} to a cell"
    if not (path / "run.yaml").is_file():
        return
    run = open_run(path)
    folders = {"maps": path / "maps"} | {f"features/{each.name}": each for each in sorted((path / "features").glob("*/"))}
    for name, folder in folders.items():
        if lost := [unit.name for unit in run.units if not (folder / f"{unit.name}.safetensors").exists()]:
            told = f"{len(lost)} of {len(run.units)} units are not there (yet), such as {lost[0]}"
            yield f"{path / name}: {told}; the next start makes them"


def _reason(read: Callable[[], object]) -> str | None:
    """Why a file cannot be read, without what its message says of the way out."""
    try:
        read()
    except (StoreError, ConfigError, ValueError, OSError) as error:
        return str(error).partition("; ")[0]
    return None


def _run(path: Path) -> Iterator[Damage]:
    record = read_record(path)
    run, told = shlex.quote(str(path)), shlex.quote(str(path / "run.yaml"))
    again = f"`diffsel score {shlex.quote(record['data'])} --out {run} --config {told}"
    index, skipped = path / "index.parquet", path / "skipped.jsonl"
    lost = _reason(lambda: read_index(path))
    yield Damage(index, lost, f"{again}` makes {index} again")
    unlisted = _reason(lambda: read_skipped(path)) if skipped.is_file() else "is not there"
    yield Damage(skipped, unlisted, f"{again}` makes {skipped} again")
    if lost or unlisted:
        return  # what a unit should hold is not known then
    for file, reason in open_run(path).damaged():
        part, key = file.relative_to(path).parts[:2]
        settings = path / part / key / "settings.yaml"
        ways = {
            "maps": f"{again}` makes maps again",
            "latents": f"{again} --keep-latents` makes latents again",
            "features": f"`diffsel embed {run} --config {shlex.quote(str(settings))}` makes these vectors again",
            "prompts": f"`diffsel prompts {run}` with the prompts in {settings} makes these maps again",
            "rivals": f"{again} --rivals` with the rivals in {settings} makes these maps again",
        }
        if file == settings:
            ways |= {"features": f"`diffsel embed {run}` with the settings of {key} writes it again"}
        elif part == "features" and "prompt" in read_yaml(settings):
            ways |= {"features": f"`diffsel prompts {run}` with the prompt of {settings} makes these vectors again"}
        yield Damage(file, reason, ways[part])


def _set(path: Path) -> Iterator[Damage]:
    found = read_set(path)
    wrong = dict(damaged_pictures(found))
    way = f"remove {path}, and select it anew with the settings in set.yaml"
    for file in sorted({*(path / picture.file for picture in found.pictures), *wrong}):
        yield Damage(file, wrong.get(file), way=way)


def _labels(path: Path) -> Iterator[Damage]:
    mark = fingerprint(read_yaml(record := path / "labels.yaml"))
    remake = "`diffsel relabel`, started as before, writes lost labels again"
    files = sorted([*path.glob("epoch-*.safetensors"), *path.glob("fixed.safetensors")])
    wrong = {file: reason for file in files if (reason := _label_damage(file, mark))}
    if files and len(wrong) == len(files) and all("other settings" in reason for reason in wrong.values()):
        way = f"put a whole copy of labels.yaml back, or delete {path} and label anew"  # the labels themselves may be whole
        yield Damage(record, "does not say the settings of the labels beside it", way=way)
        return
    epochs = [int(file.stem[6:]) for file in files if file.stem != "fixed"]
    lost = {path / f"epoch-{epoch:03d}.safetensors" for epoch in range(max(epochs, default=0))} - set(files)
    for file in sorted([*files, *lost]):
        yield Damage(file, "is not there" if file in lost else wrong.get(file), remake)


def _label_damage(file: Path, mark: str) -> str | None:
    reason = _reason(lambda: read_unit(file, mark))
    if not reason and file.stem != "fixed" and f"epoch-{read_unit(file, mark)[1].get('epoch'):03d}" != file.stem:
        return "holds the labels of another epoch"
    return reason


def _teacher(path: Path) -> Iterator[Damage]:
    way, told = f"train the teacher anew, into another folder than {path}", dict(_teacher_files(path))
    for file, reason in damaged_files(path, read_sums(path), SUMS):  # whole ones of another teacher, too
        told[file] = told.get(file) or reason
    for file, wrong in sorted(told.items()):
        yield Damage(file, wrong, way=way)


def _teacher_files(path: Path) -> Iterator[tuple[Path, str | None]]:
    """The files that a teacher has, each against what it says of itself."""
    from ..evaluation.checkpoints import read_checkpoint, read_metrics, read_state  # brings torch

    classes = tuple(read_yaml(path / "teacher.yaml").get("classes", ()))
    for name in ("best.safetensors", "last.safetensors"):
        file = path / name
        reason = _reason(lambda file=file: read_checkpoint(str(file)))  # type: ignore[misc]
        if not reason and read_checkpoint(str(file)).classes != classes:
            reason = "has other classes than teacher.yaml"
        yield file, reason
    metrics, state = path / "metrics.jsonl", path / "state.safetensors"
    lost = _reason(lambda: read_state(state)) if state.exists() else None
    epochs = int(read_state(state)["epoch"]) if state.exists() and not lost else 0
    yield metrics, _reason(lambda: read_metrics(path, epochs))
    yield state, lost
    for file in sorted((path / "records").glob("*.safetensors")):
        yield file, _reason(lambda file=file: read_unit(file, "records"))  # type: ignore[misc]


def _export(path: Path) -> Iterator[Damage]:
    wrong = dict(damaged_files(path, files := listed(path), EXPORT))
    for file in sorted(path / name for name in files):
        yield Damage(file, wrong.get(file), way=f"remove {path}, and export it anew")


def _results(path: Path) -> Iterator[Damage]:
    for file in sorted(path.glob("*/seed-*.json")):
        reason = _reason(lambda file=file: read_result(file))  # type: ignore[misc]
        yield Damage(file, reason, "`diffsel evaluate`, started as before, trains lost students again")
