"""A product's table: ours beside the paper's, as Markdown, CSV and a picture.  No torch."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from ..machine.formats import as_csv
from ..settings.errors import ConfigError

Place = tuple[str, str]  # row, column
Paper = float | str | tuple[float, float]  # a mean, a word, or (mean, standard deviation)
Expected = Mapping[Place, Paper]
Shape = Literal["bars", "lines", "grid"]

if TYPE_CHECKING:  # numpy comes with it
    from ..evaluation.results import Spread


@dataclass(frozen=True)
class Value:
    """What was measured at a place: mean, deviation and half of the 95% interval of ``n`` students, or one figure."""

    mean: float
    std: float | None = None
    ci95: float | None = None
    n: int = 1
    ran_as: str = ""

    @classmethod
    def of(cls, spread: Spread, ran_as: str = "") -> Value:
        return cls(spread.mean, spread.std, spread.ci95, spread.n, ran_as)

    def __str__(self) -> str:
        text = f"{self.mean:,}" if isinstance(self.mean, int) else f"{self.mean:.1f}"
        return text + (f" ± {self.ci95:.1f}" if self.ci95 is not None else "")


def axes(places: Sequence[Place], expected: Expected) -> tuple[list[str], list[str]]:
    """Rows and columns in their order: the cases' first."""
    every = [*places, *expected]
    return tuple(list(dict.fromkeys(place[k] for place in every)) for k in (0, 1))  # type: ignore[return-value]


def markdown(
    title: str,
    places: Sequence[Place],
    values: Mapping[Place, Value],
    expected: Expected,
    claim: str,
    notes: Sequence[str] = (),
) -> str:
    """The table as the paper lays it out, ours in bold and the paper's number in brackets; below it every figure in full."""
    rows, columns = axes([*places, *values], expected)
    rows = [row for row in rows if any(place[0] == row for place in [*values, *expected])]
    columns = [column for column in columns if any(place[1] == column for place in [*values, *expected])]
    wide = [[row, *(_both(values.get((row, column)), expected.get((row, column))) for column in columns)] for row in rows]
    text = f"# {title}\n\nOurs **mean ± 95 % interval** (the paper's mean ± deviation).\n\n" + _pipes(["", *columns], wide)
    if values:
        head = ["", "", "ran as", "n", "mean", "std", "95 % interval", "paper"]
        text += "\n" + _pipes(head, [_full(place, value, expected.get(place)) for place, value in values.items()])
    order = agreement(values, expected)
    lines = [f"The paper: {claim}" if claim else "", order, *notes]
    return text + "".join(f"\n{line}\n" for line in lines if line)


def agreement(values: Mapping[Place, Value], expected: Expected) -> str:
    """How far the order of ours is the paper's, over all pairs of places in one row or one column.

    Pairs within one IPC are told apart from pairs across IPCs: that more images teach more, any method would show.
    """
    known = [(p, value, mean) for p, value in values.items() if (mean := _mean(expected.get(p))) is not None]
    pairs = [(a, b) for a, b in combinations(known, 2) if (a[0][0] == b[0][0] or a[0][1] == b[0][1]) and a[2] != b[2]]
    within = [(a, b) for a, b in pairs if _ipc(a[0]) == _ipc(b[0])]
    across = [(a, b) for a, b in pairs if _ipc(a[0]) != _ipc(b[0])]
    told = [_order(some, what) for some, what in ((within, "within one IPC"), (across, "across IPCs")) if some]
    return "Order: " + "; ".join(told) + "." if told else ""


def _order(pairs: Sequence[tuple[Any, Any]], what: str) -> str:
    same = apart = clear = 0
    for (_, ours_a, paper_a), (_, ours_b, paper_b) in pairs:
        agrees = (ours_a.mean - ours_b.mean) * (paper_a - paper_b) > 0
        reach = [math.inf if each.ci95 is None else each.ci95 for each in (ours_a, ours_b)]  # one student tells no interval
        beyond = abs(ours_a.mean - ours_b.mean) > sum(reach)
        same, apart, clear = same + agrees, apart + beyond, clear + (beyond and agrees)
    return (
        f"of {len(pairs)} pairs in a row or column {what}, {same} stand as in the paper (the intervals of {apart} are apart, "
        f"{clear} of these as in the paper)"
    )


def _ipc(place: Place) -> str | None:
    """The images per class that a row or a column names."""
    found = re.search(r"\bIPC (\d+)", " ".join(place))
    return found[1] if found else None


def table_csv(values: Mapping[Place, Value], places: Sequence[Place], expected: Expected) -> bytes:
    """One line a place: ours and the paper's."""
    rows: list[list[Any]] = []
    for place in dict.fromkeys([*values, *places, *expected]):
        value, paper = values.get(place), expected.get(place)
        ours: list[Any] = [None] * 4
        if value:
            ours = [value.n, *(None if v is None else round(v, 4) for v in (value.mean, value.std, value.ci95))]
        theirs = _mean(paper) if _mean(paper) is not None else paper
        std = paper[1] if isinstance(paper, tuple) else None
        rows.append([*place, *ours, theirs, std, value.ran_as if value else ""])
    return as_csv(["row", "column", "n", "mean", "std", "ci95", "paper", "paper_std", "ran_as"], rows)


def picture(
    title: str, shape: Shape, places: Sequence[Place], values: Mapping[Place, Value], expected: Expected, unit: str
) -> bytes:
    """PNG: ours filled with intervals, the paper's hollow.  Raises ConfigError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("pictures of tables need matplotlib: pip install 'diffsel[pipelines]'") from None
    rows, columns = axes([*values] or places, {})
    if shape == "grid":
        figure = Figure(figsize=(2.2 + 1.5 * len(columns) * 2, 1.6 + 0.5 * len(rows)), dpi=90, layout="constrained")
        _grid(figure, rows, columns, values, expected)
    else:
        figure = Figure(figsize=(max(6.5, 1.6 + 0.32 * len(rows) * (len(columns) + 1)), 4.2), dpi=90, layout="constrained")
        axis = figure.subplots()
        (_bars if shape == "bars" else _lines)(axis, rows, columns, values, expected)
        axis.set_ylabel(unit)
        if shape == "bars":
            axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        figure.legend(fontsize=8, frameon=False, ncols=4, loc="outside lower center")
    figure.suptitle(textwrap.fill(title, int(13 * figure.get_size_inches()[0])), fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _bars(axis: Any, rows: list[str], columns: list[str], values: Mapping[Place, Value], expected: Expected) -> None:
    width = 0.8 / max(1, len(columns))
    for k, column in enumerate(columns):
        here = [(i + (k - (len(columns) - 1) / 2) * width, (row, column)) for i, row in enumerate(rows)]
        ours = [(x, values[place]) for x, place in here if place in values]
        xs, means, bars = [x for x, _ in ours], [v.mean for _, v in ours], [v.ci95 or 0 for _, v in ours]
        axis.bar(xs, means, width * 0.92, yerr=bars if any(bars) else None, capsize=2, color=f"C{k}", alpha=0.85, label=column)
        _hollow(axis, [(x, _mean(expected.get(place))) for x, place in here if place in values], f"C{k}")
    _paper_key(axis, values, expected)
    axis.set_xticks(range(len(rows)), [row.replace(", ", "\n") for row in rows], fontsize=8)


def _lines(axis: Any, rows: list[str], columns: list[str], values: Mapping[Place, Value], expected: Expected) -> None:
    numeric = all(row.replace(".", "", 1).isdigit() for row in rows)
    at = {row: float(row) if numeric else float(i) for i, row in enumerate(rows)}
    for k, column in enumerate(columns):
        ours = [(at[row], values[row, column], (row, column)) for row in rows if (row, column) in values]
        bars = [v.ci95 or 0 for _, v, _ in ours]
        axis.errorbar(
            [x for x, _, _ in ours], [v.mean for _, v, _ in ours], bars, fmt="o-", capsize=3, color=f"C{k}", label=column
        )
        _hollow(axis, [(x, _mean(expected.get(place))) for x, _, place in ours], f"C{k}")
    _paper_key(axis, values, expected)
    axis.set_xticks(list(at.values()), rows, fontsize=8)


def _hollow(axis: Any, points: Sequence[tuple[float, float | None]], colour: str) -> None:
    known = [(x, y) for x, y in points if y is not None]
    axis.plot(
        [x for x, _ in known], [y for _, y in known], "D", mfc="none", mec="#222222", mew=1.3, ms=6, color=colour, zorder=5
    )


def _paper_key(axis: Any, values: Mapping[Place, Value], expected: Expected) -> None:
    if any(_mean(expected.get(place)) is not None for place in values):
        axis.plot([], [], "D", mfc="none", mec="#222222", mew=1.3, ms=6, label="the paper")


def _grid(figure: Any, rows: list[str], columns: list[str], values: Mapping[Place, Value], expected: Expected) -> None:
    sides: list[tuple[str, dict[Place, float | None], dict[Place, str]]] = [
        ("ours", {p: v.mean for p, v in values.items()}, {p: str(v).replace(" ± ", "\n± ") for p, v in values.items()}),
        ("the paper", {p: _mean(expected.get(p)) for p in values}, {p: _words(expected.get(p)) for p in values}),
    ]
    for axis, (name, numbers, words) in zip(figure.subplots(1, 2), sides, strict=True):
        cells = [[numbers.get((row, column)) for column in columns] for row in rows]
        known = [v for line in cells for v in line if v is not None]
        axis.imshow([[float("nan") if v is None else v for v in line] for line in cells], cmap="YlGnBu", aspect="auto")
        middle = (min(known) + max(known)) / 2 if known else 0
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                dark = (numbers.get((row, column)) or 0) > middle
                axis.text(
                    j,
                    i,
                    words.get((row, column), ""),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if dark else "#222222",
                )
        axis.set_xticks(range(len(columns)), columns, fontsize=7)
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        axis.set_title(name, fontsize=9)


def _mean(paper: Paper | None) -> float | None:
    return None if paper is None or isinstance(paper, str) else float(paper[0] if isinstance(paper, tuple) else paper)


def _words(paper: Paper | None) -> str:
    return f"{paper[0]} ± {paper[1]}" if isinstance(paper, tuple) else "" if paper is None else str(paper)


def _both(value: Value | None, paper: Paper | None) -> str:
    return " ".join(
        part for part in (f"**{value}**" if value else "", f"({_words(paper)})" if paper is not None else "") if part
    )


def _full(place: Place, value: Value, paper: Paper | None) -> list[str]:
    figures = ["-" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.2f}" for v in (value.mean, value.std)]
    interval = "-" if value.ci95 is None else f"{value.mean - value.ci95:.2f} to {value.mean + value.ci95:.2f}"
    return [*place, value.ran_as, str(value.n), *figures, interval, _words(paper) or "-"]


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
