"""A unit of work: at most 256 images of one class, one file in each part of a run.  Is a file that unit's?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..data.rows import Row
from ..machine.formats import read_yaml
from ..machine.tensors import RECOVER, read_extra, read_unit
from ..scoring.patches import Box
from ..settings.errors import StoreError
from ..settings.settings import fingerprint

Means = tuple[Row, float, float]  # an image, its mean of D, its mean of G
Held = tuple[dict[str, np.ndarray], dict[str, Any]]  # a unit's tensors, and what its file says of itself
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """At most 256 rows of one class: what one process does in one go, and one file."""

    name: str
    label: str
    rows: Sequence[Row]


class Placed(NamedTuple):
    """A patch: its image, where it lies in it, its score, and the means of D and of G inside it."""

    row: Row
    box: Box
    score: float
    differential: float
    gap: float


def rows_of(tensors: Mapping[str, Any]) -> list[int]:
    """The rows that the names of a unit's tensors speak of: ``12.gap``, or ``12`` alone."""
    return sorted({int(name.partition(".")[0]) for name in tensors})


def check_unit(file: Path, unit: Unit, extra: Mapping[str, Any], rows: Collection[int], whole: int | None = None) -> None:
    """Refuse a whole file that is another unit's: a copy under this name, or a swap.

    ``whole``: how many of the unit's images were passed over, where the file must speak of all others.  Raises StoreError.
    """
    asked = {row.row for row in unit.rows}
    short = whole is not None and len(set(rows)) + whole != len(asked)
    if extra.get("label") != unit.label or not asked.issuperset(rows) or short:
        raise StoreError(f"{file} holds other images than unit {unit.name}; {RECOVER}")


def damage(file: Path, mark: str, unit: Unit | None) -> str | None:
    """What is wrong with a file of ``unit``, read to its last byte; None: whole."""
    try:
        tensors, extra = read_unit(file, mark)
        if unit is None:
            return "belongs to no unit of this run"
        rows = extra["rows"] if "rows" in extra else tensors["row"].tolist() if "row" in tensors else rows_of(tensors)
        check_unit(file, unit, extra, rows, len(extra["skipped"]) if "skipped" in extra else None)
    except (StoreError, KeyError, ValueError) as error:
        return str(error).removeprefix(f"{file} ").partition("; ")[0]
    return None


def told_by(path: Path) -> Iterator[dict[str, Any]]:
    """What every stored unit of RUN says of itself; a damaged one nothing."""
    for pattern in ("maps/*", "latents/*", "features/*/*", "prompts/*/*", "rivals/*/*"):
        for file in sorted(path.glob(f"{pattern}.safetensors")):
            with suppress(StoreError):
                yield read_extra(file)


def devices(extras: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many units each device computed; the first versions did not say."""
    return Counter(extra["device"] for extra in extras if "device" in extra)


def mixed(found: Mapping[str, int]) -> str:
    """What units of several ``devices`` mean; empty where there is one."""
    told = ", ".join(f"{count:,} by {name}" for name, count in sorted(found.items()))
    return f"units of several devices ({told}) are equal to rounding, not byte by byte" if len(found) > 1 else ""


def named_after(folder: Path) -> dict[str, Any] | None:
    """The settings that a folder of stored units is named after, as its settings.yaml says; None where it does not."""
    try:
        told = read_yaml(folder / "settings.yaml")
        return told if fingerprint(told) == folder.name else None
    except (StoreError, TypeError, ValueError):  # lost, damaged, or nothing that settings are made of
        return None


def scored_rows(unit: Unit, extra: Mapping[str, Any]) -> list[Row]:
    """Its images that have maps, as their file says."""
    scored = set(extra["rows"])
    return [row for row in unit.rows if row.row in scored]


def image_means(
    tensors: Mapping[str, Any], extra: Mapping[str, Any], unit: Unit, prompt: int, bins: Sequence[int]
) -> list[Means]:
    """Of every scored image: the means of D and of G over the image and the bins (G: not a number where a prompt was added
    without it)."""

    def mean(row: Row, name: str) -> float:
        return float(tensors[f"{row.row}.{name}"][prompt][list(bins)].mean(dtype=np.float64))

    return [(row, mean(row, "differential"), mean(row, "gap")) for row in scored_rows(unit, extra)]


def columns(boxes: Sequence[Placed]) -> dict[str, np.ndarray]:
    """Boxes as they are stored."""
    numbers = {name: np.array([getattr(each, name) for each in boxes], np.float64) for name in ("score", "differential", "gap")}
    box = np.array([each.box for each in boxes], np.int64).reshape(-1, 4)
    return {"row": np.array([each.row.row for each in boxes], np.int64), "box": box, **numbers}


def unit_by_unit(
    counts: Sequence[int], found: Iterable[tuple[int, T]], told: Callable[[], object] = lambda: None
) -> Iterator[tuple[int, list[T]]]:
    """Of units with so many items, laid end to end: (number, values) of each, once ``found`` has given all its values, each
    with its place; ``told`` of each value."""
    yield from ((number, []) for number, count in enumerate(counts) if not count)
    where = [(number, i) for number, count in enumerate(counts) for i in range(count)]
    parts: list[dict[int, T]] = [{} for _ in counts]
    for place, value in found:
        number, i = where[place]
        parts[number][i] = value
        told()
        if len(parts[number]) == counts[number]:
            yield number, [parts[number][i] for i in range(counts[number])]
            parts[number].clear()
