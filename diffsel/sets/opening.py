"""The one reader of a SET: its record, its pictures and their tiles, and its images as students take them.

A SET says in B2SUMS what its files are (`b2sum -c B2SUMS` checks them too).  Whoever takes its pictures has them compared;
sets of earlier versions have no B2SUMS, and only lost pictures and strange ones are noticed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.albums import Album
from ..data.classes import ClassInfo
from ..data.images import ImageData, open_data
from ..data.notebook import counted, facts_html, pictures_html
from ..data.trees import EXTENSIONS, FOREIGN
from ..machine.files import AsPath, check_place
from ..machine.formats import differences, is_mine
from ..machine.progress import Progress, quiet
from ..settings.errors import DataError, StoreError
from ..settings.sections import DataSettings
from .record import LISTED, SUMS, Picture, damage, read_listing, read_sums

HUB = "hub:"  # before the name of a repository of the `datasets` library, in a path's place


@dataclass(frozen=True, eq=False, repr=False)
class DistilledSet:
    """An opened SET: written by diffsel, or any folder of class folders (then ``record`` and ``pictures`` are empty)."""

    path: Path
    record: Mapping[str, Any]  # set.yaml
    pictures: tuple[Picture, ...]
    told: int | None = None  # tiles per mosaic side, for sets of other tools
    progress: Progress = quiet
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # from what it is shown beside

    def __repr__(self) -> str:
        return f"DistilledSet({str(self.path)!r}: {self.summary})"

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        files = {label: [self.path / picture.file for picture in found] for label, found in self.images.items()}
        return facts_html(str(self.path), {"set": self.summary, "tiles a side": self.factor}) + pictures_html(files)

    @property
    def summary(self) -> str:
        """Its pictures, and who chose them."""
        if not self.pictures:
            return "of another tool"
        images, classes = counted(len(self.pictures), "image"), counted(len(self.images), "class")
        return f"{images} of {classes}, chosen by {self.method}"

    @property
    def name(self) -> str:
        return title(self.path)

    @property
    def method(self) -> str | None:
        """As recorded: random, rded, diffsel ..."""
        return self.record.get("selection", {}).get("method")

    @cached_property
    def sources(self) -> frozenset[str]:
        """Digests of the images that it was made from; for a set of another tool, of its own pictures."""
        return self.made_from(None)

    def made_from(self, ipc: int | None) -> frozenset[str]:
        """As ``sources``, of the first ``ipc`` pictures of each class."""
        if self.pictures:
            pictures = [picture for each in self.images.values() for picture in each[:ipc]]
            return frozenset(tile["digest"] for picture in pictures for tile in picture.tiles if tile.get("digest"))
        return frozenset(row.digest for row in self.album(ipc, self.side).rows)

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

    @cached_property
    def folders(self) -> dict[str, str]:
        """The folder of each class in the set."""
        return {picture.name: picture.file.partition("/")[0] for picture in self.pictures}

    def tiles(self, label: str) -> list[Mapping[str, Any]]:
        """The tiles of a class, picture by picture."""
        return [tile for picture in self.images.get(label, ()) for tile in picture.tiles]

    @cached_property
    def data(self) -> ImageData:
        """Its pictures as a data set, read and hashed.  Raises DataError where one cannot be read."""
        order = tuple(self.folders[name] for name in self.record["classes"]) if self.record else None
        data = open_data(str(self.path).removeprefix(HUB), DataSettings(classes=order), 0, progress=self.progress)
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
        """Of set.yaml, metadata.jsonl and B2SUMS, hence of every picture."""
        files = [self.path / name for name in (*LISTED, SUMS)]
        listed = b"".join(file.read_bytes() for file in files if file.name != SUMS or file.exists())
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


# ---- opening ---------------------------------------------------------------------------------------------------------


def read_set(path: AsPath) -> DistilledSet:
    """A set of diffsel's.  Raises StoreError for any other folder, or where its record is damaged.

    Its pictures are not looked at: ``check_whole`` does that.
    """
    path = Path(path)
    if not (path / "set.yaml").exists():
        some = sorted(path.glob("*/set.yaml"))
        holds = f"it holds sets, such as {some[0].parent}" if some else "`diffsel select RUN --ipc N --out SET` makes one"
        raise StoreError(f"{path} is not a distilled set ({'no set.yaml' if path.exists() else 'no such folder'}); {holds}")
    return DistilledSet(path, *read_listing(path))


def check_listing(found: DistilledSet) -> None:
    """Raises DataError where set.yaml or metadata.jsonl is not as it was made, whether the pictures are there or not."""
    sums = read_sums(found.path)
    for name in LISTED:
        if reason := damage(found.path, name, sums, "metadata.jsonl"):
            raise DataError(f"{found.path / name} {reason}; put a whole copy back")


def open_set(path: AsPath, factor: int | None = None, progress: Progress = quiet) -> DistilledSet:
    """Any distilled set.

    >>> open_set("run/ipc1").names
    ('cat', 'dog')

    ``factor`` is read from it, or told where another tool made it (default 1).  ``hub:OWNER/NAME`` is a repository of the
    `datasets` library with images and labels, its split `train`.

    Raises DataError for a folder that is none, or has a class without images, and as ``read_set`` and ``check_whole``.
    """
    path = Path(path)
    if not path.is_dir() and not str(path).startswith(HUB):
        raise DataError(f"{path}: no such distilled set (a folder of class folders, or hub:OWNER/NAME)")
    ours = (path / "set.yaml").exists()
    read = read_set(path) if ours else DistilledSet(path, {}, ())
    found = replace(read, told=factor, progress=progress)
    if ours:
        check_whole(found)
    _ = found.data
    return found


def home(path: Path) -> Path:
    """Beside which a set's results lie: itself, and NAME in this folder for hub:OWNER/NAME."""
    told = Path(str(path).removeprefix(HUB))
    return told if told.is_dir() or told == path else Path(told.name)


def title(path: Path) -> str:
    """What a set is called; one of several (set-0, set-1 ...) by their folder too.

    >>> title(Path("sets/random10/set-0")), title(Path("run/ipc1"))
    ('random10/set-0', 'ipc1')
    """
    return f"{path.parent.name}/{path.name}" if re.fullmatch(r"set-\d+", path.name) else path.name


def members(path: Path) -> list[Path]:
    """The sets of a folder that holds several (set-0, set-1 ...), made alike but for chance; of any other, itself.

    Raises DataError where they differ in more than their seed and their pass, and as ``read_set``.
    """
    found = [] if (path / "set.yaml").exists() else [file.parent for file in path.glob("set-*/set.yaml")]
    found.sort(key=lambda one: (len(one.name), one.name))
    records = [{**read_set(one).record, "seed": None, "run": None} for one in found]
    for one, record in zip(found, records, strict=True):
        if told := differences(records[0], record):
            what = "; ".join(f"{key}: {old} and {new}" for key, (old, new) in told.items())
            raise DataError(f"{found[0]} and {one} differ in more than chance ({what}); they are no sets of one line")
    return found or [path]


def is_there(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether the very set that ``record`` describes lies at ``out``; False where it may be made there.

    Raises SettingsDiffer or StoreError where another one or something else lies there, or no folder can be made, and as
    ``read_set`` and ``check_whole`` where it is there but damaged.
    """
    if is_mine(out, "set.yaml", record, "a distilled set"):
        check_whole(read_set(out))
        return True
    check_place(out)
    return False


# ---- is it whole? ----------------------------------------------------------------------------------------------------


def check_whole(found: DistilledSet) -> None:
    """Raises DataError where a set of diffsel's is not as it was made."""
    if damaged := list(damaged_pictures(found)):
        file, reason = damaged[0]
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise DataError(f"{file} {reason}{more}; the set is damaged: delete {found.path} and make it anew")


def damaged_pictures(found: DistilledSet) -> Iterator[tuple[Path, str]]:
    """Files of a set that are not what they were when it was made, and what is wrong with each.  Raises Withheld for one that
    cannot be read now."""
    try:
        sums = read_sums(found.path)
    except StoreError as error:
        yield found.path / SUMS, str(error).removeprefix(f"{found.path / SUMS} ")
        sums = {}
    listed = [picture.file for picture in found.pictures]
    for name in [*listed, *LISTED]:
        if reason := damage(found.path, name, sums, "metadata.jsonl"):
            yield found.path / name, reason
    for name in sorted(set(_images(found.path)) - set(listed)):
        yield found.path / name, "is not named in metadata.jsonl"


def _images(path: Path) -> Iterator[str]:
    """What other tools would take for pictures of the set, and links to folders, which may hold some."""
    for where, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in FOREIGN]
        links = [name for name in folders if Path(where, name).is_symlink()]
        images = [name for name in names if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")]
        yield from (Path(where, name).relative_to(path).as_posix() for name in [*links, *images])
