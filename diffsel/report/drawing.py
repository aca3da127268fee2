"""Pictures: maps in colours, boxes on images, sheets of pictures, and the small WebP pictures of a report."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from ..data.pixels import Pixels, resized_size
from ..data.rows import Row
from ..runs.run import Run
from ..runs.units import Held
from ..scoring.patches import Box
from ..settings.errors import DataError, Scarce
from ..settings.yamls import no_pipe

SOURCE, MOSAIC, PATCH, CARD = 208, 168, 60, 96  # longest sides of pictures, pixels


def heat(cells: Float[np.ndarray, "h w"], height: int, width: int) -> Pixels:
    """A map as colours at image size: deep blue through teal to yellow, smallest to largest value."""
    span = float(np.ptp(cells)) or 1.0
    levels = Image.fromarray(((cells - cells.min()) / span).astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    anchors = np.array([[26, 18, 74], [40, 90, 140], [44, 160, 130], [150, 205, 70], [253, 231, 37]], np.float64)
    where = np.clip(np.asarray(levels), 0, 1) * (len(anchors) - 1)
    return np.stack([np.interp(where, range(len(anchors)), anchors[:, c]) for c in range(3)], -1).astype(np.uint8)


def with_boxes(pixels: Pixels, boxes: Sequence[tuple[Box, str]], scale: int) -> Image.Image:
    """An enlarged picture with coloured outlines."""
    picture = Image.fromarray(pixels).resize((pixels.shape[1] * scale, pixels.shape[0] * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for (top, left, height, width), colour in boxes:
        corner = (left * scale, top * scale, (left + width) * scale - 1, (top + height) * scale - 1)
        draw.rectangle(corner, outline=colour, width=max(2, scale // 2 + 1))
    return picture


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], title: str, gap: int = 10) -> Image.Image:
    """Captioned rows of pictures on one white page."""
    font, small = ImageFont.load_default(22), ImageFont.load_default(15)
    width = max(sum(p.width + gap for p in pictures) for _, pictures in rows) + gap
    width = max(width, int(font.getlength(title)) + 2 * gap, *(int(small.getlength(caption)) + 2 * gap for caption, _ in rows))
    height = 50 + sum(26 + max(p.height for p in pictures) + gap for _, pictures in rows)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((gap, 12), title, fill="#111111", font=font)
    y = 50
    for caption, pictures in rows:
        draw.text((gap, y), caption, fill="#444444", font=small)
        x, y = gap, y + 26
        for picture in pictures:
            page.paste(picture, (x, y))
            x += picture.width + gap
        y += max(p.height for p in pictures) + gap
    return page


# ---- the pictures of a report ----------------------------------------------------------------------------------------


class Painter:
    """Pictures and maps of one class's images; each image is read once, and only as large as it is shown."""

    def __init__(self, run: Run | None, label: str):
        self.run, self.label = run, label
        self.missing: dict[str, None] = {}  # why pictures are not shown
        self._read: set[int] = set()
        self._sources: dict[int, str] = {}
        self._patches: dict[tuple[int, Box], str] = {}
        self.rows: dict[int, Row] = {}
        if run:
            self.rows = {row.row: row for row in run.data.of_class(label)}

    @cached_property
    def held(self) -> list[Held]:
        """The maps of each unit of the class."""
        return [self.run.maps(unit) for unit in self.run.of_class(self.label)] if self.run else []

    def load(self, sources: Iterable[int], patches: Iterable[tuple[int, Box]] = ()) -> None:
        """Read the images of these rows, and of these patches; one that cannot be read is passed over, and the report says
        why."""
        boxes: dict[int, list[Box]] = {row: [] for row in sources}
        whole = set(boxes)
        for row, box in patches:
            boxes.setdefault(row, []).append(box)
        for row in boxes:
            if row in self.rows and row not in self._read:
                self._read.add(row)
                self._draw(row, row in whole, boxes[row])

    def _draw(self, row: int, whole: bool, boxes: Sequence[Box]) -> None:
        assert self.run
        width, height = self.size(row)
        shown = [SOURCE / max(width, height)] * whole + [PATCH / max(box[2:]) for box in boxes]
        try:
            picture = self.run.data.image(self.rows[row], math.ceil(min(width, height) * min(1, max(shown))))
        except Scarce:  # no page with holes that another time has none
            raise
        except DataError as error:
            self.missing[str(error).removeprefix(f"{self.rows[row].path}: ")] = None
            return
        if whole:
            self._sources[row] = as_uri(picture, min(SOURCE, max(width, height)))
        across, down = picture.width / width, picture.height / height
        for top, left, tall, wide in boxes:
            part = left * across, top * down, (left + wide) * across, (top + tall) * down
            self._patches[row, (top, left, tall, wide)] = as_uri(picture, min(PATCH, max(tall, wide)), 78, part)

    def source(self, row: int) -> str:
        return self._sources.get(row, "")

    def patch(self, row: int, box: Box) -> str:
        return self._patches.get((row, box), "")

    def size(self, row: int, as_it_is: bool = False) -> tuple[int, int]:
        """(width, height) in whose pixels boxes are; ``as_it_is``: of a baseline, which keeps an image's shape."""
        if not self.run or row not in self.rows:
            return 0, 0
        s, found = self.run.data.settings, self.rows[row]
        return resized_size(found.width, found.height, s.image_size, 1 if as_it_is else s.step)

    def heat(self, row: int) -> str:
        """The image's map in colours, enlarged only as far as a browser needs for a smooth picture."""
        held = next((held for held in self.held if row in held[1]["rows"]), None)
        if self.run is None or held is None:
            return ""
        cells = self.run.image_map(*held, self.rows[row])
        times = max(2, -(-64 // max(cells.shape)))
        return as_uri(Image.fromarray(heat(cells, cells.shape[0] * times, cells.shape[1] * times)), SOURCE, 80)

    def of_set(self, folder: Path, file: str, side: int) -> str:
        """A distilled image."""
        try:
            with Image.open(no_pipe(folder / file)) as picture:
                picture.draft(None, (side, side))  # type: ignore[arg-type]  # a JPEG no larger than is needed; None: its mode stays
                return as_uri(picture.convert("RGB"), side, 80)
        except OSError as error:
            Scarce.check(error, folder / file)
            self.missing[f"{folder.name}/{file}: {error.strerror or 'not an image any more'}"] = None
            return ""


def as_uri(picture: Image.Image, side: int, quality: int = 74, part: tuple[float, float, float, float] | None = None) -> str:
    """A picture, or a ``part`` of it (left, top, right, bottom), its longest side at most ``side`` pixels, as a WebP URI."""
    left, top, right, bottom = part or (0, 0, *picture.size)
    box = left, top, min(right, picture.width), min(bottom, picture.height)
    times = min(1.0, side / max(right - left, bottom - top))
    size = max(1, round(times * (right - left))), max(1, round(times * (bottom - top)))
    shrunk = picture.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=2)
    blob = io.BytesIO()
    shrunk.save(blob, "WEBP", quality=quality if max(size) > 40 else 92, method=2)
    return "data:image/webp;base64," + base64.b64encode(blob.getvalue()).decode()
