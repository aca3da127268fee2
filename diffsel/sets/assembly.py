"""Selection -> SET: one picture (or 2 x 2 mosaic) per distilled image, and where every tile came from.

    SET/ <class>/00000.png ...   metadata.jsonl (one line per picture)   set.yaml (settings, class order)   README.md
         B2SUMS (what all of these files are)

torchvision's ImageFolder and the datasets library's imagefolder load it with the same labels.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from ..data.images import ImageData
from ..data.pixels import digest, resized_size
from ..data.rows import Row
from ..machine.files import APPEARED, apart, folded, safe_name, whole_folder, write_atomically
from ..machine.formats import dump_yaml
from ..machine.progress import Progress, quiet
from ..machine.threads import threaded
from ..settings.sections import AssemblySettings, DataSettings
from .card import card
from .opening import is_there
from .record import LISTED, SUMS, as_sums
from .selection import Pick, tile_rank

RDED_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
RDED_STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
SUFFIX = {"png": ".png", "jpeg": ".jpg"}
LOADING = 'datasets.load_dataset("imagefolder", data_dir="FOLDER", split="train")'
ABOUT = (
    "`metadata.jsonl` gives, for every image, each tile's source file, box (top, left, height, width in pixels of the resized "
    "source), score, cluster and rank.  `B2SUMS` says what all files are (`b2sum -c B2SUMS`)."
)


# Words in a path from which the datasets library guesses a split; a class may bear them (CIFAR-100 has "train").
SPLIT_WORD = re.compile(r"(?<![a-z])(train|training|test|testing|eval|evaluation|val|valid|validation|dev)(?![a-z])", re.I)

FILES = ("README.md", *LISTED, SUMS)  # what lies beside the class folders


def class_folder(label: str) -> str:
    """The folder of a class: its name, made harmless; no word of it reads as a split, and it is none of a set's files."""
    if folded(label) in map(folded, FILES):
        return f"%{ord(label[0]):02X}{label[1:]}"
    return SPLIT_WORD.sub(lambda word: f"%{ord(word[0][0]):02X}{word[0][1:]}", safe_name(label))


def class_folders(labels: Iterable[str]) -> dict[str, str]:
    """The folder of each class of a set; they differ on any disk."""
    return apart({label: class_folder(label) for label in labels})


def tile_sides(size: int, factor: int) -> list[int]:
    """Sides of the tiles along one side of a mosaic; where ``size`` does not divide, the first ones are a pixel larger."""
    return [size // factor + (i < size % factor) for i in range(factor)]


def cut(picture: Image.Image, pick: Pick, data: DataSettings, height: int, width: int) -> Image.Image:
    """A pick's box out of the original picture, resampled once (antialiased bicubic) to ``height`` x ``width``.

    The box is in pixels of the resized image; resizing first and cropping then gives the same up to rounding, but a
    second resampling for a smaller tile would blur.
    """
    box = _in_original(picture, pick, data)
    if box == (0, 0, width, height) == (0, 0, *picture.size):
        return picture
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box)


def cut_as_rded(picture: Image.Image, pick: Pick, data: DataSettings, side: int, height: int, width: int) -> Image.Image:
    """As RDED makes a tile: antialiased bilinear crop to ``side`` pixels, nearest to ``height`` x ``width``, bytes cut off.

    Its normalisation and back costs a rounding, after which cutting off loses a whole step of brightness here and there.
    """
    box = _in_original(picture, pick, data)
    bands = [band.convert("F").resize((side, side), Image.Resampling.BILINEAR, box=box) for band in picture.split()]
    values = np.stack([np.asarray(band, np.float32) / np.float32(255) for band in bands])
    tile = values[:, nearest(side, height)][:, :, nearest(side, width)]
    return Image.fromarray(rded_bytes((tile - RDED_MEAN) / RDED_STD))


def _in_original(picture: Image.Image, pick: Pick, data: DataSettings) -> tuple[float, float, float, float]:
    """A pick's box (left, top, right, bottom) in pixels of the picture before it was resized."""
    full_width, full_height = resized_size(picture.width, picture.height, data.image_size, data.step)
    across, down = picture.width / full_width, picture.height / full_height
    top, left, height, width = pick.box
    return left * across, top * down, min((left + width) * across, picture.width), min((top + height) * down, picture.height)


def nearest(length: int, size: int) -> Int[np.ndarray, " size"]:
    """Source of each of ``size`` positions, as torch's nearest interpolation counts (golden `rded_mix_images`)."""
    return np.floor(np.arange(size, dtype=np.float32) * np.float32(length / size)).astype(np.int64)


def rded_bytes(normalised: Float[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Normalised values back to bytes, fractions cut off (golden `rded_selector`: saved_u8)."""
    values = (normalised / (np.float32(1) / RDED_STD) + RDED_MEAN).astype(np.float32)
    return (values.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)


def mosaic(tiles: Sequence[Image.Image], size: int, factor: int) -> Image.Image:
    """``factor`` x ``factor`` tiles, row by row, on one square picture."""
    sides = tile_sides(size, factor)
    starts = [sum(sides[:i]) for i in range(factor)]
    picture = Image.new("RGB", (size, size))
    for number, tile in enumerate(tiles):
        row, col = divmod(number, factor)
        picture.paste(tile, (starts[col], starts[row]))
    return picture


def assemble(
    out: Path,
    selection: Mapping[str, Sequence[Pick]],
    data: ImageData,
    settings: AssemblySettings,
    record: Mapping[str, Any],
    progress: Progress = quiet,
    workers: int = 1,
) -> None:
    """Write SET, all at once: ``record["ipc"]`` pictures a class of ``record["factor"]`` tiles a side.

    ``record`` is everything that decided its bytes, and becomes set.yaml.  ``workers``: threads that make pictures; Pillow
    decodes, resizes and packs them beside one another.

    Raises DataError where a source image is gone or was edited since it was scored, and as ``is_there``.
    """
    try:
        _write_set(out, selection, data, settings, record, progress, workers)
    except OSError as error:
        if error.errno not in APPEARED:
            raise
        if not is_there(out, record):  # else another launch was first: with the same set, or it is refused
            raise


def _write_set(
    out: Path,
    selection: Mapping[str, Sequence[Pick]],
    data: ImageData,
    settings: AssemblySettings,
    record: Mapping[str, Any],
    progress: Progress,
    workers: int,
) -> None:
    ipc, factor = record["ipc"], record["factor"]
    folders = class_folders(selection)
    order = {folder: place for place, folder in enumerate(sorted(folders.values()))}
    lines, sums = [], dict[str, str]()
    pictures = [(label, image) for label in selection for image in range(ipc)]

    def make(picture: tuple[str, int]) -> tuple[str, str, dict[str, Any]]:
        label, image = picture
        picks = [selection[label][tile_rank(image, tile, ipc)] for tile in range(factor**2)]
        name = f"{folders[label]}/{image:05d}{SUFFIX[settings.format]}"
        written = _write(part / name, _render(picks, data, settings, factor))
        tiles = [_tile(pick, data.rows.numbered(pick.row)) for pick in picks]
        return name, written, {"file_name": name, "label": order[folders[label]], "class": label, "tiles": tiles}

    with whole_folder(out) as part, progress(total=len(pictures), desc=f"assembling ipc {ipc}", unit="image") as bar:
        for name, written, line in threaded(pictures, make, workers):
            sums[name] = written
            lines.append(line)
            bar.update()
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        sums["metadata.jsonl"] = _write(part / "metadata.jsonl", text.encode())
        sums["set.yaml"] = _write(part / "set.yaml", dump_yaml(record))
        _write(part / SUMS, as_sums(sums))
        labels = sorted(folders, key=lambda label: folders[label])
        words = {info.folder: info.name for info in data.classes}
        _write(part / "README.md", card(record, labels, LOADING, about=ABOUT, words=words).encode())


def _write(file: Path, content: bytes) -> str:
    write_atomically(file, content, flush=False)
    return digest(content)


def _render(picks: Sequence[Pick], data: ImageData, settings: AssemblySettings, factor: int) -> bytes:
    sides = tile_sides(settings.size, factor)
    tiles = []
    for number, pick in enumerate(picks):
        row, col = divmod(number, factor)
        picture = data.image(data.rows.numbered(pick.row))
        if settings.resample == "rded":
            tiles.append(cut_as_rded(picture, pick, data.settings, settings.size // factor, sides[row], sides[col]))
        else:
            tiles.append(cut(picture, pick, data.settings, sides[row], sides[col]))
    buffer = io.BytesIO()
    subsampling = 2 if settings.resample == "rded" else 0
    options = {"quality": settings.quality, "subsampling": subsampling} if settings.format == "jpeg" else {}
    mosaic(tiles, settings.size, factor).save(buffer, settings.format.upper(), **options)
    return buffer.getvalue()


def _tile(pick: Pick, row: Row) -> dict[str, Any]:
    tile = asdict(pick)
    del tile["label"]
    return {"source": row.path, "digest": row.digest, **tile, "box": list(pick.box)}
