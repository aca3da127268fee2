"""RUN -> what selection may choose from: the patches of a class, without label suspects as asked, and how many there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import cap
from ..data.pool import copies, distinct, known_classes, near_copies
from ..data.rows import Row
from ..machine.files import existing
from ..machine.tensors import has_column, read_column, read_extra
from ..runs.run import Run
from ..runs.units import Unit, check_unit
from ..settings.errors import ConfigError
from ..settings.sections import BASELINES
from ..settings.settings import Settings, identity, sizes_of
from . import suspects
from .opening import is_there
from .selection import Candidates, too_few


def candidates(run: Run, label: str) -> Candidates:
    """All patches of a class that selection may take.  Raises StoreError where a stage has not finished."""
    found = patches_of(run, label)
    return found.at(np.isin(found.rows, list(kept_rows(run, label))))


def patches_of(run: Run, label: str) -> Candidates:
    """All patches of a class, of copies and suspects too.  Raises StoreError where a stage has not finished."""
    read = ((unit, run.patches(unit)) for unit in run.of_class(label))
    parts = [{**patches, "score": run.ranks(unit, patches)} for unit, patches in read]
    parts = [part for part in parts if len(part["row"])] or parts[:1]
    return Candidates(label, *(np.concatenate([part[key] for part in parts]) for key in ("row", "box", "score", "vector")))


def kept_rows(run: Run, label: str) -> set[int]:
    """Rows of the images that selection looks at, without near copies, and without label suspects as asked."""
    every, copied = run.settings.selection.images is None, near(run, label)
    drawn = set(run.data.of_class(label).firsts() if every else (row.row for row in _drawn(run, label, copied))) - copied.keys()
    return drawn - suspects.left_out(run, label, drawn)


def near(run: Run, label: str) -> Mapping[int, int]:
    """Row of each image of a class that looks like one before it -> row of that one.

    Images of the same bytes are none (`distinct`).  Empty for maps and vectors of the first versions, which came without looks.
    """
    file_of = run.feature_file if run.settings.selection.clustered else run.map_file
    files, once = [file_of(unit) for unit in run.of_class(label)], set(run.data.of_class(label).firsts())
    stamped = tuple((file, file.stat().st_mtime_ns) for file in files if file.exists())
    return {row: like for row, like in _near(stamped, run.settings.selection.alike).items() if row in once}


@lru_cache(1 << 12)  # one selection asks several times
def _near(files: tuple[tuple[Path, int], ...], alike: float) -> Mapping[int, int]:
    """``files``: each with when it was written."""
    seen = [file for file, _ in files if has_column(file, "look")]
    if not seen:
        return {}
    rows, looks = (np.concatenate([read_column(file, name) for file in seen]) for name in ("row", "look"))
    once = np.unique(rows, return_index=True)[1]  # several patches of an image have one look
    return {int(rows[once[i]]): int(rows[once[j]]) for i, j in near_copies(looks[once], alike=alike).items()}


def near_pairs(run: Run, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Path of each image of these classes that looks like one before it, and of that one."""
    found, numbered = (pair for label in classes for pair in near(run, label).items()), run.data.rows.numbered
    return [(numbered(row).path, numbered(first).path) for row, first in found]


def _drawn(run: Run, label: str, copied: Collection[int] = ()) -> list[Row]:
    """The images of a class that selection looks at: all, or ``selection.images`` of them, as `data.images_per_class` caps;
    each once, and none of the rows ``copied``."""
    rows, s = [row for row in distinct(run.data.of_class(label)) if row.row not in copied], run.settings
    if s.selection.images is None:
        return rows
    kept = set(cap([row.path for row in rows], s.selection.images, s.seed, label))
    return [row for row in rows if row.path in kept]


# ---- how many --------------------------------------------------------------------------------------------------------


def most_patches(run: Run, classes: Sequence[str]) -> dict[str, int]:
    """How many patches each class gives: as they are stored, or before that at most."""
    file_of = run.feature_file if run.settings.selection.clustered else run.map_file
    there = existing(file_of(unit) for label in classes for unit in run.of_class(label))
    stored = {label: _stored_patches(run, label, there) for label in classes}
    return {label: _possible_patches(run, label) if n is None else n for label, n in stored.items()}


def _stored_patches(run: Run, label: str, there: Collection[Path]) -> int | None:
    """None where a unit has not come that far.  Some images turn out not to decode, some boxes not to fit."""
    plain, units = not run.settings.selection.clustered, run.of_class(label)
    files = [run.map_file(unit) if plain else run.feature_file(unit) for unit in units]
    if not all(file in there for file in files):
        return None
    if plain:
        rows = [patch.row.row for unit in units for patch in run.boxes(unit)]
    else:
        rows = [row for unit, file in zip(units, files, strict=True) for row in _rows_of(unit, file)]
    kept = kept_rows(run, label)
    return sum(row in kept for row in rows)


def _rows_of(unit: Unit, file: Path) -> list[int]:
    """Of a unit's vectors.  Raises StoreError where the file is damaged or another unit's."""
    rows = read_column(file, "row").tolist()
    check_unit(file, unit, read_extra(file), rows)
    return rows


def _possible_patches(run: Run, label: str) -> int:
    """``per_image`` of each image that is not dropped, as far as they fit."""
    side, limit = run.settings.patches.patch_size, run.settings.patches.per_image
    sizes = [run.data.size(row) for row in _drawn(run, label)]
    each = sorted(min(limit, (w // side) * (h // side)) if side else 1 for w, h in sizes)
    return sum(each[suspects.share_of(len(each), run.settings.selection) :])


# ---- a set -----------------------------------------------------------------------------------------------------------


def check_method(settings: Settings) -> None:
    """Raises ConfigError for a baseline: it reads no scoring pass, and would get diffsel's patches under its name."""
    if (name := settings.selection.method) in BASELINES:
        raise ConfigError(f"selection.method = {name!r} needs no scoring pass: use `diffsel select DATA --method {name}`")


def check_set(run: Run, ipc: int, out: Path, classes: Sequence[str] | None = None) -> None:
    """Refuse, before anything is computed, a set that cannot be made: SelectionError where a class cannot give that
    many images, StoreError where ``out`` holds something else, DataError for an unknown class or where the set is there but
    damaged, ConfigError for a baseline."""
    check_method(run.settings)
    names = known_classes(run.data, classes)
    (factor, _), most = mosaic_factor(run, ipc, names), most_patches(run, names)
    is_there(out, provenance(run, ipc, factor, names))
    fewest = min(names, key=lambda label: most[label])
    if most[fewest] < ipc * factor**2:
        raise too_few(fewest, most[fewest], ipc, factor, _way_out(run.settings))


def _way_out(settings: Settings) -> str:
    """What would give a class more patches; empty for nothing."""
    s = settings.selection
    left = {"--drop-suspects": s.drop_suspects, "--drop-below": s.drop_below, "--images": s.images}
    if flags := [flag for flag, value in left.items() if value is not None]:
        return f"do without {' and '.join(flags)}"
    return "raise --per-image with a smaller --patch-size" if settings.patches.patch_size else ""


def mosaic_factor(run: Run, ipc: int, classes: Sequence[str]) -> tuple[int, str]:
    """Tiles per side: as set, or 2 at IPC <= 10 and else 1 (paper 3.2); 1 too where a class is too small for mosaics, which
    a note tells."""
    usual = run.settings.assembly.factor_at(ipc, run.settings.selection.method)
    if usual == 1 or run.settings.assembly.factor:  # nothing to count
        return usual, ""
    small = next((label for label, most in most_patches(run, classes).items() if most < ipc * usual**2), None)
    if small is None:
        return usual, ""
    return 1, f"ipc {ipc}: one patch an image, since class {small!r} has too few patches for {usual} x {usual}"


def provenance(run: Run, ipc: int, factor: int, classes: Sequence[str]) -> Mapping[str, Any]:
    """Everything that decides a set's bytes."""
    s = run.settings
    return {
        "format": 1,
        "ipc": ipc,
        "factor": factor,
        "run": run.mark,
        "seed": s.seed,
        "classes": list(classes),
        **sizes_of(s.data),
        "model": run.record["identity"]["model"],
        "scoring": identity(s.scoring),
        **run.feature_identity,
        "selection": identity(s.selection),
        "assembly": identity(s.assembly),
        **copies(run.data, classes),
    }
