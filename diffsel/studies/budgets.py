"""Accuracy against compute: what sets give at several lengths of training, beside what they cost to make and to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..evaluation.results import Line
from ..evaluation.storing import stored_bytes
from ..machine.files import write_atomically
from ..report.opening import clock, run_of, size, stages
from ..sets.opening import DistilledSet
from ..settings.errors import ConfigError
from .tables import Value, picture


def read_budgets(text: str) -> tuple[float, ...]:
    """ "0.25,0.5,1" -> shares of the protocol's epochs, in order.  Raises ConfigError."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not 0 < found[0] <= found[-1] < 1000:
        raise ConfigError(f"--budgets {text}: expected shares of the protocol's epochs above 0, such as 0.25,0.5,1")
    return found


def columns(lines: Sequence[Line], sets: Sequence[DistilledSet]) -> dict[str, list[str]]:
    """What a table says of compute, a line each: forwards and clock time to make the set, bytes of its pixels and labels.

    Pixels count 3 bytes each, labels as they are stored (`relabel`; online ones as they would be).
    """
    made = {id(found): construction(found) for found in sets}
    costs = [(*made[id(found)], *map(size, bytes_of(line, found.side))) for line, found in zip(lines, sets, strict=True)]
    return {head: [cost[k] for cost in costs] for k, head in enumerate(("forwards", "made in", "pixels", "labels"))}


def construction(found: DistilledSet) -> tuple[str, str]:
    """Forwards and clock time (pauses included) that a set took; "-" where no count is kept, or its pass is not at hand."""
    if found.method == "random":
        return "0", "0 s"
    if found.method == "rded":
        told = found.record["baseline"]
        return f"{told['pool'] * told['crops'] * len(found.names):,} of a teacher", "-"
    run = (run_of(found.path, found.record) or run_of(found.path.parent, found.record)) if "run" in found.record else None
    if run is None:
        return "-", "-"
    seconds = [stage.seconds for stage in stages(run)]
    return f"{run.forwards_taken():,}", clock(None if None in seconds else sum(filter(None, seconds)))


def bytes_of(line: Line, side: int) -> tuple[int, int]:
    """Of the pixels of a set of pictures of ``side`` pixels, and of the labels that its students saw."""
    told, classes = line.trained_on, len(line.trained_on["classes"])
    images, protocol = told["images"], told["protocol"]
    online = stored_bytes(images, classes, protocol["epochs"], None, protocol["resolved"]["factor"])
    return images * 3 * side**2, {"hard": 0, "fixed": 2 * images * classes}.get(line.labels, online)


def write_curves(lines: Sequence[Line], out: Path) -> str:
    """OUT/budgets.png: accuracy over the training images seen, a curve for each set and student; a line that says so."""
    if find_spec("matplotlib") is None:
        return "picture: none (it needs matplotlib: pip install 'diffsel[pipelines]')"
    values: Mapping[tuple[str, str], Value] = {
        (str(line.seen), f"{line.name}, {line.student}"): Value.of(line.top1)
        for line in sorted(lines, key=lambda line: line.seen)
        if line.top1
    }
    page = picture("Accuracy over training images seen", "lines", list(values), values, {}, "top-1, percent")
    write_atomically(out / "budgets.png", page)
    return f"picture: {out / 'budgets.png'}"
