"""Images as numbered rows: the only place where pixels are read.

A data set is a folder of class folders, or a data set of the `datasets` library (hub id, parquet folder,
`save_to_disk` folder; extra ``diffsel[datasets]``).  Opening one lists, reads and hashes every file once and
gives each image a row; a file that cannot be read becomes a Skipped record with its reason, never a crash.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from .config import DataSettings, DiffselError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"}
SPLIT_NAMES = {"train", "test", "val", "valid", "validation", "dev"}
Image.MAX_IMAGE_PIXELS = None  # our own limit (data.max_pixels) is checked before any pixel is decoded
Pixels = NDArray[np.uint8]
Progress = Callable[..., tqdm]  # makes a progress bar: (total=, desc=, unit=)
quiet = partial(tqdm, disable=True)


class DataError(DiffselError, ValueError):
    """Images or classes that cannot be used; the message names the file or folder and what would be right."""


@dataclass(frozen=True)
class ClassInfo:
    """A class: its folder (the identity), its name in prompts, and further prompt words."""

    folder: str
    name: str
    words: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, template: str) -> str:
        """``template`` with ``{label}`` and the class's words filled in.  Raises DataError for an unknown word."""
        values = {**self.words, "label": self.name}

        def fill(match: re.Match[str]) -> str:
            if match[1] not in values:
                near = get_close_matches(match[1], values, n=1) or sorted(values)
                raise DataError(
                    f"prompt {template!r} asks for {{{match[1]}}}, which class {self.folder!r} lacks; "
                    f"it has {', '.join('{' + v + '}' for v in near)} (add words in classes.yaml)"
                )
            return values[match[1]]

        return re.sub(r"\{(\w*)\}", fill, template)


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

    def of_class(self, folder: str) -> list[Row]:
        return [row for row in self.rows if row.label == folder]

    def size(self, row: Row) -> tuple[int, int]:
        """(width, height) of the resized image, pixels."""
        return resized_size(row.width, row.height, self.settings.image_size)

    def image(self, row: Row) -> Image.Image:
        """The upright RGB picture at its original size.

        Raises DataError where the file is gone, was edited since it was indexed, or does not decode.
        """
        try:
            blob = self.read(row.path)
        except OSError as error:
            raise DataError(f"{row.path}: {error.strerror or error}") from None
        if digest(blob) != row.digest:
            raise DataError(f"{row.path}: edited since it was indexed (its bytes have another hash)")
        return decode(blob, self.settings.max_pixels, row.path)

    def pixels(self, row: Row) -> Pixels:
        """uint8 (H, W, 3), shortest side ``image_size``; errors as for ``image``."""
        return np.asarray(resize(self.image(row), self.settings.image_size))


def digest(blob: bytes) -> str:
    return hashlib.blake2b(blob, digest_size=16).hexdigest()


def decode(blob: bytes, max_pixels: int, name: str) -> Image.Image:
    """Any image file as an upright RGB picture: EXIF-turned, transparency on white, 16 bits scaled to 8.

    Raises DataError naming ``name`` and the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(blob))
            if picture.width * picture.height > max_pixels:
                raise DataError(f"{name}: {picture.width} x {picture.height} pixels, over data.max_pixels = {max_pixels}")
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture))
    except DataError:
        raise
    except Exception as error:  # PIL's plugins raise nearly anything on broken files
        raise DataError(f"{name}: {_reason(blob, error)}") from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        top = 1.0 if picture.mode == "F" and values.max(initial=0) <= 1 else 255.0 if values.max(initial=0) <= 255 else 65535.0
        picture = Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _reason(blob: bytes, error: Exception) -> str:
    if not blob:
        return "empty file"
    if blob.lstrip()[:1] == b"<":
        return "a web page or XML, not an image"
    return f"unreadable image ({type(error).__name__}: {str(error).replace(chr(10), ' ')[:120]})"


def resized_size(width: int, height: int, shortest: int) -> tuple[int, int]:
    """(width, height) after the shortest side is brought to ``shortest`` and the other follows, rounded down."""
    if width <= height:
        return shortest, max(shortest, shortest * height // width)
    return max(shortest, shortest * width // height), shortest


def resize(picture: Image.Image, shortest: int) -> Image.Image:
    """Shortest side to ``shortest`` pixels, aspect kept, antialiased bicubic (paper A.1)."""
    size = resized_size(picture.width, picture.height, shortest)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


# ---- opening -------------------------------------------------------------------------------------------------------


def open_data(
    path: str,
    settings: DataSettings,
    seed: int,
    workers: int = 4,
    progress: Progress = quiet,
    known: Iterable[Row | Skipped] = (),
) -> ImageData:
    """List, read and hash every image of a data set.

    Images that are ``known`` by path (from an earlier opening) are listed but not read again.
    Raises DataError for a missing, empty or mis-shaped data set, before any image is read where that can be seen.
    """
    listing, read, names = _list(path, settings)
    classes = _class_table(path, listing, names, settings)
    chosen = [(c.folder, p) for c in classes for p in _cap(listing[c.folder], settings.images_per_class, seed, c.folder)]

    remembered = {(item.label, item.path): item for item in known}

    def look(item: tuple[str, str]) -> Row | Skipped:
        label, name = item
        if item in remembered:
            return remembered[item]
        if name.encode("utf-8", "replace") != name.encode("utf-8", "surrogateescape"):
            return Skipped(ascii(name), label, "file name is not valid UTF-8")
        try:
            blob = read(name)
            width, height = _probe(blob, name, settings)
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
    empty = [c.folder for c in classes if not any(r.label == c.folder for r in rows)]
    if empty:
        reason = f" (of {len(skipped)} unreadable ones, the first: {skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise DataError(f"no readable image in class {empty[0]!r} of {path}{reason}; remove the class or name others")
    return ImageData(path, classes, rows, skipped, settings, read)


def reopen(
    path: str, classes: Sequence[ClassInfo], rows: Sequence[Row], skipped: Sequence[Skipped], settings: DataSettings
) -> ImageData:
    """A data set as an earlier ``open_data`` left it: nothing is listed or read.  Raises DataError if it is gone."""
    root = Path(path)
    if root.is_dir() and not _is_datasets_folder(root):
        return ImageData(path, tuple(classes), tuple(rows), tuple(skipped), settings, lambda name: (root / name).read_bytes())
    _, read, _ = _list(path, settings)
    return ImageData(path, tuple(classes), tuple(rows), tuple(skipped), settings, read)


def _probe(blob: bytes, name: str, settings: DataSettings) -> tuple[int, int]:
    """Upright (width, height) from the header alone.  Raises DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(blob))
            width, height = picture.size
            if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8):
                width, height = height, width
    except Exception as error:
        raise DataError(f"{name}: {_reason(blob, error)}") from None
    if width * height > settings.max_pixels:
        raise DataError(f"{name}: {width} x {height} pixels, over data.max_pixels = {settings.max_pixels}")
    if max(width, height) > settings.max_aspect * min(width, height):
        raise DataError(
            f"{name}: {width} x {height} pixels, sides further apart than data.max_aspect = {settings.max_aspect:g}"
        )
    return width, height


def _cap(paths: Sequence[str], limit: int | None, seed: int, label: str) -> list[str]:
    """At most ``limit`` paths, chosen by a hash of each path, so that the listing order does not matter."""
    if limit is None or len(paths) <= limit:
        return sorted(paths)
    return sorted(
        sorted(paths, key=lambda p: hashlib.sha256(f"{seed}/{label}/{p}".encode("utf-8", "surrogateescape")).digest())[:limit]
    )


Listing = Mapping[str, Sequence[str]]


def _list(path: str, settings: DataSettings) -> tuple[Listing, Callable[[str], bytes], list[str] | None]:
    root = Path(path)
    if root.is_dir() and not _is_datasets_folder(root):
        return *_list_folder(root, settings), None
    if root.exists() and not root.is_dir():
        raise DataError(f"{path} is a file; give a folder that holds one folder per class")
    if not root.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise DataError(f"{path}: no such folder")
    return _list_datasets(path, settings.split)


def _list_folder(root: Path, settings: DataSettings) -> tuple[Listing, Callable[[str], bytes]]:
    try:
        folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith((".", "__")))
    except OSError as error:
        raise DataError(f"{root}: {error.strerror}") from None
    odd = [folder for folder in folders if folder.encode("utf-8", "replace") != folder.encode("utf-8", "surrogateescape")]
    if odd:
        raise DataError(f"{root}: the class folder {odd[0]!a} is not valid UTF-8; rename it")
    if not folders:
        raise DataError(f"{root} holds no class folders; give a folder that holds one folder per class")
    if set(map(str.lower, folders)) <= SPLIT_NAMES and any(e.is_dir() for f in folders for e in os.scandir(root / f)):
        raise DataError(f"{root} holds splits ({', '.join(folders)}), not classes; give one of them, say {root / folders[0]}")
    wanted = folders if settings.classes is None else [f for f in folders if f in settings.classes]
    listing = {folder: list(_walk(root, folder)) for folder in wanted}
    return listing, lambda name: (root / name).read_bytes()


def _walk(root: Path, folder: str) -> Iterator[str]:
    """Image files below a class folder, as paths relative to the root; links are followed, loops are not."""
    seen = set()
    for where, subfolders, names in os.walk(root / folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        for name in names:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                yield os.path.relpath(os.path.join(where, name), root).replace(os.sep, "/")


def _is_datasets_folder(root: Path) -> bool:
    if (root / "state.json").exists() or (root / "dataset_dict.json").exists():
        return True
    return not any(e.is_dir() and any(_walk(root, e.name)) for e in os.scandir(root)) and any(root.rglob("*.parquet"))


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
        listing.setdefault(names[value] if names else str(value), []).append(f"{split}/{i:09d}")

    def read(name: str) -> bytes:
        cell = raw[int(name.rsplit("/", 1)[1])][images[0]]
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    return {name: rows for name, rows in listing.items() if rows}, read, names


# ---- classes -------------------------------------------------------------------------------------------------------


def _class_table(path: str, listing: Listing, order: list[str] | None, settings: DataSettings) -> tuple[ClassInfo, ...]:
    """The classes in their explicit order: settings.classes, else classes.yaml, else the data set's own, else by name."""
    file = Path(settings.class_file) if settings.class_file else Path(path) / "classes.yaml"
    if settings.class_file and not file.exists():
        raise DataError(f"class file {file}: no such file")
    described = read_class_file(file) if file.exists() else {}
    unknown = [name for name in described if name not in listing and settings.classes is None]
    if unknown:
        raise DataError(f"{file} names class {unknown[0]!r}, which {path} does not hold{_near(unknown[0], listing)}")
    names = settings.classes or [*described, *[f for f in (order or sorted(listing)) if f in listing and f not in described]]
    missing = [name for name in names if name not in listing]
    if missing:
        raise DataError(f"class {missing[0]!r} is not in {path}{_near(missing[0], listing)} ({len(missing)} missing)")
    empty = [name for name in names if not listing[name]]
    if empty:
        raise DataError(f"class folder {empty[0]!r} of {path} holds no image; remove it or name the classes to use")
    return tuple(described.get(name) or ClassInfo(name, _plain_name(name)) for name in names)


def _near(name: str, listing: Iterable[str]) -> str:
    near = get_close_matches(name, list(listing), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_class_file(file: Path) -> dict[str, ClassInfo]:
    """``folder: name`` or ``folder: {name: ..., wnid: ..., any word: ...}``.  Raises DataError."""
    try:
        table: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{file}: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"{file}: expected lines like `folder: name`")
    classes = {}
    for folder, entry in table.items():
        words = {"name": entry} if not isinstance(entry, dict) else entry
        if not all(isinstance(k, str) and isinstance(v, str | int | float) for k, v in words.items()):
            raise DataError(f"{file}: class {folder!r}: expected a name, or words such as `name: tench`")
        texts = {k: str(v) for k, v in words.items()}
        name = texts.pop("name", None) or _plain_name(texts.get("wnid", str(folder)))
        classes[str(folder)] = ClassInfo(str(folder), name, texts)
    return classes


def _plain_name(folder: str) -> str:
    """A folder's name in words: an ImageNet wnid by torchvision's table, else underscores as spaces."""
    if re.fullmatch(r"n\d{8}", folder) and folder in (wnids := imagenet_wnids()):
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        return str(_IMAGENET_CATEGORIES[wnids.index(folder)])
    return " ".join(folder.replace("_", " ").split()) or folder


def imagenet_wnids() -> list[str]:
    """The 1000 wnids; a class's ImageNet index is its position here (sorted)."""
    return (files("diffsel") / "assets" / "imagenet_wnids.txt").read_text().split()
