"""The accuracies that a report shows: of its own sets, and of others that lie beside them.

A folder of results may hold students of many sets, and of one that was made anew since at the same place; a result belongs
to a set where it was trained on that set's very images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..data.albums import DistilledSet, open_set, set_pictures
from ..evaluation.students import Spread, spread
from ..machine.formats import read_yaml
from ..machine.progress import Progress, quiet
from ..settings.errors import ConfigError, DataError, StoreError
from .classes import ShownSet


@dataclass(frozen=True)
class AccuracyLine:
    """Students of one cell, as their JSON files tell; ``failed`` maps a seed to its reason."""

    name: str
    teacher: str
    student: str
    protocol: str
    precision: str
    top1: Spread | None
    top5: Spread | None
    best: Spread | None
    last: Spread | None
    failed: Mapping[int, str]
    seconds: float
    trained_on: Mapping[str, Any] = field(repr=False)  # what the results tell of it
    set: str = ""  # name of the set that it is of


@dataclass(frozen=True)
class Accuracies:
    """Each best first: of the report's sets, and of others beside them; and how many cells are of no set that is here."""

    own: list[AccuracyLine]
    beside: list[AccuracyLine]
    strangers: int
    best: AccuracyLine | None  # of the report's sets by diffsel, or of baselines alone

    @property
    def lines(self) -> list[AccuracyLine]:
        return [*self.own, *self.beside]


def result_folders(sets: Sequence[ShownSet], named: Sequence[Path] = ()) -> list[Path]:
    """Where results of these sets lie: SET-results, a `results` folder beside (or for OUT/sets/SET, above), and those named.

    Raises ConfigError for a named folder that is not there.
    """
    missing = [path for path in named if not path.is_dir()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such folder of results (SET-results, written by `diffsel evaluate`)")
    usual = []
    for path in (shown.path.resolve() for shown in sets):
        usual += [path.with_name(path.name + "-results"), path.parent / "results"]
        usual += [path.parent.parent / "results"] if path.parent.name == "sets" else []
    return list(dict.fromkeys([*(path for path in usual if path.is_dir()), *(path.resolve() for path in named)]))


def accuracies(folders: Sequence[Path], sets: Sequence[ShownSet], progress: Progress = quiet) -> Accuracies:
    """What the results in ``folders`` say of ``sets``, and of the sets that lie beside those.

    Raises StoreError for a damaged result.
    """
    cells = [cell for root in folders for cell in sorted(root.iterdir()) if cell.is_dir()]
    results = [[_result(file) for file in sorted(cell.glob("seed-*.json"))] for cell in cells]
    left = sorted((_line(found) for found in results if found), key=lambda line: -line.top1.mean if line.top1 else 0)
    own, left = _of([shown.path for shown in sets], left, progress)
    paths = {shown.path.resolve() for shown in sets}
    beside = {file.parent for path in paths for file in sorted(path.parent.glob("*/set.yaml"))} - paths
    others, left = _of(sorted(beside), left, progress)
    diffsels = [shown.name for shown in sets if "run" in shown.record] or [shown.name for shown in sets]
    best = next((line for line in own if line.top1 and line.set in diffsels), None)
    return Accuracies(own, others, len(left), best)


def _of(
    paths: Sequence[Path], lines: Sequence[AccuracyLine], progress: Progress
) -> tuple[list[AccuracyLine], list[AccuracyLine]]:
    """The lines that are of these sets, with the set's name, and the others."""
    found: dict[int, AccuracyLine] = {}
    for path in paths:
        classes = read_yaml(path / "set.yaml").get("classes")
        left = [i for i, line in enumerate(lines) if i not in found and line.trained_on["classes"] == classes]
        opened = _opened(path, progress) if left else None
        if opened is None:
            continue
        digest = cache(partial(_digest, opened))
        for i in left:
            told = lines[i].trained_on
            if told["set"] == digest(told["images"], told["protocol"]["size"]):
                found[i] = replace(lines[i], set=path.name)
    return [found[i] for i in sorted(found)], [line for i, line in enumerate(lines) if i not in found]


def _opened(path: Path, progress: Progress) -> DistilledSet | None:
    """None for a damaged set: the report says of it what it can, and no accuracy."""
    try:
        return open_set(path, progress=progress)
    except DataError:
        return None


def _digest(found: DistilledSet, images: int, size: int | None) -> str | None:
    """As students trained on so many images of this set know it; None where it has fewer."""
    each, rest = divmod(images, len(found.names))
    ipc = None if rest else each
    return None if ipc and ipc > found.ipc else set_pictures(found, ipc, size or found.side).digest


def _result(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        _ = result["cell"], result["protocol"], result["report"], result["precision"]
        identity = result["identity"]
        _ = identity["student"], identity["set"], identity["images"], identity["classes"], identity["protocol"]["size"]
        return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} is damaged ({type(error).__name__}: {error}); delete it, and evaluate again") from None


def _line(results: Sequence[Mapping[str, Any]]) -> AccuracyLine:
    first, good = results[0], [result for result in results if "failed" not in result]
    identity, report = first["identity"], first["report"]
    columns = [(report, "top1"), (report, "top5"), ("best", "top1"), ("last", "top1")]
    top1, top5, best, last = (spread([one[epoch][key] for one in good]) if good else None for epoch, key in columns)
    return AccuracyLine(
        name=first["cell"],
        teacher=identity["teacher"]["network"] if identity["teacher"] else "",
        student=identity["student"],
        protocol=first["protocol"],
        precision=first["precision"],
        top1=top1,
        top5=top5,
        best=best,
        last=last,
        failed={int(one["seed"]): str(one["failed"]["reason"]) for one in results if "failed" in one},
        seconds=sum(float(one["seconds"]) for one in good),
        trained_on=identity,
    )
