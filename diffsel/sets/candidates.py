"""How many patches a class can give to selection, and so whether its images can be mosaics."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.images import Row, cap
from ..machine.formats import read_column
from ..runs.session import Session
from . import suspects


def mosaic_factor(session: Session, ipc: int, classes: Sequence[str]) -> int:
    """Tiles per side: as set, or 2 at IPC <= 10 and else 1 (paper 3.2); 1 too where a class is too small for mosaics."""
    usual = session.settings.assembly.factor_at(ipc, session.settings.selection.method)
    if usual == 1 or session.settings.assembly.factor:  # nothing to count
        return usual
    small = [label for label, most in most_patches(session, classes).items() if most < ipc * usual**2]
    if small:
        session.note(f"ipc {ipc}: one patch an image, since class {small[0]!r} has too few patches for {usual} x {usual}")
    return 1 if small else usual


def most_patches(session: Session, classes: Sequence[str]) -> dict[str, int]:
    """How many patches each class gives: as they are stored, or before that at most."""
    stored = {label: _stored_patches(session, label) for label in classes}
    return {label: _possible_patches(session, label) if n is None else n for label, n in stored.items()}


def _stored_patches(session: Session, label: str) -> int | None:
    """None where a unit has not come that far.  Some images turn out not to decode, some boxes not to fit."""
    units = [unit for unit in session.units if unit.label == label]
    if session.settings.selection.method == "diffsel-noclusters":
        if not all(session.run.map_file(unit).exists() for unit in units):
            return None
        rows = [row.row for unit in units for row, _, _ in session.boxes(unit)]
    else:
        files = [session.feature_file(unit) for unit in units]
        if not all(file.exists() for file in files):
            return None
        rows = [row for file in files for row in read_column(file, "row").tolist()]
    kept = kept_rows(session, label)
    return sum(row in kept for row in rows)


def _possible_patches(session: Session, label: str) -> int:
    """``per_image`` of each image that is not dropped, as far as they fit."""
    side, limit = session.settings.patches.patch_size, session.settings.patches.per_image
    sizes = [session.data.size(row) for row in _drawn(session, label)]
    each = sorted(min(limit, (w // side) * (h // side)) if side else 1 for w, h in sizes)
    return sum(each[suspects.share_of(len(each), session.settings.selection) :])


def _drawn(session: Session, label: str) -> list[Row]:
    """The images of a class that selection looks at: all, or ``selection.images`` of them, as `data.images_per_class` caps."""
    rows, s = session.data.of_class(label), session.settings
    if s.selection.images is None:
        return list(rows)
    kept = set(cap([row.path for row in rows], s.selection.images, s.seed, label))
    return [row for row in rows if row.path in kept]


def kept_rows(session: Session, label: str) -> set[int]:
    """Rows of the images that selection looks at, without label suspects as asked."""
    drawn = {row.row for row in _drawn(session, label)}
    return drawn - suspects.left_out(session, label, drawn)
