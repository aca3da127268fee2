"""A data set in memory, as networks take it: square uint8 pictures, labels in one class order, and a hash of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ..machine.progress import Progress, quiet
from ..machine.threads import threaded
from ..settings.errors import DataError
from ..settings.sections import DataSettings
from ..settings.settings import Settings, fingerprint, identity
from .classes import ClassInfo, refuse_shared, spelled
from .far import is_far
from .images import ImageData, open_data
from .pixels import resized_size
from .rows import Row, lost_note
from .tables import split_names
from .trees import is_datasets_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """n pictures of ``size`` x ``size`` pixels; ``labels`` count ``classes``."""

    pixels: UInt8[Tensor, "n 3 size size"]
    labels: Int[Tensor, " n"]
    classes: tuple[ClassInfo, ...]
    digest: str  # of the files, their classes and how they were cut

    @property
    def size(self) -> int:
        return int(self.pixels.shape[-1])

    def to(self, device: torch.device) -> Pictures:
        return Pictures(self.pixels.to(device), self.labels.to(device), self.classes, self.digest)


@dataclass(frozen=True)
class Album:
    """Pictures still to be read: rows of ``data``, whose folders stand for ``classes`` in the order in which they come."""

    data: ImageData
    rows: tuple[Row, ...]
    classes: tuple[ClassInfo, ...]
    size: int  # side of the pictures, pixels
    resize: int  # shortest side before the middle is cut out, pixels

    @cached_property
    def places(self) -> dict[str, int]:
        return {folder: i for i, folder in enumerate(dict.fromkeys(row.label for row in self.rows))}

    @property
    def nbytes(self) -> int:
        """Of its pictures."""
        return len(self.rows) * 3 * self.size**2

    def note(self) -> str:
        """A line about what could not be read; empty where all could."""
        return lost_note(self.data.root, self.data.rows, self.data.skipped, self.places)

    @cached_property
    def digest(self) -> str:
        """Of the files, their classes and how they are cut."""
        listed = [[row.path, self.places[row.label], row.digest] for row in self.rows]
        return fingerprint([listed, [info.folder for info in self.classes], self.size, self.resize])

    def load(self, progress: Progress = quiet, workers: int = 4) -> Pictures:
        """Decode every picture, in threads.  Raises DataError for one that is gone or was edited."""
        import torch  # an album is a list: only its pictures need it

        pixels = np.empty((len(self.rows), self.size, self.size, 3), np.uint8)

        def one(item: tuple[int, Row]) -> None:
            pixels[item[0]] = np.asarray(middle(self.data.image(item[1]), self.size, self.resize))

        with progress(total=len(self.rows), desc="reading images", unit="image") as bar:
            for _ in threaded(enumerate(self.rows), one, workers):
                bar.update()
        labels = torch.tensor([self.places[row.label] for row in self.rows])
        return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, self.classes, self.digest)


def validation_split(path: str, settings: DataSettings | None = None) -> str | None:
    """Of a `datasets` data set with several splits the one for validation: validation, val or test; else None.

    ``settings``: its configuration and revision.  Raises DataError if it has several and none of them.
    """
    root = Path(path)
    if is_far(path) or (root.exists() and not is_datasets_folder(root)):
        return None
    names = split_names(path, settings or DataSettings())
    if len(names) < 2:
        return next(iter(names), None)
    if not (good := [name for name in ("validation", "val", "test") if name in names]):
        raise DataError(f"{path} has the splits {', '.join(names)}, but none is called validation, val or test")
    return good[0]


def open_validation(path: str, settings: Settings, progress: Progress = quiet) -> ImageData:
    """Validation images, all of them (a cap on the training images does not hold for these), of a `datasets` data set with
    several splits the one that is for validation.  Errors as ``open_data`` and ``validation_split``."""
    split = validation_split(path, settings.data) or settings.data.split
    every = settings.data.model_copy(update={"images_per_class": None, "split": split})
    return open_data(path, every, settings.seed, settings.compute.workers, progress)


@dataclass
class Opener:
    """The data sets of one command: each is read once, however many sets, teachers and cells are made of it."""

    progress: Progress = quiet
    tell: Callable[[str], None] = lambda text: None  # shows what a user should know of them
    opened: dict[str, ImageData] = field(default_factory=dict)

    def training(self, path: str, s: Settings) -> ImageData:
        """Errors as ``open_data``."""
        return self._once("training", path, s, lambda: open_data(path, s.data, s.seed, s.compute.workers, self.progress))

    def validation(self, path: str, s: Settings) -> ImageData:
        """Errors as ``open_validation``."""
        s = s.model_copy(update={"data": s.data.model_copy(update={"images_per_class": None})})
        return self._once("validation", path, s, lambda: open_validation(path, s, self.progress))

    def _once(self, kind: str, path: str, s: Settings, read: Callable[[], ImageData]) -> ImageData:
        key = fingerprint([kind, path, identity(s.data), s.seed])
        if key not in self.opened:
            self.opened[key] = read()
            for note in self.opened[key].notes:
                self.tell(f"note: {note}")
        return self.opened[key]


def validation_pictures(
    data: ImageData, classes: Sequence[ClassInfo], size: int, resize: int, per_class: int | None = None
) -> Album:
    """The images of ``classes``, shortest side to ``resize``, the middle ``size`` pixels (RDED; torchvision).

    Raises DataError naming the classes that the validation images lack.
    """
    folders = match_classes(classes, data)
    rows = [row for folder in folders for row in data.of_class(folder)[:per_class]]
    return Album(data, tuple(rows), tuple(classes), size, resize)


def match_classes(wanted: Sequence[ClassInfo], data: ImageData) -> list[str]:
    """The folder of ``data`` for each class, by folder or else by a name that only one folder has.

    Raises DataError naming the classes that are missing, or that would share a folder.
    """
    folders = {info.folder for info in data.classes}
    times = Counter(info.name for info in data.classes)
    by_name = {info.name: info.folder for info in data.classes if times[info.name] == 1}
    same_folder, same_name = (
        spelled((getattr(i, key) for i in wanted), there) for key, there in (("folder", folders), ("name", by_name))
    )
    found = [folder or (name and by_name[name]) for folder, name in zip(same_folder, same_name, strict=True)]
    missing = [info.folder for info, folder in zip(wanted, found, strict=True) if folder is None]
    if missing:
        raise DataError(
            f"{data.root} lacks {len(missing)} of the {len(wanted)} classes: {', '.join(map(repr, missing[:5]))}; "
            f"it has {', '.join(map(repr, sorted(folders)[:5]))}{' ...' if len(folders) > 5 else ''}"
        )
    refuse_shared(wanted, found, data.root)
    return [folder for folder in found if folder is not None]


def middle(picture: Image.Image, size: int, resize: int) -> Image.Image:
    """Shortest side to ``resize`` (antialiased bilinear), then the middle ``size`` x ``size``, as torchvision cuts it."""
    wanted = resized_size(picture.width, picture.height, resize)
    if picture.size != wanted:
        picture = picture.resize(wanted, Image.Resampling.BILINEAR)
    if picture.size == (size, size):
        return picture
    left, top = round((picture.width - size) / 2), round((picture.height - size) / 2)
    return picture.crop((left, top, left + size, top + size))
