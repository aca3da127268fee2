"""What a SET says of itself: set.yaml, metadata.jsonl and B2SUMS, checked as they are read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..data.pixels import digest
from ..machine.formats import read_lines, read_yaml
from ..settings.errors import StoreError, Withheld
from ..settings.yamls import read_text

FORMAT = 1
SUMS = "B2SUMS"
LISTED = ("metadata.jsonl", "set.yaml")  # in B2SUMS, besides the pictures; README.md is for people to write in
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


def _within(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"{name!r} leads out of the data set")
    return name


def _region(box: list[int]) -> list[int]:
    if len(box) != 4 or min(box) < 0 or not all(box[2:]):
        raise ValueError(f"{box} is no (top, left, height, width)")
    return box


class _Tile(_Strict):
    """Of a line of metadata.jsonl.  A source lies in the data set, and nowhere else."""

    source: Annotated[str, AfterValidator(_within)]
    digest: str
    row: int
    rank: int
    box: Annotated[list[int], AfterValidator(_region)]
    score: FiniteFloat
    cluster: int | None
    place: int | None
    distance: FiniteFloat | None
    reason: str


class _Line(_Strict):
    """Of metadata.jsonl.  A file lies in a class folder of the set, and nowhere else."""

    file_name: Annotated[str, Field(pattern=r"^[^./\\][^/\\]*/[0-9]+\.(png|jpg)$")]
    label: int
    class_: Annotated[str, Field(alias="class")]
    tiles: list[_Tile]


class _Selection(_Strict):
    method: str


class _Assembly(_Strict):
    size: Count


class _Record(_Strict):
    """set.yaml, as far as it is read."""

    ipc: Count
    factor: Count
    seed: int
    classes: Annotated[list[str], Field(min_length=1)]
    selection: _Selection
    assembly: _Assembly


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


def read_listing(path: Path) -> tuple[dict[str, Any], tuple[Picture, ...]]:
    """set.yaml and the pictures of metadata.jsonl.  Raises StoreError where they are damaged, or of another format."""
    record = read_yaml(path / "set.yaml")
    if record.get("format") != FORMAT:
        raise StoreError(f"{path} has set format {record.get('format')!r}; this version reads format {FORMAT}")
    file = path / "set.yaml"
    try:
        told = _Record.model_validate(record)
        file = path / "metadata.jsonl"
        lines = read_lines(file)
        for line in lines:
            _Line.model_validate(line)
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} is damaged ({_first(error)}); delete {path} and make it anew") from None
    pictures = tuple(Picture(line["file_name"], line["label"], line["class"], line["tiles"]) for line in lines)
    if reason := _contradiction(told, pictures):
        raise StoreError(f"{file} is damaged ({reason}); delete {path} and make it anew")
    return record, pictures


def read_sums(path: Path) -> dict[str, str]:
    """File and digest, as B2SUMS tells; empty for a set of an earlier version.  Raises StoreError where it is damaged, or lost
    though the card speaks of it."""
    file, card = path / SUMS, path / "README.md"
    if not os.path.lexists(file):
        if card.is_file() and SUMS.encode() in card.read_bytes():
            raise StoreError(f"{file} is lost, which told what all files are")
        return {}
    try:
        lines = [re.fullmatch(r"([0-9a-f]{32})  (.+)", line) for line in read_text(file).split("\n") if line]
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} is damaged ({_first(error)})") from None
    found = {line[2]: line[1] for line in lines if line}
    if not lines or len(found) < len(lines):
        raise StoreError(f"{file} is damaged (expected a digest and a file in each line)")
    return found


def damaged_files(folder: Path, sums: Mapping[str, str], teller: str) -> Iterator[tuple[Path, str]]:
    """Files of a folder that are not what they were when it was made, as ``teller`` knows by their digests, and what is wrong
    with each.  Raises Withheld for one that cannot be read now."""
    for name in sums:
        if reason := damage(folder, name, sums, teller, teller):
            yield folder / name, reason


def damage(folder: Path, name: str, sums: Mapping[str, str], named: str, teller: str = SUMS) -> str | None:
    """What is wrong with a file of a folder that ``named`` names, where ``teller`` tells the digests of all files, if any.

    Raises Withheld for a file that cannot be read now.
    """
    file = folder / name
    try:
        if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
            return "is a link that leads out of its folder"
        if not file.is_file():
            return f"is named in {named} but is not there"
        if name in sums and digest(file.read_bytes()) != sums[name]:
            return f"is not what {teller} tells (its bytes have another hash)"
    except OSError as error:
        raise Withheld.of(file, error) from None
    return f"is not in {teller}" if sums and name not in sums else None


def as_sums(sums: Mapping[str, str]) -> bytes:
    """B2SUMS: of each file its digest."""
    return "".join(f"{value}  {name}\n" for name, value in sums.items()).encode()


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'a line'}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


def _contradiction(told: _Record, pictures: Sequence[Picture]) -> str:
    """Where the pictures that are listed cannot be those of the record; empty if they can."""
    counts = Counter(picture.name for picture in pictures)
    for name in dict.fromkeys([*told.classes, *counts]):
        wanted = told.ipc if name in told.classes else 0
        if counts[name] != wanted:
            return f"it lists {counts[name]} pictures of class {name!r}, but set.yaml tells {wanted}"
    if len({picture.file for picture in pictures}) < len(pictures):
        return "it lists a picture twice"
    folders = {(picture.file.partition("/")[0], picture.name) for picture in pictures}
    order = {folder: place for place, folder in enumerate(sorted({folder for folder, _ in folders}))}
    if not len(order) == len(folders) == len(counts):
        return "it lists a class in two folders, or two classes in one"
    for picture in pictures:
        if picture.label != order[picture.file.partition("/")[0]]:
            return f"it gives {picture.file} the label {picture.label}, which is not the place of its folder"
        if len(picture.tiles) != told.factor**2:
            return f"it gives {picture.file} {len(picture.tiles)} tiles, but set.yaml tells {told.factor} a side"
    return ""
