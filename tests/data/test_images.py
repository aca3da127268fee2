"""Images as rows: read once, and saying clearly what cannot be read."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import draw
from pictures import encoded
from PIL import Image

from diffsel.data import images
from diffsel.data.images import Known, open_data, reopen
from diffsel.data.rows import Row
from diffsel.settings.errors import DataError, UnreadableImage
from diffsel.settings.sections import DataSettings

SETTINGS = DataSettings(image_size=32)


def test_rows_are_numbered_by_class_and_name_whatever_the_listing_order(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(dog=3, cat=2)
    first = open_data(str(root), SETTINGS, 0)
    assert [(r.row, r.path) for r in first.rows] == list(
        enumerate(["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"])
    )
    iterdir, walk = Path.iterdir, os.walk
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(list(iterdir(path))))
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((w, d[::-1], f[::-1]) for w, d, f in walk(*a, **k)))
    assert open_data(str(root), SETTINGS, 0).rows == first.rows


def test_files_are_waited_for_side_by_side(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a network a file takes milliseconds to come: four workers ask for sixteen at once."""
    root, look, together = folder(**{f"class{i}": 1 for i in range(16)}), images._look, threading.Barrier(16, timeout=20)

    def waiting(*args):
        together.wait()  # BrokenBarrierError where fewer come
        return look(*args)

    monkeypatch.setattr(images, "_look", waiting)
    assert len(open_data(str(root), SETTINGS, workers=4).rows) == 16


def test_the_index_holds_the_upright_size(folder, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "0.jpg").write_bytes(encoded(Image.new("RGB", (60, 40)), "JPEG", exif=exif))
    (tmp_path / "data" / "a" / "1.tif").write_bytes(encoded(Image.new("RGB", (60, 40)), "TIFF", exif=exif))
    data = open_data(str(tmp_path / "data"), SETTINGS, 0)
    assert data.pixels(data.rows[1]).shape == (48, 32, 3)
    assert (data.rows[0].width, data.rows[0].height) == (40, 60)
    assert data.pixels(data.rows[0]).shape == (48, 32, 3)
    assert data.size(data.rows[0]) == (32, 48)


BROKEN = {
    "empty.jpg": (b"", "empty file"),
    "page.jpg": (b"<!DOCTYPE html><html></html>", "a web page or XML"),
    "text.png": (b"hello", "unreadable image"),
    "bomb.png": (encoded(Image.new("1", (30_000, 3_000))), "30000 x 3000 pixels, over data.max_pixels"),
    "thin.png": (encoded(Image.new("L", (900, 10))), "data.max_aspect"),
}


def test_unreadable_images_are_listed_with_their_reason_and_passed_over(folder) -> None:
    root = folder(cat=2)
    for name, (blob, _) in BROKEN.items():
        (root / "cat" / name).write_bytes(blob)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / ".hidden.png").write_bytes(b"")
    data = open_data(str(root), SETTINGS.model_copy(update={"max_pixels": 1_000_000}), 0)
    assert len(data.rows) == 2
    reasons = {Path(s.path).name: s.reason for s in data.skipped}
    assert set(reasons) == set(BROKEN)
    for name, (_, reason) in BROKEN.items():
        assert reason in reasons[name]


def test_a_truncated_image_is_found_when_it_is_decoded(folder) -> None:
    root = folder(cat=1)
    blob = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    (root / "cat" / "cut.jpg").write_bytes(blob[: len(blob) // 2])
    data = open_data(str(root), SETTINGS, 0)
    with pytest.raises(DataError, match=r"cat/cut.jpg: unreadable image"):
        data.pixels(data.rows[1])


def test_an_edited_or_missing_image_is_told(folder) -> None:
    root = folder(cat=2)
    data = open_data(str(root), SETTINGS, 0)
    draw(root / "cat" / "0.png", 77)
    (root / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"cat/0.png: edited since it was indexed"):
        data.pixels(data.rows[0])
    with pytest.raises(DataError, match=r"cat/1.png: No such file"):
        data.pixels(data.rows[1])


def test_known_images_are_not_read_again(folder, monkeypatch) -> None:
    root = folder(cat=3, dog=80)
    (root / "dog" / "broken.png").write_bytes(b"nothing")
    data = open_data(str(root), SETTINGS, 0)
    known = Known.of(data.rows, data.skipped)
    for file in ("cat/0.png", "dog/0.png"):  # edited; one class is taken over whole, of the other each image alone
        (root / file).write_bytes(b"")
    again = open_data(str(root), SETTINGS, 0, known=known)
    assert again.rows == data.rows
    assert again.skipped == data.skipped
    assert reopen(data.root, data.classes, data.rows, [], SETTINGS).rows == data.rows
    read: list[str] = []
    monkeypatch.setattr(images, "_look", lambda label, path, *_: read.append(path) or Row(-1, path, label, 9, 9, "0" * 32))
    folder(cat=4)
    added = open_data(str(root), SETTINGS, 0, known=known)
    assert read == ["cat/3.png"]
    assert [row.path for row in added.rows[:4]] == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png"]
    assert [row.digest for row in added.rows[4:]] == [row.digest for row in data.rows[3:]]


def test_the_cap_is_seeded_and_keeps_its_choice_when_files_are_listed_otherwise(folder) -> None:
    root = folder(cat=20)
    capped = SETTINGS.model_copy(update={"images_per_class": 5})
    chosen = [r.path for r in open_data(str(root), capped, 0).rows]
    assert len(chosen) == 5
    assert chosen == [r.path for r in open_data(str(root), capped, 0).rows]
    assert chosen != [r.path for r in open_data(str(root), capped, 1).rows]
    gone = next(p for p in sorted(root.rglob("*.png")) if p.relative_to(root).as_posix() not in chosen)
    gone.unlink()
    assert chosen == [r.path for r in open_data(str(root), capped, 0).rows]


# ---- what the machine cannot read now --------------------------------------------------------------------------------

FAILURES = [errno.EIO, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT]


@pytest.mark.parametrize("number", FAILURES)
def test_a_file_that_cannot_be_had_now_stops_the_opening(number: int, folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root, read = folder(cat=3), Path.read_bytes
    error = OSError(number, os.strerror(number), str(root / "cat" / "1.png"))

    def failing(path: Path) -> bytes:
        if path.name == "1.png":
            raise error
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(DataError, match=rf"{root}/cat/1.png: {os.strerror(number)}; nothing is recorded: start again"):
        open_data(str(root), SETTINGS, 0)
    data = open_data(str(folder("other", cat=1)), SETTINGS, 0)
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=error))
    with pytest.raises(DataError, match=os.strerror(number)) as caught:
        data.pixels(data.rows[0])
    assert not isinstance(caught.value, UnreadableImage)  # else a pass would leave it out for good


def test_a_link_that_leads_nowhere_stops_the_opening_until_it_does(folder, tmp_path: Path) -> None:
    root = folder(cat=2)
    (root / "cat" / "far.png").symlink_to(tmp_path / "disk" / "far.png")
    with pytest.raises(DataError, match=r"cat/far.png: No such file or directory; nothing is recorded"):
        open_data(str(root), SETTINGS, 0)
    draw(tmp_path / "disk" / "far.png", 5)
    data = open_data(str(root), SETTINGS, 0)
    assert (len(data.rows), data.skipped) == (3, ())


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_regular_file_is_passed_over_and_never_opened(kind: str, folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(cat=1)
    odd = root / "cat" / "odd.png"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(odd.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("odd.png")
    data = open_data(str(root), SETTINGS, 0)
    assert [(row.path) for row in data.rows] == ["cat/0.png"]
    name = {"pipe": "a named pipe", "socket": "a socket", "device": "a device"}[kind]
    assert [(each.path, each.reason) for each in data.skipped] == [("cat/odd.png", f"{name}, not a regular file")]
    (root / "cat" / "0.png").unlink()
    os.mkfifo(root / "cat" / "0.png")
    with pytest.raises(DataError, match=r"cat/0.png: a named pipe"):
        reopen(data.root, data.classes, data.rows, [], SETTINGS).pixels(data.rows[0])


# ---- images that were moved ------------------------------------------------------------------------------------------


def test_images_that_are_gone_say_how_to_tell_where_they_are(folder, tmp_path: Path) -> None:
    data = open_data(str(folder("before", cat=2)), SETTINGS, 0)
    (tmp_path / "before").rename(tmp_path / "after")
    with pytest.raises(DataError, match=r"before: no such folder.*if they moved, say where they are now: --data"):
        reopen(data.root, data.classes, data.rows, [], SETTINGS)
    gone = reopen(data.root, data.classes, data.rows, [], SETTINGS, may_be_gone=True)
    with pytest.raises(DataError, match="--data"):
        gone.pixels(data.rows[0])
    moved = reopen(str(tmp_path / "after"), data.classes, data.rows, [], SETTINGS)
    assert np.array_equal(moved.pixels(data.rows[0]), np.asarray(Image.open(tmp_path / "after/cat/0.png").resize((32, 32), 3)))
    draw(tmp_path / "after" / "cat" / "1.png", 99)
    with pytest.raises(DataError, match="edited since it was indexed"):
        moved.pixels(data.rows[1])
