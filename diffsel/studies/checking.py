"""Is what lies in a folder of diffsel's what it should be, and what makes a damaged file again?  For `diffsel check`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..machine.formats import read_yaml
from ..machine.tensors import read_unit
from ..runs.index import read_index, read_skipped
from ..runs.run import open_run, read_record
from ..sets.opening import damaged_pictures, read_set
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
    """Every file of a RUN, SET, LABELS or TEACHER.  Raises StoreError for another folder, or a record that says nothing."""
    kinds: dict[str, Callable[[Path], Iterator[Damage]]] = {
        "run.yaml": _run,
        "set.yaml": _set,
        "labels.yaml": _labels,
        "teacher.yaml": _teacher,
    }
    for name, check in kinds.items():
        if (path / name).exists():
            return check(path)
    read_record(path)  # tells what this folder is instead
    raise StoreError(f"{path} holds none of {', '.join(kinds)}: not a folder that diffsel wrote")


def _reason(read: Callable[[], object]) -> str | None:
    """Why a file cannot be read, without what its message says of the way out."""
    try:
        read()
    except (StoreError, ConfigError, ValueError, OSError) as error:
        return str(error).partition("; ")[0]
    return None


def _run(path: Path) -> Iterator[Damage]:
    record = read_record(path)
    again = f"`diffsel score {record['data']} --out {path} --config {path / 'run.yaml'}"
    index, skipped = path / "index.parquet", path / "skipped.jsonl"
    lost = _reason(lambda: read_index(path))
    yield Damage(index, lost, f"{again}` makes {index} again")
    yield Damage(skipped, _reason(lambda: read_skipped(path)), f"{again}` makes {skipped} again")
    if lost:
        return  # what a unit should hold is not known then
    for file, reason in open_run(path).damaged():
        part, key = file.relative_to(path).parts[:2]
        settings = path / part / key / "settings.yaml"
        ways = {
            "maps": f"{again}` makes maps again",
            "latents": f"{again} --keep-latents` makes latents again",
            "features": f"`diffsel embed {path} --config {settings}` makes these vectors again",
            "prompts": f"`diffsel prompts {path}` with the prompts in {settings} makes these maps again",
        }
        if file == settings:
            ways |= {"features": f"`diffsel embed {path}` with the settings of {key} writes it again"}
        yield Damage(file, reason, ways[part])


def _set(path: Path) -> Iterator[Damage]:
    found = read_set(path)
    wrong = dict(damaged_pictures(found))
    way = f"remove {path}, and select it anew with the settings in set.yaml"
    for file in sorted({*(path / picture.file for picture in found.pictures), *wrong}):
        yield Damage(file, wrong.get(file), way=way)


def _labels(path: Path) -> Iterator[Damage]:
    mark = fingerprint(read_yaml(path / "labels.yaml"))
    for file in sorted(path.glob("epoch-*.safetensors")):
        reason = _reason(lambda file=file: read_unit(file, mark))  # type: ignore[misc]
        if not reason and f"epoch-{read_unit(file, mark)[1]['epoch']:03d}" != file.stem:
            reason = "holds the labels of another epoch"
        yield Damage(file, reason, "`diffsel relabel`, started as before, writes lost epochs again")


def _teacher(path: Path) -> Iterator[Damage]:
    from ..evaluation.checkpoints import read_checkpoint  # brings torch

    classes = tuple(read_yaml(path / "teacher.yaml").get("classes", ()))
    for name in ("best.safetensors", "last.safetensors"):
        file = path / name
        reason = _reason(lambda file=file: read_checkpoint(str(file)))  # type: ignore[misc]
        if not reason and read_checkpoint(str(file)).classes != classes:
            reason = "has other classes than teacher.yaml"
        yield Damage(file, reason, way=f"train the teacher anew, into another folder than {path}")
    metrics = path / "metrics.jsonl"
    reason = _reason(lambda: [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()])
    yield Damage(metrics, reason, way=f"train the teacher anew, into another folder than {path}")
