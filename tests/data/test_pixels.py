"""Pixels as the picture shows them, whatever the file."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from pictures import encoded
from PIL import Image, ImageCms, features

from diffsel.data.pixels import decode, probe_size, resized_size
from diffsel.settings.errors import UnreadableImage
from diffsel.settings.sections import DataSettings


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


def test_a_jpeg_to_look_at_is_decoded_no_larger_than_is_needed() -> None:
    ramp = np.add.outer(np.arange(400) // 3, np.arange(600) // 5).astype(np.uint8)
    picture, exif = Image.fromarray(np.stack([ramp] * 3, -1)), Image.Exif()
    exif[0x0112] = 6
    blob = encoded(picture, "JPEG", exif=exif, quality=95)
    for least, size in ((None, (400, 600)), (400, (400, 600)), (201, (400, 600)), (200, (200, 300)), (60, (100, 150))):
        found = decode(blob, 10_000_000, "name", least)
        assert found.size == size
        expected = picture.transpose(Image.Transpose.ROTATE_270).resize(size, Image.Resampling.BOX)
        assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).mean() < 2
    assert decode(encoded(picture), 10_000_000, "name", 60).size == (600, 400)  # a PNG cannot


def test_tiny_images_are_enlarged_and_sizes_round_down() -> None:
    assert resized_size(5, 7, 256) == (256, 358)
    assert resized_size(1000, 999, 256) == (256, 256)


@pytest.mark.parametrize(
    ("size", "step", "expected"),
    [
        ((500, 375), 64, (320, 256)),
        ((500, 375), 32, (352, 256)),
        ((375, 500), 32, (256, 352)),
        ((510, 500), 64, (256, 256)),
        ((100, 800), 64, (256, 2048)),
        ((7, 5), 1, (358, 256)),
    ],
)
def test_the_longer_side_goes_to_the_nearest_step(size: tuple[int, int], step: int, expected: tuple[int, int]) -> None:
    assert resized_size(*size, 256, step) == expected


def test_steps_of_an_eighth_change_no_shape_by_more_than_one_part_in_sixteen() -> None:
    for image_size in (32, 64, 256, 300):
        step = DataSettings(image_size=image_size).step
        for longer in range(1000, 8000, 7):
            width, height = resized_size(longer, 1000, image_size, step)
            assert height == image_size
            assert abs(width / height / (longer / 1000) - 1) <= 1 / 16 + 1 / image_size  # and a pixel that was rounded down


# ---- what a file says of its picture ---------------------------------------------------------------------------------

WIDE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
TURNED = np.asarray(WIDE.transpose(Image.Transpose.ROTATE_270))


def chunk(kind: bytes, content: bytes, damaged: bool = False) -> bytes:
    checksum = zlib.crc32(kind + content) ^ damaged
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(*chunks: bytes, last: bool = False) -> bytes:
    """WIDE with these chunks, before the pixels or behind them."""
    plain, place = encoded(WIDE), -12 if last else 33
    return plain[:place] + b"".join(chunks) + plain[place:]


def tags(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF: (tag, type, value of at most 4 bytes) each."""
    body = b"".join(struct.pack("<HHI", tag, kind, 1) + value.ljust(4, b"\0") for tag, kind, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


def xmp(said: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description {said}</rdf:RDF></x:xmpmeta>'.encode()


def jpeg(block: bytes) -> bytes:
    plain = encoded(WIDE, "JPEG", quality=100, subsampling=0)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]


SIX = (0x0112, 3, struct.pack("<H", 6))
GARBAGE = [b"garbage!", b"II", b"", b"II*\0\xff\xff\xff\x7f", b"MM\0*" + bytes(4), tags((0x8769, 4, b"\xff\xff\0\0"))]


@pytest.mark.parametrize("exif", GARBAGE)
def test_exif_that_cannot_be_read_is_no_exif(exif: bytes) -> None:
    blobs = [png(chunk(b"eXIf", exif)), png(chunk(b"eXIf", exif), last=True), jpeg(b"Exif\0\0" + exif)]
    blobs += [encoded(WIDE, "WEBP", lossless=True, exif=b"Exif\0\0" + exif), png(chunk(b"eXIf", tags(SIX), damaged=True))]
    for blob in blobs:
        assert probe_size(blob, "name", DataSettings()) == WIDE.size
        assert np.abs(read(blob).astype(int) - np.asarray(WIDE)).mean() < 2


def test_a_tiff_with_damaged_exif_is_read() -> None:
    plain = encoded(WIDE, "TIFF")
    at = plain.index(struct.pack("<HHI", 284, 3, 1))  # the last tag, which says nothing here
    for tag in (0x8769, 0x8825):
        for offset in (0xFFFFFF7F, len(plain) - 3, 0, 8, at):
            blob = plain[:at] + struct.pack("<HHII", tag, 4, 1, offset) + plain[at + 12 :]
            assert probe_size(blob, "name", DataSettings()) == WIDE.size
            assert np.array_equal(read(blob), np.asarray(WIDE))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_an_avif_with_damaged_exif_is_read() -> None:
    blob = encoded(WIDE, "AVIF", quality=100, subsampling="4:4:4", exif=tags((0x010F, 2, b"abc")))
    broken = blob.replace(b"II*\0\x08", b"XXXX\x08")
    with pytest.raises(ValueError, match="Exif"):  # else the test shows nothing
        Image.open(io.BytesIO(broken))
    assert probe_size(broken, "name", DataSettings()) == WIDE.size
    assert np.array_equal(read(broken), read(blob))


ODD = [(0x0100, 2, b"96"), (0x829A, 5, b"\xff\xff\xff\xff"), (0xC4A5, 7, b"a")]
LYING = {
    "PNG": png(chunk(b"eXIf", tags(SIX))),
    "PNG, behind the pixels": png(chunk(b"eXIf", tags(SIX)), last=True),
    "PNG, named twice": png(chunk(b"eXIf", b"Exif\0\0" + tags(SIX))),
    "JPEG, odd tags": jpeg(b"Exif\0\0" + tags(SIX, *ODD)),
    "JPEG, as a long": jpeg(b"Exif\0\0" + tags((0x0112, 4, b"\6"))),
    "JPEG, as a byte": jpeg(b"Exif\0\0" + tags((0x0112, 1, b"\6"))),
    "PNG, XMP": png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp('tiff:Orientation="6"/>'))),
    "PNG, XMP behind garbage": png(
        chunk(b"eXIf", b"garbage!"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp("tiff:Orientation='6'/>")), last=True
    ),
    "JPEG, XMP": jpeg(b"http://ns.adobe.com/xap/1.0/\0" + xmp("><tiff:Orientation>6</tiff:Orientation></rdf:Description>")),
    "WebP, XMP": encoded(WIDE, "WEBP", lossless=True, xmp=xmp('tiff:Orientation="6"/>')),
    "TIFF": encoded(WIDE, "TIFF", tiffinfo={0x0112: 6}),
    "TIFF, XMP": encoded(WIDE, "TIFF", tiffinfo={700: xmp('tiff:Orientation="6"/>')}),
}


@pytest.mark.parametrize("kind", LYING)
def test_a_picture_that_lies_is_turned_wherever_that_is_said(kind: str) -> None:
    assert probe_size(LYING[kind], "name", DataSettings()) == (20, 30)
    assert np.abs(read(LYING[kind]).astype(int) - TURNED).mean() < 2


def test_exif_wins_over_xmp_and_values_that_mean_nothing_turn_nothing() -> None:
    said = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp('tiff:Orientation="6"/>'))
    assert np.array_equal(read(png(chunk(b"eXIf", tags((0x0112, 3, b"\1"))), said)), np.asarray(WIDE))
    for value in (0, 9, 60000):
        assert np.array_equal(read(png(chunk(b"eXIf", tags((0x0112, 3, struct.pack("<H", value)))))), np.asarray(WIDE))


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "many", "damaged", "damaged size"])
def test_texts_that_pillow_does_not_unpack_are_left_out(kind: str, place: str) -> None:
    long = zlib.compress(bytes(2 << 20))
    extra = {
        "zTXt": [chunk(b"zTXt", b"Comment\0\0" + long)],
        "iTXt": [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + long)],
        "iCCP": [chunk(b"iCCP", b"p\0\0" + long)],
        "many": [chunk(b"zTXt", b"Comment%d\0\0" % i + zlib.compress(bytes(1 << 20))) for i in range(70)],
        "damaged size": [chunk(b"pHYs", bytes(9), damaged=True)],
        "damaged": [chunk(b"tEXt", b"Comment\0text", damaged=True)],
    }[kind]
    with pytest.raises((ValueError, OSError)):  # else the test shows nothing
        Image.open(io.BytesIO(png(*extra))).load()
    blob = png(*extra, chunk(b"eXIf", tags(SIX)), last=place == "behind")
    assert probe_size(blob, "name", DataSettings()) == (20, 30)  # what can be read of the rest counts
    assert np.array_equal(read(blob), TURNED)


def test_a_machine_without_memory_or_handles_is_not_the_image_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, number in ((MemoryError(), errno.ENOMEM), (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE)):
        monkeypatch.setattr(Image, "open", Mock(side_effect=error))
        with pytest.raises(OSError, match=r"memory|open files") as caught:
            read(encoded(WIDE))
        assert caught.value.errno == number


# ---- pixels as they look ---------------------------------------------------------------------------------------------

RAMP = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (64, 1))


def spoilt(values: np.ndarray, *pixels: float) -> np.ndarray:
    values = values.copy()
    values[0, : len(pixels)] = pixels
    return values


FLOATS = {
    "0 to 1": RAMP,
    "no number": spoilt(RAMP, np.nan),
    "infinite": spoilt(RAMP, np.inf, -np.inf),
    "a hair over 1": spoilt(RAMP, 1.0001),
    "overshoot": spoilt(RAMP, 1.2, -0.2),
    "a hot pixel": spoilt(RAMP, 4000.0),
    "0 to 255": RAMP * 255,
    "a hair over 255": spoilt(RAMP * 255, 255.5),
    "overshoot of 255": spoilt(RAMP * 255, 280.0, -20.0),
    "0 to 65535": RAMP * 65535,
    "a hair over 65535": spoilt(RAMP * 65535, 65536.0),
    "0 to 4095": RAMP * 4095,
    "0 to 8": RAMP * 8,
    "0 to a million": RAMP * 1e6,
    "-1 to 1": RAMP * 2 - 1,
    "decibels": RAMP * 30 - 30,
}


@pytest.mark.parametrize("name", FLOATS)
def test_floating_point_pixels_keep_their_brightness(name: str) -> None:
    pixels = read(encoded(Image.fromarray(FLOATS[name]), "TIFF"))[1:].astype(int)
    assert np.abs(pixels - np.round(RAMP[1:, :, None] * 255)).max() <= 3


@pytest.mark.parametrize("top", [255, 4095, 65535, 10**6, 2**31 - 1])
def test_whole_numbers_of_32_bits_keep_their_brightness(top: int) -> None:
    values = Image.fromarray((RAMP.astype(np.float64) * top).astype(np.int32))
    assert np.abs(read(encoded(values, "TIFF")).astype(int) - np.round(RAMP[..., None] * 255)).max() <= 3


def test_sixteen_bits_are_of_one_range() -> None:
    dark = Image.fromarray((RAMP * 4095).astype(np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert read(encoded(dark, kind)).max() == 16


def test_dark_and_sparse_floating_point_pictures_stay_so() -> None:
    assert read(encoded(Image.fromarray(RAMP * 0.2), "TIFF")).max() == 51
    assert not read(encoded(Image.fromarray(RAMP * 0), "TIFF")).any()
    stars = np.zeros((100, 100), np.float32)
    stars[::40, ::40] = np.linspace(40, 255, 9).reshape(3, 3)
    assert np.array_equal(read(encoded(Image.fromarray(stars), "TIFF"))[..., 0], stars.round().astype(np.uint8))
    with pytest.raises(UnreadableImage, match=r"name: .*no pixel is a finite number"):
        read(encoded(Image.fromarray(RAMP * np.nan), "TIFF"))


@pytest.mark.parametrize("bits", ["1", "8", "16", "float"])
def test_a_tiff_whose_zero_is_white_is_read_as_it_looks(bits: str) -> None:
    grey = np.round(RAMP * 255).astype(np.uint8)
    stored = {"1": grey > 127, "8": grey, "16": grey.astype(np.uint16) * 257, "float": RAMP}[bits]
    blob = encoded(Image.fromarray(stored), "TIFF", tiffinfo={262: 1})
    at = blob.index(struct.pack("<HHI", 262, 3, 1)) + 8
    shown = read(blob).astype(int)
    assert shown[0, -1, 0] == 255
    assert np.array_equal(read(blob[:at] + b"\0" + blob[at + 1 :]), 255 - shown)


def wide_gamut() -> bytes:
    """A profile of sRGB's form whose red, green and blue are Display P3's."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.2919, 0.6922, 0.0419), b"bXYZ": (0.1572, 0.0666, 0.7841)}
    for tag, values in primaries.items():
        at = struct.unpack(">I", profile[profile.index(tag) + 4 :][:4])[0] + 8
        profile[at : at + 12] = struct.pack(">3i", *(round(value * 65536) for value in values))
    return bytes(profile)


def test_colours_of_another_profile_are_shown_as_they_look() -> None:
    patch = Image.new("RGB", (4, 4), (200, 80, 60))
    expected = [214, 71, 52]  # Display P3 (200, 80, 60) in sRGB, by its matrices
    for blob in (encoded(patch, "PNG", icc_profile=wide_gamut()), encoded(patch, "TIFF", icc_profile=wide_gamut())):
        assert np.abs(read(blob)[0, 0].astype(int) - expected).max() <= 3
    clear = patch.convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    shown = read(encoded(clear, "PNG", icc_profile=wide_gamut()))
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert np.abs(shown[1, 1].astype(int) - expected).max() <= 3


def test_srgb_and_profiles_that_cannot_be_used_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"garbage", wide_gamut()[:200]):
        assert np.array_equal(read(encoded(WIDE, "PNG", icc_profile=profile)), np.asarray(WIDE))
    grey = WIDE.convert("L")
    assert np.array_equal(read(encoded(grey, "PNG", icc_profile=wide_gamut())), np.asarray(grey.convert("RGB")))


def test_lab_is_read() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    assert np.abs(read(encoded(to_lab.apply(WIDE), "TIFF")).astype(int) - np.asarray(WIDE)).mean() < 3
