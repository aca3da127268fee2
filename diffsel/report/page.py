"""`diffsel report`: a run or a set as HTML that needs nothing but a browser.

One file where all fits into ``limit`` bytes; else an overview and numbered pages beside it, each below the limit:

    report.html   summary, scores, accuracies, all classes as cards, cost, settings      report-2.html ...   the classes

Texts from the data (class and file names, prompts, settings) are escaped by the templates; the page's own rules for
the browser (Content-Security-Policy) let it run only the script that belongs to it, and fetch nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..data.pool import among
from ..machine.files import AsPath, write_atomically
from ..machine.progress import Progress, quiet
from ..runs.knowledge import CALIBRATED, Knowledge, overall, what_it_knows
from ..runs.run import Run
from ..sets.candidates import near_pairs
from ..sets.figures import Eye, Figures, Hand
from ..sets.suspects import Suspect
from ..settings.errors import ConfigError
from .accuracies import accuracies, result_folders
from .charts import Scale, histogram, tsne
from .classes import IN_FULL, SUSPECTS, ClassPart, Pool, class_by_class, class_part, measure, picked_of, scale_of
from .drawing import Painter
from .opening import Opened, clock, costs, open_target, set_rows, settings_of, size
from .pictures import Source
from .rendering import html_file, render

LIMIT = 16_000_000  # bytes of a file, by default
CLASSES_IN_LAYOUT = 12  # of the t-SNE of all classes: more colours cannot be told apart
POINTS_IN_LAYOUT = 1500
RANKED = 12  # classes in the ranking; of more, the best and the worst half of these


@dataclass
class Gathered:
    """What the overview needs of all classes, kept while their sections are written."""

    parts: list[tuple[ClassPart, str]] = field(default_factory=list)  # and the file that holds its section, "" for this one
    scores: list[np.ndarray] = field(default_factory=list)
    picked: list[np.ndarray] = field(default_factory=list)
    layout: list[tuple[ClassPart, np.ndarray, np.ndarray]] = field(default_factory=list)  # class, vectors, picked
    missing: dict[str, int] = field(default_factory=dict)  # why pictures are not shown -> in how many classes
    suspects: list[Suspect] = field(default_factory=list)  # the most suspect of all classes so far
    known: dict[str, Knowledge] = field(default_factory=dict)
    judged: dict[Path, list[Figures | None]] = field(default_factory=dict)  # of each set, its classes

    def suspect(self, found: Sequence[Suspect]) -> None:
        self.suspects = sorted([*self.suspects, *found], key=lambda each: (each.statistic, each.row))[:SUSPECTS]


def write_report(
    target: AsPath,
    out: AsPath | None = None,
    sets: Sequence[AsPath] = (),
    run: AsPath | None = None,
    results: Sequence[AsPath] = (),
    limit: int = LIMIT,
    progress: Progress = quiet,
    eye: Eye | None = None,
    only: Sequence[str] = (),
) -> list[Path]:
    """Write the report on a RUN or SET to ``out`` (default TARGET-report.html, beside it); returns its files.

    >>> [file.name for file in write_report("run")]
    ['run-report.html']

    ``eye``: who judges how the sets cover their classes (sets/figures.py), by default no network.  ``only``: classes to show,
    by default all.

    Files of an earlier, longer report of this name are removed.  Raises StoreError for a target that is neither or is
    damaged, ConfigError for an ``out`` that is no HTML file or a folder of results that is not there, DataError for a class
    that is not there.
    """
    target, out = Path(target), html_file(target, out, "report")
    opened = open_target(target, [Path(path) for path in sets], run)
    found = accuracies(result_folders(opened.sets, [Path(path) for path in results]), opened.sets, progress)
    book, eye = Book(out, opened, limit), eye or Hand()
    numbers = {label: number for number, label in enumerate(opened.classes)}
    names = among(only, numbers, target)
    coloured = {names[round(i)] for i in np.linspace(0, len(names) - 1, min(len(names), CLASSES_IN_LAYOUT))}

    def look(label: str) -> tuple[ClassPart, Pool | None]:
        return class_part(opened.run, opened.sets, numbers[label], label, eye, len(names) > IN_FULL)

    for part, pool in class_by_class(names, look, progress, "writing the report"):
        book.add(part, pool, part.folder in coloured)
    overview: dict[str, Any] = {
        "accuracies": found,
        "sets": set_rows(opened.sets, book.gathered.judged, found.shared),
        "eye": eye,
        "costs": costs(opened, found.own),
        "settings": settings_of(opened),
        "suspects": _suspects(opened.run, book.gathered.suspects) if opened.run else [],
        **_knowledge(opened.run, book.gathered.known),
        "skipped": list(opened.run.data.skipped) if opened.run else [],
        "alike": near_pairs(opened.run, names) if opened.run else [],
        **_charts(opened, book.gathered, book.scale),
    }
    return book.close(overview)


class Book:
    """The report's files: class sections gather on a page, which is written when the next one would not fit."""

    def __init__(self, out: Path, opened: Opened, limit: int):
        self.out, self.opened, self.limit = out, opened, limit
        whole = opened.target.resolve()
        self.title = (whole.parent.name, whole.name)
        self.gathered = Gathered()
        self.scale = Scale()
        self.sections: list[tuple[ClassPart, str]] = []
        self.held = 0
        self.files: list[Path] = []
        around = {"number": 10**6, "first": quote(out.name), "before": quote(out.name) * 2, "after": quote(out.name) * 2}
        self.frame = len(self.render("page.html.j2", page=around, sections=[]).encode())  # bytes of a page without classes

    def add(self, part: ClassPart, pool: Pool | None, in_layout: bool) -> None:
        found = self.gathered
        found.suspect(part.suspects)
        if part.known:
            found.known[part.folder] = part.known
        for path, figures in part.figures.items():
            found.judged.setdefault(path, []).append(figures)
        if self.opened.run and pool and len(pool.scores):
            if not found.scores:
                self.scale = scale_of(self.opened.run, pool.scores)
            picked = picked_of(pool, self.opened.sets)
            found.scores.append(pool.scores)
            found.picked.append(picked)
            part.scores = histogram(self.scale.shown(pool.scores), picked, int(np.clip(2 * len(picked) ** 0.5, 8, 40)))
            if in_layout and pool.vectors is not None:
                chosen = np.linspace(0, len(picked) - 1, min(len(picked), POINTS_IN_LAYOUT // CLASSES_IN_LAYOUT)).astype(int)
                found.layout.append((part, pool.vectors[chosen], picked[chosen]))
        for reason in part.missing:
            found.missing[reason] = found.missing.get(reason, 0) + 1
        text = self.render("class.html.j2", part=part)
        room = self.limit - self.frame
        if len(text.encode()) > room:
            raise ConfigError(
                f"class {part.folder!r} alone takes {size(len(text))}, over the {size(self.limit)} of a file; raise --page-size"
            )
        if self.held + len(text.encode()) > room:
            self._turn(more=True)
        self.sections.append((part, text))
        self.held += len(text.encode())

    def close(self, overview: dict[str, Any]) -> list[Path]:
        """Write what is left, and the overview: around the sections where all fits, else as a file of its own."""
        found = self.gathered
        if not self.files:
            whole = [(part, "") for part, _ in self.sections]
            text = self._overview(overview, whole, self.sections)
            if len(text.encode()) <= self.limit:
                return self._finish(text)
        self._turn(more=False)
        text = self._overview(overview, found.parts, [])
        if len(text.encode()) > self.limit:  # cards without pictures
            for part, _ in found.parts:
                part.card = ""
            text = self._overview(overview, found.parts, [])
        return self._finish(text)

    def render(self, template: str, **values: Any) -> str:
        return render(template, scale=self.scale, opened=self.opened, title=self.title, clock=clock, size=size, **values)

    def _overview(
        self, overview: dict[str, Any], parts: Sequence[tuple[ClassPart, str]], sections: Sequence[tuple[ClassPart, str]]
    ) -> str:
        return self.render(
            "page.html.j2",
            parts=parts,
            page=None,
            sections=[text for _, text in sections],
            gathered=self.gathered,
            files=len(self.files),
            every=len(self.opened.classes),
            ranking=_ranking(parts),
            **overview,
        )

    def _page(self, number: int) -> Path:
        return self.out if number == 1 else self.out.with_name(f"{self.out.stem}-{number}.html")

    def _turn(self, more: bool) -> None:
        """Write the sections held as the next numbered page."""
        number = len(self.files) + 2
        around = {
            "first": quote(self.out.name),
            "before": quote(self._page(number - 1).name),
            "after": quote(self._page(number + 1).name) if more else "",
        }
        kept = [part for part, _ in self.sections]
        text = self.render("page.html.j2", page=around | {"number": number}, sections=[text for _, text in self.sections])
        write_atomically(self._page(number), text.encode())
        self.files.append(self._page(number))
        self.gathered.parts += [(_as_card(part), quote(self._page(number).name)) for part in kept]
        self.sections, self.held = [], 0

    def _finish(self, text: str) -> list[Path]:
        write_atomically(self.out, text.encode())
        number = len(self.files) + 2
        while (old := self._page(number)).exists() and b"diffsel report" in old.read_bytes()[:2000]:
            old.unlink()
            number += 1
        return [self.out, *self.files]


def _as_card(part: ClassPart) -> ClassPart:
    """What the overview shows of a class whose section is written: thousands of them are held."""
    return ClassPart(
        part.number,
        part.folder,
        part.name,
        part.prompt,
        part.images,
        part.passed_over,
        part.patches,
        part.quartiles,
        part.chosen,
        card=part.card,
    )


def _ranking(parts: Sequence[tuple[ClassPart, str]]) -> list[dict[str, Any] | None]:
    """Classes by median score, with their quartiles as percent of the way along the axis; None stands for those left out."""
    found = sorted((one for one in parts if one[0].quartiles), key=lambda one: -one[0].quartiles[1])
    if len(found) < 2:
        return []
    shown = [*found] if len(found) <= RANKED else [*found[: RANKED // 2], *found[-RANKED // 2 :]]
    low, high = min(part.quartiles[0] for part, _ in shown), max(part.quartiles[2] for part, _ in shown)
    span = (high - low) / 96 or 1.0
    rows: list[dict[str, Any] | None] = []
    for part, file in shown:
        places = {name: 2 + (q - low) / span for name, q in zip(("low", "mid", "high"), part.quartiles, strict=True)}
        rows.append({"part": part, "file": file, **places})
    return rows if len(shown) == len(found) else [*rows[: RANKED // 2], None, *rows[RANKED // 2 :]]


def _charts(opened: Opened, found: Gathered, scale: Scale) -> dict[str, Any]:
    """The histogram of all scores, and the layout of a dozen classes together: (x, y, colour, picked) of each patch."""
    if not found.scores:
        return {"all_scores": None, "layout": [], "layout_classes": []}
    bars = histogram(scale.shown(np.concatenate(found.scores)), np.concatenate(found.picked), 60)
    points: list[tuple[float, float, int, bool]] = []
    if len(found.layout) > 1 and opened.run:
        places = tsne(np.concatenate([vectors for _, vectors, _ in found.layout]), opened.run.settings.seed)
        colours = np.concatenate([np.full(len(picked), i) for i, (_, _, picked) in enumerate(found.layout)])
        chosen = np.concatenate([picked for _, _, picked in found.layout])
        if places is not None:
            points = [(float(x), float(y), int(c), bool(p)) for (x, y), c, p in zip(places, colours, chosen, strict=True)]
            points.sort(key=lambda point: point[3])
    return {"all_scores": bars, "layout": points, "layout_classes": [part for part, _, _ in found.layout]}


def _knowledge(run: Run | None, known: Mapping[str, Knowledge]) -> dict[str, Any]:
    """What the overview says of the prior: mean nats and r, the bound, the verdict, and what its scores are."""
    if not run or not known:
        return {"knows": None, "verdict": [], "measure": ""}
    nats, r = overall(known.values())
    return {
        "knows": (nats, r),
        "bound": math.log(len(run.classes)),
        "calibrated": CALIBRATED[0] <= r <= CALIBRATED[1],
        "verdict": what_it_knows(run, known)[1:],
        "measure": measure(run),
    }


def _suspects(run: Run, found: Sequence[Suspect]) -> list[Source]:
    """The images whose label fits least, with picture and map; the outline is the whole image."""
    shown = []
    for place, each in enumerate(found):
        painter = Painter(run, each.label)  # one at a time: it holds the maps of a class
        painter.load([each.row])
        width, height = painter.size(each.row)
        source = Source(f"s{place}", each.path, (0, 0, height, width), (width, height))
        source.score, source.judge = (each.statistic, "statistic") if each.nats is None else (each.nats, "nats")
        source.picture, source.heat = painter.source(each.row), painter.heat(each.row)
        shown.append(source)
    return shown
