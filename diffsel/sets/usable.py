"""Images that a baseline may take: in the order they are drawn, decoded, no near copies; what was seen of them is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ..data.images import ImageData
from ..data.pixels import Pixels
from ..data.pool import LOOK, distinct, looks, near_copies
from ..data.rows import Row, Skipped
from ..machine.threads import threaded
from ..settings.errors import UnreadableImage

AT_ONCE = 50  # images of a class that are read together


class Crop(NamedTuple):
    """The crop of an image that a judge finds easiest to name as its class."""

    row: Row
    box: Int[np.ndarray, " 4"]
    loss: float


@dataclass
class Seen:
    """What was seen of images while sets of them were chosen."""

    lost: set[Skipped] = field(default_factory=set)  # an index knows only that an image's head can be read
    near: dict[str, str] = field(default_factory=dict)  # path -> that of the image it looks nearly like
    judged: dict[tuple[Any, ...], list[Crop]] = field(default_factory=dict)  # what a judge was asked -> its answer


@dataclass(frozen=True)
class Usable:
    """Images that can be decoded and look like none before them."""

    data: ImageData
    seen: Seen = field(default_factory=Seen)
    workers: int = 1
    alike: float = 1.0  # correlation of near copies (`near_copies`)

    def of(self, rows: Iterable[Row], at_once: int = AT_ONCE) -> Iterator[tuple[Row, Pixels]]:
        """Those of ``rows``, with their pixels, read by threads; ``at_once``: so many are read together."""
        read = filter(None, threaded(rows, self._read, self.workers))
        names, looked = list[str](), np.zeros((0, LOOK**2), np.uint8)
        while part := list(islice(read, at_once)):
            begin, looked = len(names), np.concatenate([looked, looks(pixels for _, pixels in part)])
            names += [row.path for row, _ in part]
            near = near_copies(looked, begin, alike=self.alike)
            self.seen.near |= {names[i]: names[first] for i, first in near.items()}
            yield from (each for i, each in enumerate(part, begin) if i not in near)
            stay = [i for i in range(len(names)) if i not in near]
            names, looked = [names[i] for i in stay], looked[stay]

    def _read(self, row: Row) -> tuple[Row, Pixels] | None:
        try:
            return row, self.data.pixels(row)
        except UnreadableImage as error:
            self.seen.lost.add(Skipped(row.path, row.label, str(error).removeprefix(f"{row.path}: ")))
            return None


def drawn(data: ImageData, label: str, seed: int) -> list[Row]:
    """The images of a class in random order, which depends on the seed and their names alone; each once."""

    def key(row: Row) -> bytes:
        return hashlib.sha256(f"{seed}/drawn/{label}/{row.path}".encode()).digest()

    return sorted(distinct(data.of_class(label)), key=key)
