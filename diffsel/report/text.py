"""What a person reads in a terminal: tables, a data set described, one image followed through a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from statistics import median

import numpy as np

from ..data.images import ImageData
from ..data.pixels import resized_size
from ..data.rows import Row, Rows
from ..evaluation.results import Line, Nested, difference
from ..machine.terminal import shown
from ..runs.knowledge import bound
from ..runs.run import Run
from ..sets.candidates import candidates, near
from ..sets.opening import DistilledSet
from ..sets.selection import clustered, patches_needed
from ..settings.errors import DataError, StoreError
from ..settings.settings import Settings


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Aligned columns: numbers to the right, text to the left."""
    cells = [list(header), *[[f"{c:.4g}" if isinstance(c, float) else shown(str(c)) for c in row] for row in rows]]
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip() for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def accuracy_table(lines: Sequence[Line], more: Mapping[str, Sequence[str]] | None = None) -> str:
    """Top-1 and top-5 in percent with 95% intervals; below it, where protocols differ from what their names say, what
    students of stored labels share, and what failed.  ``more``: further columns, by their heads."""
    added = more or {}
    rows = [
        [
            line.name,
            line.labelled_by,
            line.student,
            line.starred,
            line.top1.counted if line.top1 else "0",
            str(line.top1 or "-"),
            line.top1.deviations if line.top1 else "-",
            str(line.top5 or "-"),
            str(line.best or "-"),
            str(line.last or "-"),
            line.seen,
            *(column[i] for column in added.values()),
        ]
        for i, line in enumerate(lines)
    ]
    header = ["set", "teacher", "student", "protocol", "n", "top-1 ± 95%", "std", "top-5 ± 95%", "best epoch", "last epoch"]
    header += ["images seen", *added]
    failed = [f"{line.name}, seed {seed}: {reason}" for line in lines for seed, reason in line.failed.items()]
    notes = [f"{line.starred} is {line.protocol}" for line in lines if line.starred != line.protocol]
    if any(line.top1 and not isinstance(line.top1, Nested) for line in lines):
        notes.append("± of one set covers its students alone; `diffsel select --sets K` makes several, and covers both")
    if any(line.labels == "stored" for line in lines):
        notes.append("stored: all students see the same batches; they and the interval differ by initialisation alone")
    return "\n".join([table(rows, header), *dict.fromkeys(notes), *failed])


def over_random(lines: Sequence[Line], random: Sequence[bool]) -> str:
    """How much better the students of each set are than those of random images; empty without such a line.

    ``random``: which lines are of random images.  Compared are lines of one student and as many images of the same classes.
    """

    def alike(line: Line) -> tuple:
        return line.student, line.seen, line.trained_on["images"], tuple(line.trained_on["classes"])

    bases = [line for line, is_base in zip(lines, random, strict=True) if is_base]
    rows = [
        [line.name, line.student, line.seen, difference(line.top1, base.top1), base.name]
        for line, is_base in zip(lines, random, strict=True)
        for base in bases
        if not is_base and alike(line) == alike(base) and line.top1 and base.top1
    ]
    return "\n" + table(rows, ["set", "student", "images seen", "top-1 over random ± 95%", "random"]) if rows else ""


def describe_data(data: ImageData, settings: Settings) -> str:
    """All that was understood of a data set, for `diffsel inspect`."""
    counts = {label: stop - start for label, (start, stop) in data.rows.spans.items()}
    lost = Counter(item.label for item in data.skipped)
    template = settings.scoring.prompts[0]
    rows = [[i, c.folder, c.prompt(template), counts[c.folder], lost[c.folder]] for i, c in enumerate(data.classes)]
    widths, heights = data.rows.numbers("width"), data.rows.numbers("height")
    sides = np.minimum(widths, heights).tolist()
    side = settings.data.image_size
    enlarged = sum(each < side for each in sides)
    sizes = {resized_size(*pair, side) for pair in set(zip(widths.tolist(), heights.tolist(), strict=True))}
    lines = [
        table(rows, ["class", "folder", "prompt", "images", "passed over"]),
        "",
        f"{len(data.rows)} images in {len(data.classes)} classes ({_span(counts.values())} each); "
        f"{len(data.skipped)} passed over by their headers (the rest is decoded when it is scored)",
        f"shortest sides {_span(sides)} pixels, median {median(sides):g}; {enlarged or 'none'} enlarged to {side}",
        f"different sizes after resizing: {len(sizes)}",
        f"null prompt: {settings.scoring.null_prompt!r}",
        f"what a label can tell: {bound(len(data.classes))}",
    ]
    lines += [*_copies(data.rows), *data.notes]
    lines += [f"passed over: {shown(item.path)}: {item.reason}" for item in data.skipped[:20]]
    if len(data.skipped) > 20:
        lines.append(f"... and {len(data.skipped) - 20} more")
    return "\n".join(lines)


def _span(numbers: Iterable[int]) -> str:
    """The least and the most, or the number that all are."""
    found = sorted(set(numbers))
    return " to ".join(map(str, dict.fromkeys((found[0], found[-1]))))


def _copies(rows: Rows) -> list[str]:
    """Lines about images whose files are byte by byte the same, within a class and in several; none where there are none."""
    found: dict[str, list[Row]] = {}
    for row, first in rows.copies():
        found.setdefault(row.digest, [first]).append(row)
    found = dict(sorted(found.items(), key=lambda item: item[1][0].row))
    labels = {digest: {row.label for row in alike} for digest, alike in found.items()}
    copies = [alike for digest, alike in found.items() if len(alike) > len(labels[digest])]
    several = [alike for digest, alike in found.items() if len(labels[digest]) > 1]
    lines = []
    if copies:
        count = sum(len(alike) - len(labels[alike[0].digest]) for alike in copies)
        lines.append(f"identical images: {count} are copies of others of their class, such as {_paths(copies[0])}")
    if several:
        lines.append(f"identical images: {len(several)} lie in more than one class, such as {_paths(several[0])}")
    return lines


def _paths(rows: Sequence[Row]) -> str:
    return " and ".join(shown(row.path) for row in rows[:3]) + (" ..." if len(rows) > 3 else "")


def trace_image(run: Run, image: str, sets: Sequence[DistilledSet]) -> str:
    """One image's way through a run, line by line.  Raises DataError where the image is not in the run."""
    row = _find(run, image)
    unit = next(u for u in run.of_class(row.label) if row in u.rows)
    width, height = run.data.size(row)
    prompt = run.prompt(row.label)
    lines = [
        f"row      {row.row}: {shown(row.path)}, class {row.label!r}, {row.width} x {row.height} pixels, "
        f"digest {row.digest[:12]}",
        f"resized  {width} x {height} pixels; prompt {prompt!r}",
    ]
    tensors, extra = run.maps(unit)
    if row.row not in extra["rows"]:
        reason = next(s["reason"] for s in extra["skipped"] if s["path"] == row.path)
        return "\n".join([*lines, f"map      none: passed over: {reason}"])
    cells = run.image_map(tensors, extra, row)
    lines.append(
        f"map      maps/{unit.name}.safetensors, {cells.shape[0]} x {cells.shape[1]} cells, "
        f"{run.settings.patches.estimator}: {cells.min():+.3g} to {cells.max():+.3g}, mean {cells.mean():+.3g}"
    )
    gain = next(-d for owner, d, _ in run.image_means(unit) if owner == row)
    way = "lowers" if gain >= 0 else "raises"
    lines.append(f"label    {way} the loss by {abs(gain):.4g}{_nats(run, gain, width * height)} over the whole image")
    lines += [
        f"box      {list(box)} (top, left, height, width), score {score:+.4g}{_nats(run, score, prod(box[2:]))}"
        for owner, box, score, *_ in run.boxes(unit)
        if owner == row
    ]
    lines += _trace_cluster(run, row.label, row.row, sets) or [f"cluster  none: {_why_none(run, row)}"]
    tiles = [line for found in sets for line in _trace_tiles(found, row.path)]
    return "\n".join([*lines, *(tiles or [f"tile     in none of {len(sets)} set(s) looked at"])])


def _nats(run: Run, score: float, pixels: int) -> str:
    """A mean over so many pixels in nats, where its unit is known."""
    return "" if run.nats is None else f" ({score * run.nats * pixels:+.3g} nats)"


def _why_none(run: Run, row: Row) -> str:
    """Why selection looks at no patch of an image."""
    if (like := near(run, row.label).get(row.row)) is not None:
        return f"it looks nearly like {run.data.rows.numbered(like).path}, and selection takes that one"
    if row.row not in set(run.data.of_class(row.label).firsts()):
        return "an earlier image of its class has the same bytes"
    return "selection looks at no patch of it (a label suspect, or not drawn)"


def _find(run: Run, image: str) -> Row:
    """By its number, its path in the data set or from anywhere, or the end of it."""
    rows, root = run.data.rows, str(run.data.root)
    paths, whole, base = rows.texts("path"), Path(image).resolve(), Path(root).resolve()
    names = {image, str(whole.relative_to(base)) if whole.is_relative_to(base) else image}
    places = [i for i, path in enumerate(paths) if str(i) == image or path in names]
    found = [rows[i] for i in places or [i for i, path in enumerate(paths) if path.endswith(image)]]
    if not found:
        known = f"a row number (0 to {len(rows) - 1}) or a path in {root}{f', such as {paths[0]}' if len(paths) else ''}"
        raise DataError(f"no image of {run.path} is called {image!r}; give {known}")
    if len(found) > 1:
        some = f"such as {found[0].path} and {found[1].path}"
        raise DataError(f"{len(found)} images of {run.path} end with {image!r}, {some}; give a row number or more of the path")
    return found[0]


def _trace_cluster(run: Run, label: str, row: int, sets: Sequence[DistilledSet]) -> list[str]:
    try:
        pool = candidates(run, label)
    except StoreError as error:
        return [f"vector   none: {error}"]
    s = run.settings
    need = patches_needed(s, [(found.record["ipc"], found.factor) for found in sets if "ipc" in found.record])
    groups = clustered(pool, need, s.selection, s.seed)
    if groups is None:
        order = np.argsort(-pool.scores, kind="stable")
        return [
            f"rank     {int(np.flatnonzero(order == i)[0])} of {len(order)} by score" for i in np.flatnonzero(pool.rows == row)
        ]
    outside = f"cluster  none: not among the best by rank that are clustered where {need} patches are needed"
    return [
        f"vector   {pool.vectors.shape[1]} numbers, begins {np.array2string(pool.vectors[i][:4], precision=3)}\n" + outside
        if groups.cluster[i] < 0
        else f"vector   {pool.vectors.shape[1]} numbers, begins {np.array2string(pool.vectors[i][:4], precision=3)}\n"
        f"cluster  {groups.cluster[i]} of {len(groups.median)} (median score {groups.median[groups.cluster[i]]:+.4g}), "
        f"place {groups.place[i]} of {int((groups.cluster == groups.cluster[i]).sum())}, distance {groups.distance[i]:.4g}"
        for i in np.flatnonzero(pool.rows == row)
    ]


def _trace_tiles(found: DistilledSet, path: str) -> list[str]:
    return [
        f"tile     {found.path / picture.file}, tile {number}, rank {tile['rank']}, picked by {tile['reason']}"
        for picture in found.pictures
        for number, tile in enumerate(picture.tiles)
        if tile["source"] == path
    ]
