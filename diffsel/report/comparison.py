"""`diffsel report SET SET ...`: several sets side by side, class by class, as one HTML file.

What each set shows, how it covers its classes, which source images two sets share, and what students of it reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.pool import among
from ..machine.files import AsPath, write_atomically
from ..machine.progress import Progress, quiet
from ..runs.run import Run, open_run
from ..sets.figures import Eye, Figures, Hand, judge
from ..sets.opening import DistilledSet, Picture, read_set
from ..settings.errors import ConfigError
from .accuracies import accuracies, result_folders
from .classes import class_by_class
from .drawing import MOSAIC, Painter
from .opening import belongs, run_of, set_rows, size
from .rendering import html_file, render

PICTURES = 12  # of a set and class, at most
USUAL = 5000  # bytes of a picture in the page, about


@dataclass(frozen=True)
class Column:
    """One set in one class: its first pictures (file, data URI, paths of the tiles' sources), the number of all, figures."""

    set: DistilledSet
    pictures: list[tuple[str, str, str]]
    total: int
    figures: Figures | None


def write_comparison(
    sets: Sequence[AsPath],
    out: AsPath | None = None,
    run: AsPath | None = None,
    results: Sequence[AsPath] = (),
    limit: int = 16_000_000,
    progress: Progress = quiet,
    eye: Eye | None = None,
    only: Sequence[str] = (),
) -> Path:
    """Write the page to ``out`` (default FIRST-comparison.html, beside the first set).

    ``run``: whose images the sets were made from, by default that of the first set that has one beside it; sets of other images
    are shown without figures.  ``only``: classes to show, by default all.  Raises StoreError for a folder that is no set,
    ConfigError where the page would pass ``limit``, DataError for a class that is not there.
    """
    out, eye = html_file(sets[0], out, "comparison"), eye or Hand()
    opened = [read_set(path) for path in dict.fromkeys(Path(each).resolve() for each in sets)]
    whole = open_run(run) if run else next((found for each in opened if (found := run_of(each.path, each.record))), None)
    every = list(dict.fromkeys(name for shown in opened for name in shown.names))
    names = among(only, every, opened[0].path)
    shown = min(PICTURES, limit * 3 // 4 // (len(names) * len(opened) * USUAL))
    if not shown:
        raise ConfigError(f"{len(opened)} sets of {len(names)} classes do not fit into {size(limit)}; raise --page-size")
    related = [each for each in opened if whole and belongs(each.record, whole)]
    judged: dict[Path, list[Figures | None]] = {}

    def look(label: str) -> tuple[str, list[Column]]:
        figures = judge(whole, related, label, eye) if whole else {}
        return label, [_column(each, label, shown, figures.get(each.path)) for each in opened]

    classes = list(class_by_class(names, look, progress, "comparing sets"))
    for _, columns in classes:
        for column in columns:
            judged.setdefault(column.set.path, []).append(column.figures)
    told = accuracies(result_folders(opened, [Path(path) for path in results]), opened, progress)
    text = render(
        "comparison.html.j2",
        title=("", out.stem),
        opened=opened,
        notes=_notes(opened, whole, related),
        classes=classes,
        every=len(every),
        sets=set_rows(opened, judged, told.shared),
        accuracies=told,
        shared=shared(opened),
        eye=eye,
        words={info.folder: info.name for info in whole.classes} if whole else {},
    )
    if len(text.encode()) > limit:
        raise ConfigError(f"the page takes {size(len(text.encode()))}, over {size(limit)}; raise --page-size")
    write_atomically(out, text.encode())
    return out


def _column(shown: DistilledSet, label: str, count: int, figures: Figures | None) -> Column:
    entries, painter = shown.images.get(label, []), Painter(None, label)

    def picture(entry: Picture) -> tuple[str, str, str]:
        paths = ", ".join(str(tile["source"]) for tile in entry.tiles)
        return entry.file, painter.of_set(shown.path, entry.file, MOSAIC), paths

    return Column(shown, [picture(entry) for entry in entries[:count]], len(entries), figures)


def shared(sets: Sequence[DistilledSet]) -> list[list[float | None]]:
    """Percent of a set's source images that the other set has too: row by row; None on the diagonal and for sets without
    sources."""

    def share(a: DistilledSet, b: DistilledSet) -> float | None:
        return None if a is b or not a.sources else 100 * len(a.sources & b.sources) / len(a.sources)

    return [[share(a, b) for b in sets] for a in sets]


def _notes(sets: Sequence[DistilledSet], run: Run | None, related: Sequence[DistilledSet]) -> list[str]:
    if run is None:
        return ["The run that scored these images was not found (--run RUN): no coverage and no diversity."]
    strange = ", ".join(each.name for each in sets if each not in related)
    return [f"Not made from the images of {run.path.name}, and therefore without figures: {strange}."] if strange else []
