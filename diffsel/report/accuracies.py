"""The accuracies that a report shows: of its own sets, and of others that lie beside them.

A folder of results may hold students of many sets, and of one that was made anew since at the same place; a result belongs
to a set where it was trained on that set's very images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from ..evaluation.results import Line, line_of, read_result
from ..machine.formats import peek
from ..machine.progress import Progress, quiet
from ..sets.opening import DistilledSet, open_set, title
from ..settings.errors import ConfigError, DataError, StoreError
from .charts import Axis


@dataclass(frozen=True)
class Accuracies:
    """Each best first: of the report's sets, and of others beside them; and how many cells are of no set that is here."""

    own: list[Line]
    beside: list[Line]
    strangers: int
    best: Line | None  # of the report's sets by diffsel, or of baselines alone

    @property
    def axis(self) -> Axis | None:
        """Of the top-1 of all lines with their intervals, in percent; None where no student was measured."""
        found = [(line.top1.mean, line.top1.ci95 or 0.0) for line in self.lines if line.top1]
        if not found:
            return None
        low, high = min(mean - half for mean, half in found), max(mean + half for mean, half in found)
        more = 0.08 * (high - low) + 0.5
        return Axis.of(max(0.0, low - more), min(100.0, high + more), 4)

    @property
    def lines(self) -> list[Line]:
        return [*self.own, *self.beside]

    @property
    def leaks(self) -> list[tuple[str, int, bool]]:
        """Sets that were made from images of these validation images: of how many, and whether so in all lines of theirs."""
        found: dict[str, int] = {}
        for line in self.lines:
            if line.leaked:
                found[line.set] = max(line.leaked, found.get(line.set, 0))
        return [(name, most, all(line.leaked for line in self.lines if line.set == name)) for name, most in found.items()]

    @property
    def groups(self) -> list[tuple[str, list[Line]]]:
        """Lines that may be compared with each other, under a heading each; first the report's own sets."""
        beside = [(f"sets beside, not in this report: {name}", lines) for name, lines in grouped(self.beside)]
        return grouped(self.own) + beside

    @property
    def shared(self) -> list[Line]:
        """Those of the report's sets that most of them have: one kind of student, so that they may be compared."""
        return grouped(self.own)[0][1] if self.own else []


def grouped(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Lines by what must be equal for a comparison: student, teacher, protocol, precision; that of most sets first.

    Within a group they stay in order.
    """
    groups: dict[str, list[Line]] = {}
    for line in lines:
        labels = f"labels of {line.labelled_by}" if line.teacher else "no teacher"
        groups.setdefault(f"{line.student}, {labels}, {line.protocol}, {line.precision}", []).append(line)
    return sorted(groups.items(), key=lambda group: -len({line.set for line in group[1]}))


def result_folders(sets: Sequence[DistilledSet], named: Sequence[Path] = ()) -> list[Path]:
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


def accuracies(folders: Sequence[Path], sets: Sequence[DistilledSet], progress: Progress = quiet) -> Accuracies:
    """What the results in ``folders`` say of ``sets``, and of the sets that lie beside those.

    Raises StoreError for a damaged result.
    """
    cells = [cell for root in folders for cell in sorted(root.iterdir()) if cell.is_dir()]
    results = [[read_result(file) for file in sorted(cell.glob("seed-*.json"))] for cell in cells]
    left = sorted((line_of(found) for found in results if found), key=lambda line: -line.top1.mean if line.top1 else 0)
    own, left = _of([shown.path for shown in sets], left, progress)
    paths = {shown.path.resolve() for shown in sets}
    beside = {file.parent for path in paths for file in sorted(path.parent.glob("*/set.yaml"))} - paths
    others, left = _of(sorted(beside), left, progress)
    diffsels = [shown.name for shown in sets if "run" in shown.record] or [shown.name for shown in sets]
    best = next((line for line in own if line.top1 and line.set in diffsels), None)
    return Accuracies(own, others, len(left), best)


def _of(paths: Sequence[Path], lines: Sequence[Line], progress: Progress) -> tuple[list[Line], list[Line]]:
    """The lines that are of these sets, with the set's name, and the others.

    Where a line is of no whole set, it may be of a set's first images.
    """
    found: dict[int, Line] = {}
    settled: set[int] = set()  # of a whole set
    for path in paths:
        classes = peek(path / "set.yaml").get("classes")
        left = [i for i, line in enumerate(lines) if i not in settled and line.trained_on["classes"] == classes]
        opened = _opened(path, progress) if left else None
        if opened is None:
            continue
        digest = cache(partial(_digest, opened))
        for i in left:
            told = lines[i].trained_on
            if told["set"] != digest(told["images"], told["protocol"]["size"]):
                continue
            if told["images"] == opened.ipc * len(opened.names):
                settled.add(i)
                found[i] = replace(lines[i], set=title(path))
            elif i not in found:
                found[i] = replace(lines[i], set=f"{title(path)}, first {told['images'] // len(opened.names)} a class")
    return [found[i] for i in sorted(found)], [line for i, line in enumerate(lines) if i not in found]


def _opened(path: Path, progress: Progress) -> DistilledSet | None:
    """None for a damaged set: the report says of it what it can, and no accuracy."""
    try:
        return open_set(path, progress=progress)
    except (DataError, StoreError):
        return None


def _digest(found: DistilledSet, images: int, size: int | None) -> str | None:
    """As students trained on so many images of this set know it; None where it has fewer."""
    each, rest = divmod(images, len(found.names))
    ipc = None if rest else each
    return None if ipc and ipc > found.ipc else found.album(ipc, size or found.side).digest
