"""The one reader of a SET: its record, its pictures and their tiles, and its images as students take them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.albums import Album
from ..data.classes import ClassInfo
from ..data.images import ImageData, open_data
from ..machine.formats import read_lines, read_yaml
from ..machine.progress import Progress, quiet
from ..settings.errors import DataError, StoreError
from ..settings.sections import DataSettings
from .assembly import class_folder


@dataclass(frozen=True)
class Picture:
    """One picture of a set, as metadata.jsonl tells: its file, seen from the set, its class, and where its tiles come from."""

    file: str
    label: int  # position among the sorted class folders
    name: str  # the class, as the source calls it
    tiles: Sequence[Mapping[str, Any]]

    @property
    def number(self) -> int:
        """Among its class's pictures, from 0."""
        return int(Path(self.file).stem)


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """An opened SET: written by diffsel, or any folder of class folders (then ``record`` and ``pictures`` are empty)."""

    path: Path
    record: Mapping[str, Any]  # set.yaml
    pictures: tuple[Picture, ...]
    told: int | None = None  # tiles per mosaic side, for sets of other tools
    progress: Progress = quiet
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # from what it is shown beside

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def method(self) -> str | None:
        """As recorded: random, rded, diffsel ..."""
        return self.record.get("selection", {}).get("method")

    @property
    def factor(self) -> int:
        """Tiles per mosaic side."""
        return int(self.told or self.record.get("factor", 1))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Classes in their order, as the source calls them; the set's own folders may be encoded."""
        return tuple(self.record.get("classes") or (info.folder for info in self.data.classes))

    @cached_property
    def images(self) -> dict[str, list[Picture]]:
        """Pictures by class."""
        found: dict[str, list[Picture]] = {}
        for picture in self.pictures:
            found.setdefault(picture.name, []).append(picture)
        return found

    def tiles(self, label: str) -> list[Mapping[str, Any]]:
        """The tiles of a class, picture by picture."""
        return [tile for picture in self.images.get(label, ()) for tile in picture.tiles]

    @cached_property
    def data(self) -> ImageData:
        """Its pictures as a data set, read and hashed.  Raises DataError where one cannot be read."""
        order = tuple(class_folder(name) for name in self.record["classes"]) if self.record else None
        data = open_data(str(self.path), DataSettings(classes=order), 0, progress=self.progress)
        if data.skipped:
            first = data.skipped[0]
            raise DataError(f"{self.path}: {first.path} cannot be read ({first.reason}); the set is damaged")
        return data

    @cached_property
    def ipc(self) -> int:
        """Pictures of the smallest class."""
        return min(len(self.data.of_class(info.folder)) for info in self.data.classes)

    @property
    def side(self) -> int:
        """Of its pictures, pixels."""
        return min(self.data.rows[0].width, self.data.rows[0].height)

    @cached_property
    def digest(self) -> str:
        """Of set.yaml and metadata.jsonl, hence of every picture."""
        listed = (self.path / "metadata.jsonl").read_bytes() + (self.path / "set.yaml").read_bytes()
        return hashlib.sha256(listed).hexdigest()[:32]

    def album(self, ipc: int | None, size: int) -> Album:
        """The first ``ipc`` pictures of each class (all by default), at ``size`` pixels.

        Raises DataError where there are fewer.
        """
        if ipc and ipc > self.ipc:
            raise DataError(
                f"{self.path} has {self.ipc} images in its smallest class, so ipc {ipc} cannot be evaluated with it"
            )
        rows = [row for info in self.data.classes for row in self.data.of_class(info.folder)[: ipc or None]]
        infos = tuple(ClassInfo(name, i.name, i.words) for name, i in zip(self.names, self.data.classes, strict=True))
        return Album(self.data, tuple(rows), infos, size, size)


def read_set(path: Path) -> DistilledSet:
    """A set of diffsel's.  Raises StoreError for any other folder, or where its record is damaged."""
    if not (path / "set.yaml").exists():
        raise StoreError(
            f"{path} is not a distilled set (no set.yaml); make one with `diffsel select RUN --ipc N --out {path}`"
        )
    record, file = read_yaml(path / "set.yaml"), path / "metadata.jsonl"
    try:
        lines = read_lines(file)
        pictures = tuple(Picture(line["file_name"], line["label"], line["class"], line["tiles"]) for line in lines)
        return DistilledSet(path, {**record, "selection": dict(record["selection"])}, pictures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file} is damaged ({type(error).__name__}: {error})") from None


def open_set(path: Path, factor: int | None = None, progress: Progress = quiet) -> DistilledSet:
    """Any distilled set; ``factor`` is read from it, or told where another tool made it (default 1).

    Raises DataError for a folder that is none, or has a class without images.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such distilled set (a folder of class folders)")
    record = read_yaml(path / "set.yaml") if (path / "set.yaml").exists() else {}
    pictures = read_set(path).pictures if record else ()
    found = DistilledSet(path, record, pictures, factor, progress)
    _ = found.data
    return found
