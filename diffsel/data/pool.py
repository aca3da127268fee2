"""Which images of a data set take part: classes by name, copies once, byte-identical or nearly so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..settings.errors import DataError
from .images import ImageData
from .rows import Row, Rows


def known_classes(data: ImageData, names: Sequence[str] | None) -> list[str]:
    """The classes asked for (all by default).  Raises DataError for one that the data lacks."""
    return among(names or (), [info.folder for info in data.classes], data.root)


def among(names: Sequence[str], there: Iterable[str], where: object) -> list[str]:
    """``names``, each once, or all that are ``there``.  Raises DataError for one that is not."""
    known = dict.fromkeys(there)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3) or list(known)[:8]
            raise DataError(f"class {name!r} is not in {where}; there is {', '.join(near)}")
    return list(dict.fromkeys(names or known))


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The rows without byte-identical copies of earlier ones: of several, the lowest row stays."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.digest, row)
    return list(first.values())


def copies(data: ImageData, classes: Sequence[str]) -> dict[str, int]:
    """How many images of these classes are left out as copies, as set.yaml tells; empty where none is."""
    count = sum(len(rows) - len(set(rows.texts("digest"))) for rows in map(data.of_class, classes))
    return {"copies_left_out": count} if count else {}


def copies_note(data: ImageData, classes: Sequence[str]) -> str:
    """What copies there are among the images of these classes; empty where there are none."""
    within, across = list[str](), list[str]()
    for row, other in Rows.of(map(data.of_class, classes)).copies():
        (within if other.label == row.label else across).append(f"{row.path} and {other.path}")
    notes = []
    if within:
        notes.append(f"{len(within)} images have the same bytes as others of their class and are left out, such as {within[0]}")
    if across:
        notes.append(f"{len(across)} images have the same bytes as images of other classes, such as {across[0]}: see to labels")
    return "; ".join(notes)


# ---- near copies -----------------------------------------------------------------------------------------------------

LOOK = 16  # side of the small grey picture that says how an image looks
BLOCK = 1024  # images that are compared with all others at a time


def looks(images: Iterable[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "n look"]:
    """Images as 16 x 16 means of their grey levels."""
    grey = (Image.fromarray(np.ascontiguousarray(pixels)).convert("L") for pixels in images)
    found = [np.asarray(picture.resize((LOOK, LOOK), Image.Resampling.BOX)).ravel() for picture in grey]
    return np.array(found, np.uint8).reshape(-1, LOOK**2)


def near_copies(seen: UInt8[np.ndarray, "n look"], start: int = 0, *, alike: float) -> dict[int, int]:
    """Of each image from place ``start`` on that looks like an earlier one: the place of that one, the first that is no near
    copy itself.  Before ``start`` there are none.  Two images look alike where their grey pictures correlate by ``alike`` or
    more, whatever their brightness and contrast, or are equal.

    >>> ramp = np.arange(256, dtype=np.uint8)
    >>> near_copies(np.stack([ramp, ramp[::-1], ramp // 2 + 40]), alike=0.97)
    {2: 0}
    """
    values = seen.astype(np.float32)  # sums of whole numbers are exact in it, in any order: 256 x 255^2 < 2^24
    sums, squares, n = values.sum(1).astype(np.float64), (values**2).sum(1).astype(np.float64), LOOK**2
    spread = np.sqrt(n * squares - sums**2)
    found: dict[int, int] = {}
    for begin in range(start, len(seen), BLOCK):
        own = slice(begin, begin + BLOCK)
        products, scale = (values[own] @ values.T).astype(np.float64), spread[own, None] * spread
        equal = squares[own, None] + squares == 2 * products
        near = equal | ((scale > 0) & (n * products - sums[own, None] * sums >= alike * scale))
        for i, j in np.argwhere(np.tril(near, begin - 1)).tolist():  # by image, the first like it first
            if begin + i not in found and j not in found:
                found[begin + i] = j
    return found


def near_note(pairs: Sequence[tuple[str, str]]) -> str:
    """What near copies were left out, each with the image that it looks like; empty where there are none."""
    if not pairs:
        return ""
    path, first = pairs[0]
    return f"{len(pairs)} images look nearly like others of their class and are left out, such as {path} (like {first})"
