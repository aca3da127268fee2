"""The list of a SET, published without pixels: the set made again of its sources, or the sources alone, as a filter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ..data.images import ImageData, base_of, open_listed
from ..data.pixels import suffix_of
from ..data.rows import Row
from ..machine.addresses import is_address
from ..machine.files import check_place, whole_folder, write_atomically
from ..machine.formats import dump_yaml, is_unused
from ..machine.progress import Progress, quiet
from ..settings.errors import DataError, StoreError
from ..settings.sections import AssemblySettings, DataSettings
from .assembly import assemble, class_folders
from .opening import DistilledSet, check_listing, is_there, read_set
from .record import read_sums
from .selection import Pick, tile_rank


def open_list(path: Path) -> DistilledSet:
    """A SET, an export of the form ``list``, or the metadata.jsonl of either, beside which set.yaml lies.

    Raises StoreError for anything else, DataError where it is not as it was made.
    """
    found = read_set(path.parent if path.is_file() else path)
    check_listing(found)
    return found


def sources(found: DistilledSet, data: str, settings: DataSettings) -> ImageData:
    """The images that a set was made from, each read, and compared by its hash.  Raises DataError as ``open_listed``."""
    tiles = [(picture.name, tile) for picture in found.pictures for tile in picture.tiles]
    listed = (Row(tile["row"], tile["source"], label, 0, 0, tile["digest"]) for label, tile in tiles)
    return open_listed(data, settings.model_copy(update={"classes": found.names, "classes_sha256": None}), listed)


def rebuild(found: DistilledSet, data: str, settings: DataSettings, out: Path, progress: Progress = quiet) -> list[str]:
    """List and source images -> SET: the files that have other bytes than the list's sums tell, if any (another version of the
    encoder; the pixels are the same).

    Raises DataError where an image is missing or another one, StoreError where OUT holds something else.
    """
    record = found.record
    try:
        assembly, sides = AssemblySettings(**record["assembly"]), {"side_multiple": 1, "image_size": record["image_size"]}
        sides |= {key: record[key] for key in sides if key in record}
        DataSettings(**sides)
    except (KeyError, ValidationError) as error:
        raise StoreError(f"{found.path / 'set.yaml'} does not tell how its pictures were made ({error})") from None
    if not is_there(out, record):
        images = sources(found, data, settings.model_copy(update=sides))
        picks = {label: _picks(found, label) for label in found.names}
        assemble(out, picks, images, assembly, record, progress)
    told, made = read_sums(found.path), read_sums(out)
    return [name for name, value in told.items() if made.get(name) != value]


def _picks(found: DistilledSet, label: str) -> Sequence[Pick]:
    """The picks of a class, by rank."""
    ipc, ranked = found.record["ipc"], dict[int, Pick]()
    for picture in found.images[label]:
        for place, tile in enumerate(picture.tiles):
            told = {key: value for key, value in tile.items() if key not in ("source", "digest")}
            ranked[tile_rank(picture.number, place, ipc)] = Pick(label, **{**told, "box": tuple(tile["box"])})
    return [ranked[rank] for rank in sorted(ranked)]


def apply(found: DistilledSet, data: str, settings: DataSettings, out: Path, copy: bool = False) -> int:
    """The source images of a set, each once, in a folder of class folders: links, or copies; how many.  Its classes.yaml has
    the names, words and order of the classes.

    Raises DataError where an image is missing or another one, or links are asked for and there are no files, StoreError where
    OUT holds something.
    """
    if not is_unused(out):
        raise StoreError(f"{out} exists; give a new or empty folder")
    check_place(out)
    base = base_of(data)
    if not (copy or (base and not is_address(base))):
        raise DataError(f"{data} holds no image files of this machine, which could be linked to; --copy writes them")
    images = sources(found, data, settings)
    folders = class_folders(found.names)
    with whole_folder(out) as part:
        for row in images.rows:
            name = row.path.partition("/")[2] if base else row.path.replace("/", "-")
            target = part / folders[row.label] / name
            if copy:
                content = images.read(row.path)
                write_atomically(target if target.suffix else target.with_suffix(suffix_of(content)), content)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(f"{base}/{row.path}")
        told = {folders[info.folder]: {"name": info.name, **info.words} for info in images.classes}
        write_atomically(part / "classes.yaml", dump_yaml(told))
    return len(images.rows)
