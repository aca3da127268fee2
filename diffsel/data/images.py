"""Images as numbered rows: the only place where pixels are read.

A data set is a folder of class folders, or a data set of the `datasets` library (hub id, parquet folder,
`save_to_disk` folder; extra ``diffsel[datasets]``).  Opening one lists, reads and hashes every file once and
gives each image a row; a file that cannot be read becomes a Skipped record with its reason, never a crash.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..machine.progress import Progress, quiet
from ..settings.errors import DataError, UnreadableImage
from ..settings.sections import DataSettings
from ..settings.settings import fingerprint
from .classes import ClassInfo, Listing, class_table
from .pixels import Pixels, decode, digest, probe_size, resize, resized_size

FOREIGN = ("__pycache__", "__MACOSX", "@eaDir")  # folders that systems leave among images
EXTENSIONS = set(
    ".jpg .jpeg .jpe .jfif .png .webp .avif .bmp .gif .tif .tiff .tga .ppm .pgm .pbm .pnm .jp2".split(),  # noqa: SIM905
)
SPLIT_NAMES = {"train", "test", "val", "valid", "validation", "dev"}


@dataclass(frozen=True)
class Row:
    """One image: its number, its path inside the data set, its class, original size in pixels, and a hash of its bytes."""

    row: int
    path: str
    label: str
    width: int
    height: int
    digest: str


@dataclass(frozen=True)
class Skipped:
    path: str
    label: str
    reason: str


@dataclass
class ImageData:
    """An opened data set: classes in their explicit order, rows in class order, what was passed over, and a reader."""

    root: str
    classes: tuple[ClassInfo, ...]
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    settings: DataSettings
    read: Callable[[str], bytes]

    @cached_property
    def _by_class(self) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {info.folder: [] for info in self.classes}
        for row in self.rows:
            rows[row.label].append(row)
        return rows

    def of_class(self, folder: str) -> list[Row]:
        return self._by_class[folder]

    @cached_property
    def digest(self) -> str:
        """Stands for these images, their places and their classes."""
        return fingerprint([[row.path, row.label, row.digest] for row in self.rows])

    def size(self, row: Row) -> tuple[int, int]:
        """(width, height) of the resized image, pixels."""
        return resized_size(row.width, row.height, self.settings.image_size)

    def image(self, row: Row) -> Image.Image:
        """The upright RGB picture at its original size.

        Raises UnreadableImage where it does not decode, DataError where it is gone or was edited since it was indexed.
        """
        try:
            blob = self.read(row.path)
        except OSError as error:
            raise DataError(f"{row.path}: {error.strerror or error}") from None
        if digest(blob) != row.digest:
            raise DataError(f"{row.path}: edited since it was indexed (its bytes have another hash)")
        picture = decode(blob, self.settings.max_pixels, row.path)
        if picture.size != (row.width, row.height):
            raise UnreadableImage(f"{row.path}: decodes to {picture.size}, but its header says {(row.width, row.height)}")
        return picture

    def pixels(self, row: Row) -> Pixels:
        """uint8 (H, W, 3), shortest side ``image_size``; errors as for ``image``."""
        return np.asarray(resize(self.image(row), self.settings.image_size))


# ---- opening -------------------------------------------------------------------------------------------------------


def open_data(
    path: str,
    settings: DataSettings,
    seed: int,
    workers: int = 4,
    progress: Progress = quiet,
    known: Iterable[Row | Skipped] = (),
    check: Callable[[Sequence[ClassInfo]], None] = lambda classes: None,
) -> ImageData:
    """List, read and hash every image of a data set; ``check`` may refuse its classes before anything is read.

    Images that are ``known`` by path (from an earlier opening) are listed but not read again.
    Raises DataError for a missing, empty or mis-shaped data set, before any image is read where that can be seen.
    """
    listing, read, names = _list(path, settings)
    classes = class_table(path, listing, names, settings)
    check(classes)
    chosen = [(c.folder, p) for c in classes for p in cap(listing[c.folder], settings.images_per_class, seed, c.folder)]

    remembered = {(item.label, item.path): item for item in known}

    def look(item: tuple[str, str]) -> Row | Skipped:
        label, name = item
        if item in remembered:
            return remembered[item]
        if not _is_utf8(name):
            return Skipped(ascii(name), label, "file name is not valid UTF-8")
        try:
            blob = read(name)
            width, height = probe_size(blob, name, settings)
            return Row(-1, name, label, width, height, digest(blob))
        except (OSError, DataError) as error:
            return Skipped(name, label, str(error).removeprefix(f"{name}: "))

    looked = []
    with progress(total=len(chosen), desc="indexing images", unit="image") as bar, ThreadPoolExecutor(workers) as pool:
        for item in pool.map(look, chosen):
            looked.append(item)
            bar.update()
    good = [item for item in looked if isinstance(item, Row)]
    rows = tuple(Row(i, r.path, r.label, r.width, r.height, r.digest) for i, r in enumerate(good))
    skipped = tuple(item for item in looked if isinstance(item, Skipped))
    filled = {row.label for row in rows}
    empty = [c.folder for c in classes if c.folder not in filled]
    if empty:
        reason = f" (of {len(skipped)} unreadable ones, the first: {skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise DataError(f"no readable image in class {empty[0]!r} of {path}{reason}; remove the class or name others")
    return ImageData(path, classes, rows, skipped, settings, read)


def count_images(path: str, settings: DataSettings) -> dict[str, int]:
    """How many images of each class would be taken, as listed: none is read.  Raises DataError as ``open_data``."""
    listing, _, names = _list(path, settings)
    limit = settings.images_per_class
    sizes = {info.folder: len(listing[info.folder]) for info in class_table(path, listing, names, settings)}
    return {label: size if limit is None else min(size, limit) for label, size in sizes.items()}


def ignored_files(data: ImageData) -> list[tuple[str, int]]:
    """Extensions (lower case) of files beside the images of a folder that were not taken for images, and how many there are
    of each, most first."""
    names = [name for info in data.classes for name in _walk(Path(data.root), info.folder, images=False)]
    found = Counter(os.path.splitext(name)[1].lower() or "no extension" for name in names)
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


def reopen(
    path: str,
    classes: Sequence[ClassInfo],
    rows: Sequence[Row],
    skipped: Sequence[Skipped],
    settings: DataSettings,
    may_be_gone: bool = False,
) -> ImageData:
    """A data set as an earlier ``open_data`` left it: nothing is listed or read.

    Raises DataError if it is gone; with ``may_be_gone``, only where an image of it is read.
    """
    root = Path(path)

    def in_folder(name: str) -> bytes:
        return (root / name).read_bytes()

    def gone(name: str) -> bytes:
        raise FileNotFoundError(2, f"{path} is not there any more")

    read: Callable[[str], bytes] = in_folder
    if not root.is_dir() or is_datasets_folder(root):
        try:
            _, read, _ = _list(path, settings)
        except DataError:
            if not may_be_gone:
                raise
            read = gone
    return ImageData(path, tuple(classes), tuple(rows), tuple(skipped), settings, read)


def cap(paths: Sequence[str], limit: int | None, seed: int, label: str) -> list[str]:
    """At most ``limit`` paths, chosen by a hash of each path, so that the listing order does not matter."""
    if limit is None or len(paths) <= limit:
        return sorted(paths)
    return sorted(
        sorted(paths, key=lambda p: hashlib.sha256(f"{seed}/{label}/{p}".encode("utf-8", "surrogateescape")).digest())[:limit]
    )


def _list(path: str, settings: DataSettings) -> tuple[Listing, Callable[[str], bytes], list[str] | None]:
    root = Path(path)
    if (root / "run.yaml").exists():
        raise DataError(
            f"{path} is a run, not a folder of images; its sets are {_names(each.parent for each in root.glob('*/set.yaml'))}"
        )
    if root.is_dir() and not is_datasets_folder(root):
        return *_list_folder(root, settings), None
    if root.exists() and not root.is_dir():
        raise DataError(f"{path} is a file; give a folder that holds one folder per class")
    if not root.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise DataError(f"{path}: no such folder")
    if not root.exists() and root.parent.is_dir() and str(root.parent) != ".":  # hardly meant as a hub id
        raise DataError(f"{path}: no such folder; there is {_names(root.parent.glob('*/'))}")
    return _list_datasets(path, settings.split)


def _names(paths: Iterable[Path]) -> str:
    found = sorted(map(str, paths))
    return ", ".join(found[:5] + ["..."] * (len(found) > 5)) or "none"


def _list_folder(root: Path, settings: DataSettings) -> tuple[Listing, Callable[[str], bytes]]:
    try:
        folders = [name for name in _subfolders(root) if not name.startswith(".") and name not in FOREIGN]
    except OSError as error:
        raise DataError(f"{root}: {error.strerror}") from None
    odd = [folder for folder in folders if not _is_utf8(folder)]
    if odd:
        raise DataError(f"{root}: the class folder {odd[0]!a} is not valid UTF-8; rename it")
    if not folders:
        raise DataError(f"{root} holds no class folders; give a folder that holds one folder per class")
    if set(map(str.lower, folders)) <= SPLIT_NAMES and any(_subfolders(root / f) for f in folders):
        raise DataError(f"{root} holds splits ({', '.join(folders)}), not classes; give one of them, say {root / folders[0]}")
    wanted = set(settings.classes or folders)
    listing = {folder: list(_walk(root, folder)) if folder in wanted else [] for folder in folders}
    return listing, lambda name: (root / name).read_bytes()


def _is_utf8(name: str) -> bool:
    """Whether a file name is text; the operating system allows any bytes."""
    return name.encode("utf-8", "replace") == name.encode("utf-8", "surrogateescape")


def _subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


def _walk(root: Path, folder: str, images: bool = True) -> Iterator[str]:
    """Image files below a class folder (or the others), as paths relative to the root; links are followed, loops are not."""
    seen = set()
    for where, subfolders, names in os.walk(root / folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in FOREIGN)
        for name in names:
            if (os.path.splitext(name)[1].lower() in EXTENSIONS) == images and not name.startswith("."):
                yield os.path.relpath(os.path.join(where, name), root).replace(os.sep, "/")


def is_datasets_folder(root: Path) -> bool:
    if (root / "state.json").exists() or (root / "dataset_dict.json").exists():
        return True
    return not any(list(_walk(root, name)) for name in _subfolders(root)) and bool(list(root.rglob("*.parquet")))


def _list_datasets(path: str, split: str) -> tuple[Listing, Callable[[str], bytes], list[str] | None]:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{path} needs the `datasets` library: pip install 'diffsel[datasets]'") from None
    try:
        if (Path(path) / "state.json").exists() or (Path(path) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(path)
            table = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            table = datasets.load_dataset(path, split=split)
    except Exception as error:
        raise DataError(f"{path}, split {split!r}: {type(error).__name__}: {error}") from None
    images = [n for n, f in table.features.items() if isinstance(f, datasets.Image)]
    labels = [n for n, f in table.features.items() if isinstance(f, datasets.ClassLabel)] or [
        n for n in ("label", "labels", "class") if n in table.features
    ]
    if not images or not labels:
        raise DataError(f"{path}: expected an Image and a ClassLabel (or `label`) column, found {dict(table.features)}")
    feature = table.features[labels[0]]
    raw = table.cast_column(images[0], datasets.Image(decode=False))
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    listing: dict[str, list[str]] = {name: [] for name in names or []}
    for i, value in enumerate(table[labels[0]]):
        if value is None or value == -1:
            raise DataError(f"{path}, split {split!r}: image {i} has no label; choose a labelled split (data.split)")
        listing.setdefault(names[value] if names else str(value), []).append(f"{split}/{i:09d}")

    def read(name: str) -> bytes:
        cell = raw[int(name.rsplit("/", 1)[1])][images[0]]
        if cell is None:
            raise UnreadableImage(f"{name}: no image in this row")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    return {name: rows for name, rows in listing.items() if rows}, read, names
