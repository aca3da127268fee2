"""Pixels as the picture shows them, whatever the file."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import encoded
from PIL import Image

from diffsel.data.pixels import decode, resized_size


def read(blob: bytes) -> np.ndarray:
    return np.asarray(decode(blob, 10_000_000, "name"))


MODES = {
    "grey": (lambda p: p.convert("L"), "PNG"),
    "palette": (lambda p: p.convert("P", palette=Image.Palette.ADAPTIVE, colors=200), "PNG"),
    "opaque RGBA": (lambda p: p.convert("RGBA"), "PNG"),
    "LA": (lambda p: p.convert("LA"), "PNG"),
    "CMYK": (lambda p: p.convert("CMYK"), "JPEG"),
    "16 bit": (lambda p: Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257), "PNG"),
    "1 bit": (lambda p: p.convert("1"), "PNG"),
    "GIF": (lambda p: p, "GIF"),
    "WebP": (lambda p: p, "WEBP"),
    "TIFF float": (lambda p: Image.fromarray(np.asarray(p.convert("L")).astype(np.float32) / 255), "TIFF"),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_read_as_the_picture_it_shows(name: str) -> None:
    ramp = np.add.outer(np.arange(40) * 3, np.arange(50) * 2).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(np.stack([ramp] * 3, -1))
    change, kind = MODES[name]
    pixels = read(encoded(change(picture), kind))
    assert pixels.shape == (40, 50, 3)
    assert pixels.dtype == np.uint8
    mean, tolerance = np.abs(pixels.astype(int) - np.asarray(picture)).mean(), 130 if name == "1 bit" else 6
    assert mean < tolerance


def test_transparency_is_white_and_exif_orientation_is_applied() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (read(encoded(clear)) == 255).all()
    wide = Image.new("RGB", (30, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(encoded(wide, "JPEG", exif=exif)).shape == (30, 10, 3)


def test_tiny_images_are_enlarged_and_sizes_round_down() -> None:
    assert resized_size(5, 7, 256) == (256, 358)
    assert resized_size(1000, 999, 256) == (256, 256)
