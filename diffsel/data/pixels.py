"""Image files -> pixels: any format and mode as an upright RGB picture, and resizing."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..settings.errors import UnreadableImage
from ..settings.sections import DataSettings

Pixels = NDArray[np.uint8]


@contextmanager
def _opened(blob: bytes, max_pixels: int, name: str) -> Iterator[Image.Image]:
    """An image whose header was read.  Everything that goes wrong becomes an UnreadableImage with a plain reason."""
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)  # the limit is ours, checked before decoding
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(blob)) as picture:
                if picture.width * picture.height > max_pixels:
                    raise UnreadableImage(
                        f"{name}: {picture.width} x {picture.height} pixels, over data.max_pixels = {max_pixels}"
                    )
                yield picture
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"{name}: more than twice the pixels of data.max_pixels = {max_pixels}") from None
    except Exception as error:  # PIL's plugins raise nearly anything on broken files
        raise UnreadableImage(f"{name}: {_reason(blob, error)}") from None


def probe_size(blob: bytes, name: str, settings: DataSettings) -> tuple[int, int]:
    """Upright (width, height) from the header alone.  Raises UnreadableImage for what cannot or may not be read."""
    with _opened(blob, settings.max_pixels, name) as picture:
        width, height = picture.size
        # Pillow turns the size of a TIFF by itself, before it is loaded.
        if picture.format != "TIFF" and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8):
            width, height = height, width
    if max(width, height) > settings.max_aspect * min(width, height):
        raise UnreadableImage(
            f"{name}: {width} x {height} pixels, sides further apart than data.max_aspect = {settings.max_aspect:g}"
        )
    return width, height


def digest(blob: bytes) -> str:
    return hashlib.blake2b(blob, digest_size=16).hexdigest()


def decode(blob: bytes, max_pixels: int, name: str) -> Image.Image:
    """Any image file as an upright RGB picture: EXIF-turned, transparency on white, 16 bits scaled to 8.

    Raises UnreadableImage naming ``name`` and the reason.
    """
    with _opened(blob, max_pixels, name) as picture:
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        largest = values.max(initial=0)
        top = 65535.0 if picture.mode != "F" else 1.0 if largest <= 1 else 255.0 if largest <= 255 else 65535.0
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
