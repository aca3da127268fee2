"""Image files -> pixels: any format and mode as an upright sRGB picture, and resizing."""

from __future__ import annotations

import errno
import hashlib
import io
import re
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

from ..settings.errors import SCARCE, UnreadableImage
from ..settings.sections import DataSettings

Pixels = NDArray[np.uint8]
ORIENTATION, PHOTOMETRIC = 0x0112, 0x0106  # tags of EXIF and TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
NOT_REGULAR = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
PNG = b"\x89PNG\r\n\x1a\n"
PACKED = {  # chunks of a PNG that may be packed -> what stands before their packed bytes
    b"zTXt": rb"[^\0]*\0.",
    b"iTXt": rb"[^\0]*\0\x01.[^\0]*\0[^\0]*\0",
    b"iCCP": rb"[^\0]*\0.",
}
NEEDED = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # lower-case chunks that decide pixels; the others say something about them
SLACK = 1.25  # floating-point pixels may overshoot their range by a quarter, as resampling makes them
FAR = 8  # times smaller than a range of whole numbers: then the pixels are of another one


def read_file(path: Path, name: str) -> bytes:
    """All bytes of a file.  Raises UnreadableImage for a pipe, socket or device, which is never opened, and OSError."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise UnreadableImage(f"{name}: {NOT_REGULAR.get(stat.S_IFMT(mode), 'something else')}, not a regular file")
    return path.read_bytes()


@contextmanager
def _opened(blob: bytes, max_pixels: int, name: str) -> Iterator[Image.Image]:
    """An image whose header was read.  Everything that is wrong with it becomes an UnreadableImage with a plain reason.

    Raises OSError where not the image but the machine is at fault: no memory, no free file handle.
    """
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)  # the limit is ours, checked before decoding
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(_without_bad_exif(_without_bad_texts(blob)))) as picture:
                if picture.width * picture.height > max_pixels:
                    raise UnreadableImage(
                        f"{name}: {picture.width} x {picture.height} pixels, over data.max_pixels = {max_pixels}"
                    )
                yield picture
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"{name}: more than twice the pixels of data.max_pixels = {max_pixels}") from None
    except MemoryError:
        raise OSError(errno.ENOMEM, "not enough memory to decode it") from None
    except Exception as error:  # PIL's plugins raise nearly anything on broken files
        if isinstance(error, OSError) and error.errno in SCARCE:
            raise
        raise UnreadableImage(f"{name}: {_reason(blob, error)}") from None


def probe_size(blob: bytes, name: str, settings: DataSettings) -> tuple[int, int]:
    """Upright (width, height) from the header alone.  Raises UnreadableImage for what cannot or may not be read."""
    with _opened(blob, settings.max_pixels, name) as picture:
        width, height = picture.size
        if _orientation(picture) > 4 and not _turned_by_pillow(picture):
            width, height = height, width
    if max(width, height) > settings.max_aspect * min(width, height):
        raise UnreadableImage(
            f"{name}: {width} x {height} pixels, sides further apart than data.max_aspect = {settings.max_aspect:g}"
        )
    return width, height


def digest(blob: bytes) -> str:
    return hashlib.blake2b(blob, digest_size=16).hexdigest()


def suffix_of(blob: bytes) -> str:
    """The extension of an image file, by its content; it must be one."""
    with Image.open(io.BytesIO(blob)) as picture:
        return {"JPEG": ".jpg", "MPO": ".jpg"}.get(str(picture.format), f".{picture.format}".lower())


def decode(blob: bytes, max_pixels: int, name: str, least: int | None = None) -> Image.Image:
    """Any image file as an upright sRGB picture: turned as EXIF or XMP says, transparency on white, 16 bits scaled to 8.

    ``least``: to look at, at no more than this shorter side in pixels; a JPEG is then decoded at a half, quarter or eighth,
    as far as that leaves so many.
    Raises UnreadableImage naming ``name`` and the reason, OSError where the machine lacks memory or file handles.
    """
    with _opened(blob, max_pixels, name) as picture:
        orientation = _orientation(picture)  # of a TIFF it is gone once it is loaded: Pillow turns the pixels
        if least:
            picture.draft(None, (least, least))  # type: ignore[arg-type]  # None: the mode stays
        picture.load()
        upright = _to_rgb(picture)
        turn = None if picture.format == "TIFF" else TURNS.get(orientation)
        return upright if turn is None else upright.transpose(turn)


# ---- what a file says of its picture ---------------------------------------------------------------------------------


def _without_bad_texts(blob: bytes) -> bytes:
    """A PNG without those texts, profiles and the like that are damaged or longer than Pillow unpacks: it would refuse the
    whole picture.  Any other file as it is."""
    if not blob.startswith(PNG):
        return blob
    kept, begin, here, total = [], 0, len(PNG), 0
    while here + 12 <= len(blob):
        end = here + 12 + int.from_bytes(blob[here : here + 4], "big")
        kind = blob[here + 4 : here + 8]
        if kind[:1].islower() and kind not in NEEDED:
            size = _unpacked_size(kind, blob[here + 8 : end - 4])
            checksum = int.from_bytes(blob[end - 4 : end], "big")
            before = total if kind.endswith(b"Xt") else 0  # of all texts; a profile and EXIF count alone
            if zlib.crc32(blob[here + 4 : end - 4]) != checksum or before + size > MAX_TEXT_MEMORY:
                kept.append(blob[begin:here])
                begin = end
            elif kind.endswith(b"Xt"):
                total += size
        here = end
    return b"".join([*kept, blob[begin:]])


def _without_bad_exif(blob: bytes) -> bytes:
    """An AVIF whose EXIF its decoder refuses, and the picture with it, without that.  Any other file as it is."""
    if blob[4:8] == b"ftyp":
        try:
            Image.open(io.BytesIO(blob)).close()
        except ValueError as error:
            if "Exif" in str(error):
                return blob.replace(b"Exif", b"none")  # parts of another name are passed over
    return blob


def _unpacked_size(kind: bytes, content: bytes) -> int:
    """Bytes of a chunk's text, unpacked where it is packed; too many for any limit where Pillow would not unpack it."""
    before = re.match(PACKED.get(kind, rb"(?!)"), content, re.DOTALL)
    if before is None:
        return len(content)
    unpacking = zlib.decompressobj()
    try:
        plain = unpacking.decompress(content[before.end() :], MAX_TEXT_CHUNK)
    except zlib.error:  # Pillow passes over it
        return 0
    return MAX_TEXT_MEMORY + 1 if unpacking.unconsumed_tail else len(plain)


def _orientation(picture: Image.Image) -> int:
    """How a picture lies, 1 to 8, by its EXIF, else its XMP; 1 where neither says so, or neither can be read."""
    if picture.format == "PNG" and "exif" not in picture.info:
        picture.load()  # it may stand behind the pixels; a picture that does not load is told as such
    try:
        found = picture.getexif().get(ORIENTATION)
    except Exception:  # EXIF may hold anything, and the pixels do not depend on it
        found = None
    if isinstance(found, tuple | bytes) and found:
        found = found[0]
    if known := [lie for lie in range(1, 9) if lie == found]:
        return known[0]
    xmp = picture.info.get("XML:com.adobe.xmp") or picture.info.get("xmp") or b""
    said = re.search(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])", xmp if isinstance(xmp, bytes) else xmp.encode())
    return int(said[1]) if said else 1


def _turned_by_pillow(picture: Image.Image) -> bool:
    """Whether ``picture.size`` is the upright one already: of a TIFF whose own tag turns it."""
    return picture.format == "TIFF" and picture.tag_v2.get(ORIENTATION) in (5, 6, 7, 8)  # type: ignore[attr-defined]


# ---- pixels as they look ---------------------------------------------------------------------------------------------


def _to_rgb(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile") or b""
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _eight_bits(picture)
    if picture.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in picture.info:
        return _as_srgb(picture, profile)
    with_alpha = picture.convert("RGBA")
    colours = _as_srgb(picture.convert("L") if picture.mode == "LA" else with_alpha.convert("RGB"), profile)
    over = Image.merge("RGBA", (*colours.split(), with_alpha.getchannel("A")))
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), over).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pixels of 16 or 32 bits, or of floating-point numbers, as grey.  What is no number is black, what is infinite white."""
    values = np.asarray(picture, dtype=np.float64)
    free = picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF")  # 32 bits, of which any may be used
    low, high = _range(values[np.isfinite(values)]) if free else (0.0, 65535.0)
    share = (values - low) / (high - low)
    if picture.format == "TIFF" and picture.tag_v2.get(PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
        share = 1 - share  # 0 is white, which Pillow knows of 8 bits and fewer
    return Image.fromarray((np.clip(np.nan_to_num(share, nan=0.0), 0, 1) * 255 + 0.5).astype(np.uint8))


def _range(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """What is black and what is white among such pixels, all finite; a few that are far from the others do not count.

    Black is 0, and white 1, 255 or 65535, whichever the bright pixels come near; the pixels' own range where they come near
    none, or reach far below 0.  Raises ValueError where there are none.
    """
    if not values.size:
        raise ValueError("no pixel is a finite number")
    dark, high = map(float, np.quantile(values, (0.005, 0.995)))
    bright = float(np.quantile(values[values > 0], 0.995)) if (values > 0).any() else 0.0
    if dark < -max(bright, 0.0) / 4:
        return dark, high if high > dark else dark + 1
    near = (top for top in (1.0, 255.0, 65535.0) if (top == 1 or bright > top / FAR) and bright <= SLACK * top)
    return 0.0, next(near, bright)


def _as_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """As RGB, by a colour profile where it can be read and is of such pixels."""
    if picture.mode not in ("L", "RGB", "CMYK", "LAB"):
        picture = picture.convert("RGB")
    transform = _srgb_transform(profile, picture.mode) if profile or picture.mode == "LAB" else None
    return picture.convert("RGB") if transform is None else transform.apply(picture)


@lru_cache(maxsize=32)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where the profile is sRGB's, to rounding, or cannot be used: then pixels stay as they are."""
    try:
        source = ImageCms.createProfile("LAB") if mode == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    if mode == "RGB":
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        seen = np.asarray(transform.apply(Image.fromarray(colours)))
        if np.abs(seen.astype(int) - colours).max() <= 2:
            return None
    return transform


def _reason(blob: bytes, error: Exception) -> str:
    if not blob:
        return "empty file"
    if blob.lstrip()[:1] == b"<":
        return "a web page or XML, not an image"
    if isinstance(error, UnidentifiedImageError):  # whose text tells an address in memory, another one each time
        return "unreadable image (no format that is known)"
    return f"unreadable image ({type(error).__name__}: {str(error).replace(chr(10), ' ')[:120]})"


def resized_size(width: int, height: int, shortest: int, step: int = 1) -> tuple[int, int]:
    """(width, height) after the shortest side is brought to ``shortest`` and the other follows, rounded down; with a ``step``
    it is longer by the nearest multiple of so many pixels, so that few sizes are left."""
    if width > height:
        return resized_size(height, width, shortest, step)[::-1]
    longest = shortest * height // width
    return shortest, longest if step == 1 else shortest + (longest - shortest + step // 2) // step * step


def resize(picture: Image.Image, shortest: int, step: int = 1) -> Image.Image:
    """Shortest side to ``shortest`` pixels, aspect kept (to ``step``, as ``resized_size``), antialiased bicubic (paper A.1)."""
    size = resized_size(picture.width, picture.height, shortest, step)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)
