"""Reading any folder of images, and saying clearly what cannot be read."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import draw
from PIL import Image

from diffsel.data.albums import open_validation
from diffsel.data.classes import ClassInfo, imagenet_wnids
from diffsel.data.images import open_data, reopen
from diffsel.data.pixels import decode, resized_size
from diffsel.settings.errors import ConfigError, DataError
from diffsel.settings.sections import DataSettings, hash_classes
from diffsel.settings.settings import Settings, load_settings

SETTINGS = DataSettings(image_size=32)
CONFIGS = Path(__file__).parent.parent / "configs" / "datasets"


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(blob: bytes) -> np.ndarray:
    return np.asarray(decode(blob, 10_000_000, "name"))


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


def test_tiny_images_are_enlarged_and_sizes_round_down() -> None:
    assert resized_size(5, 7, 256) == (256, 358)
    assert resized_size(1000, 999, 256) == (256, 256)


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


def test_class_order_and_names_come_from_classes_yaml(folder) -> None:
    root = folder(n01440764=1, tabby_cat=1, other=1)
    table = {"tabby_cat": {"name": "tabby", "description": "a striped cat"}, "n01440764": {"wnid": "n01440764"}}
    (root / "classes.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    data = open_data(str(root), SETTINGS, 0)
    assert [(c.folder, c.name) for c in data.classes] == [("tabby_cat", "tabby"), ("n01440764", "tench"), ("other", "other")]
    assert data.classes[0].prompt("{label}, {description}") == "tabby, a striped cat"
    with pytest.raises(DataError, match=r"asks for \{description\}, which class 'other' lacks"):
        data.classes[2].prompt("{label}, {description}")


def test_names_of_folders_become_words() -> None:
    assert ClassInfo("tabby", "tabby cat").prompt("An image of {label}.") == "An image of tabby cat."
    assert ClassInfo("x", "{label} {0} {label.__class__}").prompt("a {label}") == "a {label} {0} {label.__class__}"


def test_a_class_file_that_does_not_fit_is_refused(folder) -> None:
    root = folder(cat=1)
    (root / "classes.yaml").write_text("cats: a cat\n")
    with pytest.raises(DataError, match=r"names class 'cats'.*did you mean 'cat'"):
        open_data(str(root), SETTINGS, 0)
    (root / "classes.yaml").write_text("- cat\n")
    with pytest.raises(DataError, match="expected lines like"):
        open_data(str(root), SETTINGS, 0)


def test_wnids_are_named_by_their_imagenet_index() -> None:
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert wnids == sorted(wnids)
    assert wnids.index("n02123045") == 281  # tabby


@pytest.mark.parametrize(
    ("preset", "count"), [("imagenette", 10), ("imagewoof", 10), ("imagenet-10", 10), ("imagenet-100", 100)]
)
def test_presets_are_hashed_lists_of_imagenet_classes(preset: str, count: int, tmp_path: Path) -> None:
    file = CONFIGS / f"{preset}.yaml"
    settings = load_settings([file])
    assert settings.data.classes is not None
    assert len(settings.data.classes) == count
    assert set(settings.data.classes) <= set(imagenet_wnids())
    assert hash_classes(settings.data.classes) == settings.data.classes_sha256
    swapped = tmp_path / "swapped.yaml"
    lines = file.read_text().splitlines()
    lines[4], lines[5] = lines[5], lines[4]
    swapped.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="does not match classes_sha256"):
        load_settings([swapped])


def test_classes_are_taken_in_the_order_asked(folder) -> None:
    root = folder(a=1, b=1, c=1)
    data = open_data(str(root), DataSettings(image_size=32, classes=("c", "a")), 0)
    assert [r.path for r in data.rows] == ["c/0.png", "a/0.png"]
    with pytest.raises(DataError, match=r"class 'cc' is not in .*did you mean 'c'"):
        open_data(str(root), DataSettings(classes=("cc",)), 0)


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


def test_words_of_classes_are_read_as_they_stand(folder, tmp_path: Path) -> None:
    root = folder(**{"0010": 1, "s0": 1})
    (root / "classes.yaml").write_text("0010: off\ns0: {name: 007, colour: yes}\n")
    data = open_data(str(root), SETTINGS, 0)
    assert [(c.folder, c.name, dict(c.words)) for c in data.classes] == [("0010", "off", {}), ("s0", "007", {"colour": "yes"})]


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "@eaDir", "__MACOSX"])
def test_folders_that_systems_leave_among_images_are_not_looked_into(folder, hidden: str) -> None:
    root = folder(cat=2)
    (root / "cat" / hidden).mkdir()
    (root / "cat" / hidden / "0.png").write_bytes((root / "cat" / "0.png").read_bytes())
    assert [row.path for row in open_data(str(root), SETTINGS, 0).rows] == ["cat/0.png", "cat/1.png"]
