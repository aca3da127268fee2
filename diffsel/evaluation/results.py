"""What students achieved: one JSON a student, read back as lines of a table with intervals.  No torch.

RESULTS/ STUDENT-PROTOCOL-KEY/seed-0.json   what a student was trained on, and how well it did
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..settings.errors import StoreError
from ..settings.settings import fingerprint
from ..settings.yamls import from_json, read_text


@dataclass(frozen=True)
class Spread:
    """Accuracies of n students: mean, standard deviation, and half of the 95% t-interval of the mean, percent."""

    n: int
    mean: float
    std: float | None
    ci95: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + (f" ± {self.ci95:.1f}" if self.ci95 is not None else "")

    @property
    def counted(self) -> str:
        """How many values it is of, for tables."""
        return str(self.n)

    @property
    def deviations(self) -> str:
        """For tables."""
        return "-" if self.std is None else f"{self.std:.2f}"


@dataclass(frozen=True)
class Nested(Spread):
    """Of ``n`` sets that chance alone makes different: mean, deviation and interval of the means of their students.

    The means of the sets differ by the choice of the set and by what their students leave in them, so their t-interval
    covers both (one-way random effects; Searle, Casella & McCulloch, Variance Components, 1992, ch. 3).
    """

    students: int  # of each set
    within: float | None  # deviation of the students of one set, pooled
    between: float | None  # deviation of the sets, without what students leave in their means; 0 where that is more

    @property
    def counted(self) -> str:
        return f"{self.n} x {self.students}"

    @property
    def deviations(self) -> str:
        told = [(self.between, "sets"), (self.within, "students")]
        return ", ".join(f"{value:.2f} {what}" for value, what in told if value is not None) or "-"


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError for no values at all.  One value has no deviation and no interval."""
    if not values:
        raise ValueError("no student finished")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Spread(1, mean, None, None)
    from scipy.stats import t

    std = float(np.std(values, ddof=1))
    return Spread(n, mean, std, float(t.ppf(0.975, n - 1) * std / math.sqrt(n)))


def nested(parts: Sequence[Spread]) -> Nested:
    """One spread of the students of each set -> of the sets.  Raises ValueError for none."""
    means, freedom = spread([part.mean for part in parts]), sum(part.n - 1 for part in parts)
    within = math.sqrt(sum((part.n - 1) * (part.std or 0) ** 2 for part in parts) / freedom) if freedom else None
    left = (within or 0) ** 2 * float(np.mean([1 / part.n for part in parts]))
    between = None if means.std is None else math.sqrt(max(0.0, means.std**2 - left))
    return Nested(means.n, means.mean, means.std, means.ci95, min(part.n for part in parts), within, between)


def difference(ours: Spread, theirs: Spread) -> str:
    """How much better ours is, points, with Welch's 95% interval where both have one (over sets: of their means)."""
    text = f"{ours.mean - theirs.mean:+.1f}"
    if ours.std is None or theirs.std is None or not (ours.std or theirs.std):
        return text
    from scipy.stats import t

    a, b = ours.std**2 / ours.n, theirs.std**2 / theirs.n
    freedom = (a + b) ** 2 / (a**2 / (ours.n - 1) + b**2 / (theirs.n - 1))
    return f"{text} ± {t.ppf(0.975, freedom) * math.sqrt(a + b):.1f}"


def fairness(
    *,
    soft: float,
    random_soft: float,
    hard: float | None = None,
    full_hard: float | None = None,
    plain: float | None = None,
    random_plain: float | None = None,
) -> dict[str, float]:
    """The formulas of DD-Ranking's scores (Li et al. 2025, w = gamma = 0.5), from top-1 in percent under one protocol.

    DD-Ranking itself takes for each term the best of five learning rates and of all epochs by test accuracy, and draws whole
    random images anew for each student.

    ``soft``, ``random_soft``: this set, and random images.  ``hard``: this set with hard labels; ``full_hard``: the whole
    data set with hard labels.  ``plain``, ``random_plain``: both without augmentation.  Gives, as far as these are known,
    IOR (improvement over random) and HLR (hard label recovery, lower is better) in points, LRS and ARS in percent.
    """
    scores = {"IOR": soft - random_soft}
    if hard is not None and full_hard is not None:
        scores["HLR"] = full_hard - hard
        scores["LRS"] = _squash(0.5 * scores["IOR"] / 100 - 0.5 * scores["HLR"] / 100)
    if plain is not None and random_plain is not None:
        scores["ARS"] = _squash(0.5 * (soft - random_soft) / 100 + 0.5 * (plain - random_plain) / 100)
    return scores


def _squash(value: float) -> float:
    return 100 * (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))


# ---- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Students of one cell together, as their JSON files tell; ``failed`` maps a seed to what went wrong."""

    name: str
    teacher: str  # whose labels; empty for hard ones
    labels: str  # hard, online (each student sees its own batches) or stored (all students see the same)
    student: str
    protocol: str  # its name, and what differs from it
    precision: str
    top1: Spread | None
    top5: Spread | None
    best: Spread | None  # top-1 of the best epoch, whatever the protocol reports
    last: Spread | None
    failed: Mapping[int, str]
    seconds: float
    trained_on: Mapping[str, Any] = field(repr=False)  # what the results tell of it
    seen: int = 0  # training images that each student saw, over all epochs
    set: str = ""  # name of the set that it is of
    leaked: int = 0  # images that the set was made from and that are validation images too

    @property
    def labelled_by(self) -> str:
        """For tables."""
        return (self.teacher or "-") + " (stored)" * (self.labels == "stored")

    @property
    def starred(self) -> str:
        """The protocol's name, with a star where something differs from it."""
        name, _, changed = self.protocol.partition(" with ")
        return name + "*" * bool(changed)


def result_key(identity: Mapping[str, Any], precision: str) -> str:
    """Stands for everything that decides a student's numbers apart from the seed; ends the name of its folder."""
    return fingerprint([identity, precision])


def as_result(told: Mapping[str, Any]) -> bytes:
    """What a student's file holds: all that is told of it, and a checksum."""
    return (json.dumps({**told, "checksum": _checksum(told)}, indent=1, allow_nan=False) + "\n").encode()


def _checksum(told: Mapping[str, Any]) -> str:
    """Of all but what a clock said: equal students have equal ones."""
    return fingerprint({key: value for key, value in told.items() if key not in ("seconds", "checksum")})


def _accuracy(value: Any) -> float:
    if not 0 <= float(value) <= 100:
        raise ValueError(f"an accuracy of {value} percent")
    return float(value)


def read_result(file: Path) -> dict[str, Any]:
    """One student's result, RESULTS/...-KEY/seed-N.json.

    Raises StoreError where it is missing, damaged, or another student's: of another seed, or of what its folder does not say.
    """
    again = "delete it, and evaluate again"
    try:
        result = from_json(read_text(file))
        identity, failed = result["identity"], result.get("failed")
        _ = result["cell"], result["protocol"], result["labels"], identity["student"], identity["set"], identity["images"]
        _ = identity["classes"], identity["protocol"]["size"], identity["teacher"]
        _ = (
            failed["reason"]
            if failed
            else [_accuracy(result[epoch][top]) for epoch in ("best", "last") for top in ("top1", "top5")]
        )
        _ = failed or float(result["seconds"]), result["report"]
        told = f"seed-{int(result['seed'])}", result_key(identity, result["precision"])
        if result.get("checksum", whole := _checksum(result)) != whole:
            raise ValueError("its checksum differs")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} is damaged ({type(error).__name__}: {error}); {again}") from None
    if told != (file.stem, file.parent.name.rpartition("-")[2]):
        raise StoreError(f"{file} holds the result of another student ({told[0]}, {told[1]}); {again}")
    return result


def line_of(results: Sequence[Mapping[str, Any]], report: str | None = None) -> Line:
    """The students of one cell as a line; ``report``: which epoch it shows, by default as they were asked."""
    first, good = results[0], [result for result in results if "failed" not in result]
    identity, report = first["identity"], report or first["report"]
    columns = [(report, "top1"), (report, "top5"), ("best", "top1"), ("last", "top1")]
    top1, top5, best, last = (spread([one[epoch][key] for one in good]) if good else None for epoch, key in columns)
    return Line(
        name=first["cell"],
        teacher=identity["teacher"]["network"] if identity["teacher"] else "",
        labels=first["labels"],
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
        seen=int(good[0].get("images_seen", 0)) if good else 0,
        leaked=max(int(one.get("validation_images", {}).get("of_the_set", 0)) for one in results),
    )


def over_sets(lines: Sequence[Line], name: str | None = None) -> Line:
    """The lines of several sets, made alike but for chance, as one whose intervals cover the choice of the set too."""
    if len(lines) == 1:
        return lines[0]

    def pooled(parts: Iterable[Spread | None]) -> Nested | None:
        known = [part for part in parts if part]
        return nested(known) if known else None

    failed: dict[int, str] = {}
    for line in lines:
        for seed, reason in line.failed.items():
            failed[seed] = "; ".join(filter(None, [failed.get(seed), f"{line.name}: {reason}"]))
    return replace(
        lines[0],
        name=name or lines[0].name,
        top1=pooled(line.top1 for line in lines),
        top5=pooled(line.top5 for line in lines),
        best=pooled(line.best for line in lines),
        last=pooled(line.last for line in lines),
        failed=failed,
        seconds=sum(line.seconds for line in lines),
    )
