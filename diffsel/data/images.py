"""Images as numbered rows: the only place where pixels are read.

A data set is a folder of class folders (data/trees.py), a data set of the `datasets` library (data/tables.py), or one that
lies behind an address or in tar shards (data/far.py).  Opening one lists, reads and hashes every file once and gives each
image a row; a file that is no readable image becomes a Skipped record with its reason, never a crash.  A file that cannot be
had now stops the opening: nothing is recorded of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..machine.files import AsPath
from ..machine.progress import Progress, quiet
from ..machine.threads import threaded
from ..settings.errors import DataError, Scarce, UnreadableImage
from ..settings.sections import DataSettings
from ..settings.settings import DEFAULT
from .classes import ClassInfo, Listing, class_table, kinds_of
from .far import Far, far_reader, is_far, list_far
from .notebook import counted
from .pixels import Pixels, decode, digest, probe_size, read_file, resize, resized_size
from .rows import Row, Rows, Skipped
from .tables import Table, list_table
from .trees import EXTENSIONS, is_datasets_folder, is_parquet, is_utf8, list_tree


@dataclass(repr=False)
class ImageData:
    """An opened data set: classes in their explicit order, rows in class order, what was passed over, and a reader."""

    root: str
    classes: tuple[ClassInfo, ...]
    rows: Rows
    skipped: tuple[Skipped, ...]
    settings: DataSettings
    read: Callable[[str], bytes]
    notes: tuple[str, ...] = ()  # what a user should know of it, a line each

    def __repr__(self) -> str:
        return f"ImageData({self.root!r}: {self.summary})"

    @property
    def summary(self) -> str:
        """How many images, of how many classes."""
        return f"{counted(len(self.rows), 'image')} in {counted(len(self.classes), 'class')}"

    def of_class(self, folder: str) -> Rows:
        return self.rows.of_class(folder)

    @property
    def digest(self) -> str:
        """Stands for these images, their places and their classes."""
        return self.rows.digest

    def size(self, row: Row) -> tuple[int, int]:
        """(width, height) of the resized image, pixels."""
        return resized_size(row.width, row.height, self.settings.image_size, self.settings.step)

    def image(self, row: Row, least: int | None = None) -> Image.Image:
        """The upright RGB picture at its original size; with ``least`` perhaps smaller (``decode``).

        Raises UnreadableImage where it does not decode, DataError where it cannot be had or was edited since it was indexed.
        """
        try:
            kept = self.read.kept(row.digest) if isinstance(self.read, Far) else None
            blob = self.read(row.path) if kept is None else kept
            if digest(blob) != row.digest:
                raise DataError(f"{row.path}: edited since it was indexed (its bytes have another hash)")
            picture = decode(blob, self.settings.max_pixels, row.path, least)
        except OSError as error:
            Scarce.check(error, row.path)
            raise DataError(f"{row.path}: {error.strerror or error}") from None
        if not least and picture.size != (row.width, row.height):
            raise UnreadableImage(f"{row.path}: decodes to {picture.size}, but its header says {(row.width, row.height)}")
        return picture

    def pixels(self, row: Row) -> Pixels:
        """uint8 (H, W, 3), shortest side ``image_size``; errors as for ``image``."""
        return np.asarray(resize(self.image(row), self.settings.image_size, self.settings.step))


# ---- opening -------------------------------------------------------------------------------------------------------

READERS = 4  # threads a worker: they wait for files (over a network milliseconds) more than they hash (a tenth of one)
MOVED = "if they moved, say where they are now: --data NEW (`diffsel score NEW --out RUN --config RUN/run.yaml` records it)"
AT_ONCE = 32  # images that a thread reads and hashes before it asks for more
Block = tuple[str, Sequence[str], Rows | Mapping[str, Row | Skipped]]  # class, paths, and what is known of them


@dataclass(frozen=True)
class Known:
    """What an earlier opening has read of a data set."""

    rows: Rows = field(default_factory=lambda: Rows.of([]))
    skipped: Mapping[str, Mapping[str, Skipped]] = field(default_factory=dict)  # class -> path -> why

    @classmethod
    def of(cls, rows: Rows, skipped: Iterable[Skipped]) -> Known:
        by_class: dict[str, dict[str, Skipped]] = {}
        for item in skipped:
            by_class.setdefault(item.label, {})[item.path] = item
        return cls(rows, by_class)


NOTHING = Known()


def open_data(
    path: AsPath,
    settings: DataSettings = DEFAULT.data,
    seed: int = 0,
    workers: int = 4,
    progress: Progress = quiet,
    known: Known = NOTHING,
    check: Callable[[Sequence[ClassInfo]], None] = lambda classes: None,
    out: Path | None = None,
) -> ImageData:
    """List, read and hash every image of a data set; ``check`` may refuse its classes before anything is read.

    >>> open_data("photos")
    ImageData('photos': 16 images in 2 classes)

    Images that are ``known`` by path (from an earlier opening) are listed but not read again.  ``out``: where results are
    written; it is no class, even where it lies in the data set.
    Raises DataError for a missing, empty or mis-shaped data set, before any image is read where that can be seen, and for a
    file that the machine cannot read now.
    """
    listing = _list(path := str(path), settings, out)
    classes = class_table(path, listing, settings)
    check(classes)
    chosen = {c.folder: cap(listing.images[c.folder], settings.images_per_class, seed, c.folder) for c in classes}
    skipped: list[Skipped] = []

    def look(block: Block) -> Sequence[Row | Skipped]:
        label, paths, found = block
        return found if isinstance(found, Rows) else [found.get(p) or _look(label, p, listing.read, settings) for p in paths]

    def good(bar: tqdm) -> Iterator[Sequence[Row]]:
        for found in threaded(_blocks(chosen, known), look, READERS * workers):
            bar.update(len(found))
            skipped.extend([] if isinstance(found, Rows) else [item for item in found if isinstance(item, Skipped)])
            yield found if isinstance(found, Rows) else [item for item in found if isinstance(item, Row)]

    with progress(total=sum(map(len, chosen.values())), desc="indexing images", unit="image") as bar:
        rows = Rows.of(good(bar))
    empty = [c.folder for c in classes if c.folder not in rows.spans]
    if empty:
        reason = f" (of {len(skipped)} unreadable ones, the first: {skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise DataError(f"no readable image in class {empty[0]!r} of {path}{reason}; remove the class or name others")
    notes = (*listing.notes, *_left_beside(listing, classes))
    return ImageData(path, classes, rows, tuple(skipped), settings, listing.read, notes)


def _blocks(chosen: Mapping[str, Sequence[str]], known: Known) -> Iterator[Block]:
    """Class by class: all at once where it is known as it is, else a few images at a time."""
    for label, paths in chosen.items():
        rows, lost = known.rows.of_class(label), known.skipped.get(label, {})
        if len(rows) == len(paths) and rows.texts("path") == paths:
            yield label, paths, rows
            continue
        found: dict[str, Row | Skipped] = {row.path: row for row in rows} | {**lost}
        for start in range(0, len(paths), AT_ONCE):
            yield label, paths[start : start + AT_ONCE], found


def _look(label: str, name: str, read: Callable[[str], bytes], settings: DataSettings) -> Row | Skipped:
    """An image's row, without its number.  Raises DataError for a file that cannot be had now."""
    if not is_utf8(name):
        return Skipped(ascii(name), label, "file name is not valid UTF-8")
    try:
        blob = read(name)
        width, height = probe_size(blob, name, settings)
        return Row(-1, name, label, width, height, digest(blob))
    except UnreadableImage as error:
        return Skipped(name, label, str(error).removeprefix(f"{name}: "))
    except OSError as error:  # of the disk, the network or this process: another time it may be read
        told = f"{error.filename or name}: {error.strerror or error}"
        raise DataError(f"{told}; nothing is recorded: start again when it can be read, or remove it") from None


def open_listed(path: str, settings: DataSettings, listed: Iterable[Row]) -> ImageData:
    """The images of a list alone, as it numbers them; a list knows no sizes.

    Raises DataError where an image is missing, or its content is not what the list tells, and as ``open_data``.
    """
    listing, rows, wrong = _list(path, settings), list[Row](), list[str]()
    for item in sorted(set(listed), key=lambda row: row.row):
        try:
            found = _look(item.label, item.path, listing.read, settings)
        except DataError as error:
            wrong.append(str(error).partition(";")[0])
            continue
        if isinstance(found, Skipped):
            wrong.append(f"{item.path}: {found.reason}")
        elif found.digest != item.digest:
            wrong.append(f"{item.path}: another image than the list tells (hash {found.digest[:12]}, not {item.digest[:12]})")
        else:
            rows.append(replace(found, row=item.row))
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DataError(f"{path} lacks images of the list: {wrong[0]}{more}")
    return ImageData(path, class_table(path, listing, settings), Rows.listed(rows), (), settings, listing.read)


def count_images(path: str, settings: DataSettings) -> dict[str, int]:
    """How many images of each class would be taken, as listed: none is read.  Raises DataError as ``open_data``."""
    listing, limit = _list(path, settings), settings.images_per_class
    sizes = {info.folder: len(listing.images[info.folder]) for info in class_table(path, listing, settings)}
    return {label: size if limit is None else min(size, limit) for label, size in sizes.items()}


def class_names(path: str, settings: DataSettings) -> list[str]:
    """All classes that a data set holds, whatever the settings name.  Raises DataError as ``open_data``."""
    return list(_list(path, settings.model_copy(update={"classes": ()})).images)


def _left_beside(listing: Listing, classes: Sequence[ClassInfo]) -> list[str]:
    """A line about files beside the images that were not taken for images; none where there are none."""
    names = [name for info in classes for name in listing.others.get(info.folder, ())]
    told = f"files beside them that are not taken for images: {kinds_of(names)}; taken are {' '.join(sorted(EXTENSIONS))}"
    return [told] if names else []


def reopen(
    path: str,
    classes: Sequence[ClassInfo],
    rows: Rows,
    skipped: Sequence[Skipped],
    settings: DataSettings,
    may_be_gone: bool = False,
) -> ImageData:
    """A data set as an earlier ``open_data`` left it: nothing is listed or read.

    Raises DataError if it is gone; with ``may_be_gone``, only where an image of it is read.
    """
    read: Callable[[str], bytes] = partial(_in_folder, root := Path(path))
    if is_far(path):
        read = far_reader(path, settings)
    elif not root.is_dir() or is_datasets_folder(root):
        try:
            read = _list(path, settings).read
        except DataError as error:
            if not may_be_gone:
                raise DataError(f"{error}; {MOVED}") from None
            read = partial(_gone, f"{path} is not there any more; {MOVED}")
    return ImageData(path, tuple(classes), rows, tuple(skipped), settings, read)


# Readers are functions of this module, so that loaders that do not fork can take them along.


def _in_folder(root: Path, name: str) -> bytes:
    return read_file(root / name, name)


def _in_table(table: Table, name: str) -> bytes:
    found = table.cell(name)
    return found if isinstance(found, bytes) else read_file(found, name)


def base_of(root: str) -> str | None:
    """The folder, or its address, that the images of a data set are files of; None where they lie in tables or shards."""
    folder = Path(root)
    if is_far(root):
        return None if root.endswith(".tar") or folder.is_dir() else root.rstrip("/")
    return str(folder.resolve()) if folder.is_dir() and not is_datasets_folder(folder) else None


def _gone(reason: str, _name: str) -> bytes:
    raise FileNotFoundError(2, reason)


def cap(paths: Sequence[str], limit: int | None, seed: int, label: str) -> list[str]:
    """At most ``limit`` paths, chosen by a hash of each path, so that the listing order does not matter."""
    if limit is None or len(paths) <= limit:
        return sorted(paths)
    return sorted(
        sorted(paths, key=lambda p: hashlib.sha256(f"{seed}/{label}/{p}".encode("utf-8", "surrogateescape")).digest())[:limit]
    )


def _list(path: str, settings: DataSettings, out: Path | None = None) -> Listing:
    if is_far(path):
        return list_far(path, settings)
    root = Path(path)
    if is_parquet(path):
        return _listed(list_table(path, settings))
    if (root / "run.yaml").exists():
        raise DataError(
            f"{path} is a run, not a folder of images; its sets are {_names(each.parent for each in root.glob('*/set.yaml'))}"
        )
    if root.is_dir() and not is_datasets_folder(root):
        tree = list_tree(root, settings, out)
        return Listing(tree.images, partial(_in_folder, root), None, tree.others, tree.notes)
    if root.exists() and not root.is_dir():
        raise DataError(f"{path} is a file; give a folder that holds one folder per class")
    if not root.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise DataError(f"{path}: no such folder")
    if not root.exists() and root.parent.is_dir() and str(root.parent) != ".":  # hardly meant as a hub id
        raise DataError(f"{path}: no such folder; there is {_names(root.parent.glob('*/'))}")
    return _listed(list_table(path, settings))


def _listed(table: Table) -> Listing:
    return Listing(table.images, partial(_in_table, table), table.order, notes=(table.note,))


def _names(paths: Iterable[Path]) -> str:
    found = sorted(map(str, paths))
    return ", ".join(found[:5] + ["..."] * (len(found) > 5)) or "none"
