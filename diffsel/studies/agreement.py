"""How far prompts agree on a stored run: places, boxes, the order of images, what is selected; and heat maps side by side.

OUT/  agreement.csv, agreement.md    heat.png    sets/KEY-ipcN (each prompt's set)    results/ (students, on request)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import rankdata

from .. import method
from ..machine.files import write_atomically
from ..machine.formats import as_csv
from ..report.drawing import heat, sheet, with_boxes
from ..report.text import table
from ..runs.knowledge import what_it_knows
from ..runs.prompts import Comparison
from ..runs.run import Run
from ..runs.session import Session
from ..scoring.patches import Box, best_boxes, patch_scores
from ..sets.opening import read_set
from ..settings.settings import fingerprint

OUTLINE = "#ffd400"


@dataclass(frozen=True)
class Agreement:
    """Two prompts (by number) on one class, or on all (``label`` None: the mean over images, or classes for the last two).

    None where it is not defined: no two patches, no two images, no sets.
    """

    label: str | None
    first: int
    second: int
    images: int
    places: float | None  # Spearman correlation of the scores of an image's patches, mean over images
    boxes: float | None  # intersection over union of the best boxes, mean over images
    order: float | None  # Spearman correlation of the best scores of a class's images
    selection: float | None  # share of the selected images that both select


def compare(views: Sequence[Run], sets: Sequence[Path] = ()) -> list[Agreement]:
    """Every pair of prompts, on every class and (first) on all; ``sets`` are the prompts' distilled sets, in order."""
    pairs = list(combinations(range(len(views)), 2))
    opened = [read_set(path) for path in sets]
    chosen = [{label: {tile["source"] for tile in one.tiles(label)} for label in one.images} for one in opened]
    rows = []
    for info in views[0].classes:
        places, boxes, order = _class_agreement(views, info.folder)
        for i, j in pairs:
            shared = _shared(chosen[i][info.folder], chosen[j][info.folder]) if chosen else None
            found = _mean(places[:, i, j]), _mean(boxes[:, i, j]), _mean(order[None, i, j]), shared
            rows.append(Agreement(info.folder, i, j, len(places), *found))
    return [*(_overall([row for row in rows if (row.first, row.second) == pair]) for pair in pairs), *rows]


def _class_agreement(
    views: Sequence[Run], label: str
) -> tuple[Float[np.ndarray, "n P P"], Float[np.ndarray, "n P P"], Float[np.ndarray, "P P"]]:
    """Of the scored images of a class: rank correlations of patch scores, overlaps of best boxes, and the rank
    correlations of best scores over the class."""
    places, overlaps, best = [], [], []
    for unit in views[0].of_class(label):
        held = [view.maps(unit) for view in views]
        scored = set(held[0][1]["rows"])
        for row in (row for row in unit.rows if row.row in scored):
            width, height = views[0].data.size(row)
            patches = views[0].settings.patches
            maps = [view.image_map(*each, row) for view, each in zip(views, held, strict=True)]
            grids = [patch_scores(cells, height, width, patches.patch_size or 0, patches.stride)[0] for cells in maps]
            found = [best_boxes(cells, height, width, patches)[0] for cells in maps]
            places.append(rank_correlations(np.stack([grid.ravel() for grid in grids])))
            overlaps.append([[overlap(a, b) for b, _ in found] for a, _ in found])
            best.append([score for _, score in found])
    count = len(views)
    order = rank_correlations(np.array(best).reshape(-1, count).T)
    return np.array(places).reshape(-1, count, count), np.array(overlaps).reshape(-1, count, count), order


def rank_correlations(values: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P P"]:
    """Spearman's correlation of every two rows (ties share their mean rank); not a number where a row is constant."""
    ranks = rankdata(values, axis=1) - (values.shape[1] + 1) / 2
    norms = np.linalg.norm(ranks, axis=1)
    norms[norms == 0] = np.nan
    return (ranks @ ranks.T) / np.outer(norms, norms)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    down, across = (max(0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    both = down * across
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def _mean(values: Sequence[float | None] | np.ndarray) -> float | None:
    known = [float(value) for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _overall(rows: Sequence[Agreement]) -> Agreement:
    def weighted(name: str) -> float | None:
        known = [row for row in rows if getattr(row, name) is not None]
        total = sum(row.images for row in known)
        return sum(getattr(row, name) * row.images for row in known) / total if total else None

    images = sum(row.images for row in rows)
    order, selection = _mean([row.order for row in rows]), _mean([row.selection for row in rows])
    return Agreement(None, rows[0].first, rows[0].second, images, weighted("places"), weighted("boxes"), order, selection)


def _shared(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(len(a), len(b))


# ---- sets, tables, pictures ------------------------------------------------------------------------------------------


def set_folder(view: Run, out: Path, ipc: int) -> Path:
    """Where a prompt's set lies: named by its texts, so that other prompts never meet it."""
    s = view.settings.scoring
    key = view.part.key if view.part else fingerprint([view.settings.patches.prompt, s.prompts, s.null_prompt])
    return out / "sets" / f"{key}-ipc{ipc}"


def make_sets(views: Sequence[Session], out: Path, ipc: int) -> list[Path]:
    """Each prompt's distilled set, under the run's settings.  Raises SelectionError where a class is too small."""
    folders = [set_folder(view.run, out, ipc) for view in views]
    for view, folder in zip(views, folders, strict=True):
        method.embed(view)
        method.select(view, ipc, folder)
    views[0].workers.wait_for([folder / "set.yaml" for folder in folders])
    return folders


def legend(study: Comparison) -> list[str]:
    """One line a prompt: number, template, whether it was among the run's own."""
    kinds = ["stored with the run" if own is not None else "added" for own in study.own]
    lines = [f"prompt {n}: {t!r} ({kind})" for n, (t, kind) in enumerate(zip(study.templates, kinds, strict=True))]
    return [*lines, f"null prompt: {study.null!r}"]


def write_pages(study: Comparison, views: Sequence[Run], sets: Sequence[Path], out: Path, shown: int) -> str:
    """OUT/agreement.csv, agreement.md and heat.png; the table for a terminal."""
    rows, buffer = compare(views, sets), io.BytesIO()
    told = [f"prompt {n}: {text}" for n, view in enumerate(views) for text in what_it_knows(view)]
    write_tables(rows, [*legend(study), *told], out)
    heat_page(views, study, shown).save(buffer, "PNG", optimize=True)
    write_atomically(out / "heat.png", buffer.getvalue())
    return "\n".join([*([as_table(rows), ""] if rows else []), *told])  # of one prompt: what it tells


def _header(of: str) -> tuple[str, ...]:
    return ("class", of, "images", "places", "boxes", "order", "selection")


def as_table(rows: Sequence[Agreement], limit: int = 60, of: str = "prompts") -> str:
    """Overall lines, and those of the classes where there are not too many."""
    shown = [row for row in rows if row.label is None or len(rows) <= limit]
    text = table([[*_names(row), *(_text(value) for value in _values(row))] for row in shown], _header(of))
    return text if len(shown) == len(rows) else f"{text}\n{len(rows) - len(shown)} lines of single classes: agreement.csv"


def write_tables(rows: Sequence[Agreement], told: Sequence[str], out: Path, of: str = "prompts") -> None:
    """OUT/agreement.csv with every line, OUT/agreement.md with the table and what is ``told`` of the prompts (or priors)."""
    listed = [[*_names(row), *(None if v is None else round(v, 6) for v in _values(row))] for row in rows]
    write_atomically(out / "agreement.csv", as_csv(_header(of), listed))
    lines = [" | ".join(["", *_header(of), ""]).strip(), "|" + "---|" * len(_header(of))]
    lines += ["| " + " | ".join(map(str, [*_names(row), *(_text(v) for v in _values(row))])) + " |" for row in rows]
    text = "\n".join([*(f"- {line}" for line in told), "", *(lines if rows else []), ""])
    write_atomically(out / "agreement.md", text.encode())


def _names(row: Agreement) -> tuple[str, str, int]:
    label = "all" if row.label is None else ascii(row.label)[1:-1]
    return label, f"{row.first} and {row.second}", row.images


def _values(row: Agreement) -> tuple[float | None, ...]:
    return row.places, row.boxes, row.order, row.selection


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def heat_page(views: Sequence[Run], study: Comparison, images: int = 8, side: int = 160) -> Image.Image:
    """Some images, from class after class, with the map and best box of every prompt beside them."""
    classes = list(views[0].infos)
    per_class = -(-images // len(classes))
    rows: list[tuple[str, Sequence[Image.Image]]] = []
    header = ["image", *(f"{n}: {template}" for n, template in enumerate(study.templates))]
    rows.append((f"null prompt: {study.null!r}", [_words(text, side) for text in header]))
    for label in classes[:: max(1, len(classes) // images)]:
        unit = views[0].of_class(label)[0]
        scored = set(views[0].maps(unit)[1]["rows"])
        for row in [row for row in unit.rows if row.row in scored][:per_class]:
            if len(rows) > images:
                break
            pixels = views[0].data.pixels(row)
            height, width = pixels.shape[:2]
            pictures = [_fit(Image.fromarray(pixels), side)]
            for view in views:
                cells = view.image_map(*view.maps(unit), row)
                box = best_boxes(cells, height, width, view.settings.patches)[0][0]
                picture = with_boxes(heat(cells, height, width), [(box, OUTLINE)], scale=2)
                pictures.append(_fit(picture, side))
            rows.append((f"{ascii(row.path)[1:-1]}, class {label!a}", pictures))
    return sheet(rows, "One image a row: where each prompt sees its class (best patch outlined)")


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """At ``side`` pixels width, so that columns line up."""
    return picture.resize((side, max(1, round(picture.height * side / picture.width))), Image.Resampling.BICUBIC)


def _words(text: str, side: int) -> Image.Image:
    """A text as a column's head, broken into lines."""
    font, lines = ImageFont.load_default(14), [""]
    for word in ascii(text)[1:-1].split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > side and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    picture = Image.new("RGB", (side, 18 * len(lines)), "white")
    ImageDraw.Draw(picture).multiline_text((0, 0), "\n".join(lines), fill="#111111", font=font, spacing=3)
    return picture
