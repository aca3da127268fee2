"""Reading any folder of images, and saying clearly what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw
from pictures import encoded
from PIL import Image

from diffsel.data.albums import open_validation
from diffsel.data.images import open_data, reopen
from diffsel.settings.errors import DataError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import Settings

SETTINGS = DataSettings(image_size=32)
CONFIGS = ROOT / "configs" / "datasets"


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


def test_known_images_are_not_read_again(folder) -> None:
    root = folder(cat=2)
    data = open_data(str(root), SETTINGS, 0)
    (root / "cat" / "0.png").write_bytes(b"")
    again = open_data(str(root), SETTINGS, 0, known=data.rows)
    assert again.rows == data.rows
    assert reopen(data.root, data.classes, data.rows, [], SETTINGS).rows == data.rows


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


# ---- classes -------------------------------------------------------------------------------------------------------


# ---- folders -------------------------------------------------------------------------------------------------------


def test_folders_that_are_not_class_trees_are_refused_with_the_remedy(folder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_data(str(tmp_path / "nowhere"), SETTINGS, 0)
    draw(tmp_path / "flat" / "0.png", 0)
    with pytest.raises(DataError, match="holds no class folders"):
        open_data(str(tmp_path / "flat"), SETTINGS, 0)
    with pytest.raises(DataError, match="is a file"):
        open_data(str(tmp_path / "flat" / "0.png"), SETTINGS, 0)
    for split in ("train", "val"):
        folder(f"splits/{split}", cat=1)
    with pytest.raises(DataError, match=r"holds splits \(train, val\).*splits/train"):
        open_data(str(tmp_path / "splits"), SETTINGS, 0)
    root = folder(cat=1)
    (root / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder 'dog' .* holds no image"):
        open_data(str(root), SETTINGS, 0)
    (root / "dog" / "0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable image in class 'dog'.*empty file"):
        open_data(str(root), SETTINGS, 0)


HOSTILE = [
    "a b",
    'quo"te',
    "it's",
    "ünï 猫",
    "-rf",
    "line\nbreak",
    "{label}",
    "<script>",
    "$(id)",
    "a;b",
    "a..",
    "100%",
    "tab\t",
]


def test_hostile_names_are_read_right(tmp_path: Path) -> None:
    for name in HOSTILE:
        draw(tmp_path / "data" / name / f"{name}.png", 0)
    data = open_data(str(tmp_path / "data"), SETTINGS, 0)
    assert {c.folder for c in data.classes} == set(HOSTILE)
    assert {r.path for r in data.rows} == {f"{name}/{name}.png" for name in HOSTILE}
    assert all(data.pixels(row).shape == (32, 32, 3) for row in data.rows)


def test_names_that_are_not_utf8_are_refused_or_passed_over(folder) -> None:
    root = folder(cat=1)
    blob = (root / "cat" / "0.png").read_bytes()
    Path(os.fsdecode(bytes(root / "cat") + b"/\xff.png")).write_bytes(blob)
    data = open_data(str(root), SETTINGS, 0)
    assert [s.reason for s in data.skipped] == ["file name is not valid UTF-8"]
    Path(os.fsdecode(bytes(root) + b"/\xff")).mkdir()
    with pytest.raises(DataError, match="not valid UTF-8"):
        open_data(str(root), SETTINGS, 0)


def test_links_are_followed_but_loops_are_not(folder, tmp_path: Path) -> None:
    root = folder(cat=1)
    outside = draw(tmp_path / "elsewhere" / "1.png", 5)
    (root / "cat" / "linked.png").symlink_to(outside)
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    paths = [r.path for r in open_data(str(root), SETTINGS, 0).rows]
    assert paths == ["cat/0.png", "cat/linked.png", "dog/1.png"]


# ---- the datasets library ------------------------------------------------------------------------------------------


@pytest.fixture
def hub_set(tmp_path: Path):
    import datasets

    pictures = [Image.open(draw(tmp_path / "src" / f"{i}.png", i, 40, 30)).copy() for i in range(6)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "a/../b"])})
    return datasets.Dataset.from_dict({"img": pictures, "label": [0, 1] * 3}, features=features)


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_datasets_of_the_datasets_library(form: str, hub_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    where = tmp_path / form
    if form == "disk":
        hub_set.save_to_disk(str(where))
    else:
        where.mkdir()
        hub_set.to_parquet(str(where / "train-00000-of-00001.parquet"))
    data = open_data(str(where), SETTINGS, 0)
    assert [c.folder for c in data.classes] == ["zebra", "a/../b"]  # the data set's own order
    assert [r.path for r in data.rows] == [f"train/{i:09d}" for i in (0, 2, 4, 1, 3, 5)]
    assert data.pixels(data.rows[0]).shape == (32, 42, 3)
    again = reopen(str(where), data.classes, data.rows, (), SETTINGS)
    assert np.array_equal(again.pixels(data.rows[3]), data.pixels(data.rows[3]))
    assert open_validation(str(where), Settings()).rows == data.rows  # its only split
    if form == "disk":
        return  # a saved split has no others
    with pytest.raises(DataError, match="test"):
        open_data(str(where), DataSettings(split="test"), 0)


@pytest.mark.parametrize("form", ["disk", "parquet"])
@pytest.mark.parametrize(("splits", "expected"), [("train test", "test"), ("test train validation", "validation"), ("a b", "")])
def test_validation_images_come_from_their_own_split(
    form: str, splits: str, expected: str, hub_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    where = tmp_path / form
    where.mkdir()
    if form == "disk":
        datasets.DatasetDict(dict.fromkeys(splits.split(), hub_set)).save_to_disk(str(where))
    else:
        for split in splits.split():
            hub_set.to_parquet(str(where / f"{split}-00000-of-00001.parquet"))
    if not expected:
        if form == "parquet":
            return  # the library itself takes such names for one split
        with pytest.raises(DataError, match="has the splits a, b, but none is called validation, val or test"):
            open_validation(str(where), Settings())
        return
    assert {row.path.split("/")[0] for row in open_validation(str(where), Settings()).rows} == {expected}


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "@eaDir", "__MACOSX"])
def test_folders_that_systems_leave_among_images_are_not_looked_into(folder, hidden: str) -> None:
    root = folder(cat=2)
    (root / "cat" / hidden).mkdir()
    (root / "cat" / hidden / "0.png").write_bytes((root / "cat" / "0.png").read_bytes())
    assert [row.path for row in open_data(str(root), SETTINGS, 0).rows] == ["cat/0.png", "cat/1.png"]
