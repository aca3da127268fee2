"""Pictures of the set, and that other libraries read it as we wrote it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from diffsel.data.images import ImageData, open_data
from diffsel.data.pixels import resize
from diffsel.machine.files import folded
from diffsel.machine.formats import is_mine
from diffsel.sets.assembly import assemble, class_folders, cut, mosaic, tile_sides
from diffsel.sets.selection import Pick
from diffsel.settings.errors import DataError, StoreError
from diffsel.settings.sections import AssemblySettings, DataSettings


def pick(label: str, rank: int, row: int, box=(0, 16, 32, 32)) -> Pick:
    return Pick(label, rank, row, box, 0.5, 0, rank, 0.1, "cluster")


def opened(path: Path) -> ImageData:
    return open_data(str(path), DataSettings(image_size=64), 0)


SHAPE = DataSettings(image_size=64, side_multiple=1)  # the image's own


def write(data: ImageData, out: Path, ipc: int = 1, **settings) -> Path:
    chosen = AssemblySettings(**{"size": 64, **settings})
    need = ipc * chosen.factor_at(ipc) ** 2
    picks = {c.folder: [pick(c.folder, i, r.row) for i, r in enumerate(data.of_class(c.folder)[:need])] for c in data.classes}
    assemble(out, picks, data, chosen, {"format": 1, "ipc": ipc, "factor": chosen.factor_at(ipc)})
    return out


@pytest.mark.parametrize(("size", "factor", "sides"), [(224, 2, [112, 112]), (33, 2, [17, 16]), (32, 3, [11, 11, 10])])
def test_the_first_tiles_take_the_remainder(size: int, factor: int, sides: list[int]) -> None:
    assert tile_sides(size, factor) == sides


def test_a_mosaic_places_its_tiles_row_by_row() -> None:
    sides = tile_sides(33, 2)
    tiles = [Image.new("RGB", (sides[i % 2], sides[i // 2]), (10 * (i + 1), 0, 0)) for i in range(4)]
    pixels = np.asarray(mosaic(tiles, 33, 2))[..., 0]
    assert [pixels[0, 0], pixels[0, 32], pixels[32, 0], pixels[32, 32]] == [10, 20, 30, 40]
    assert (np.bincount(pixels.ravel())[[10, 20, 30, 40]] == [17 * 17, 17 * 16, 16 * 17, 16 * 16]).all()


def test_cutting_equals_resizing_first_and_then_cropping() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (300, 401, 3), dtype=np.uint8)).resize((401, 300))
    resized = resize(picture, 64)
    for box in ((0, 0, 64, 64), (0, 21, 64, 64), (10, 5, 40, 40)):
        top, left, height, width = box
        expected = np.asarray(resized)[top : top + height, left : left + width].astype(int)
        ours = np.asarray(cut(picture, pick("", 0, 0, box), SHAPE, height, width)).astype(int)
        assert np.abs(ours - expected).mean() < 6  # the width 85 is rounded from 85.5, so columns shift by less than a pixel
    exact = Image.fromarray(rng.integers(0, 256, (128, 192, 3), dtype=np.uint8))
    squeezed = DataSettings(image_size=64, side_multiple=64)  # to 64 x 128, from 128 x 192
    for shape, width in ((SHAPE, 96), (squeezed, 128)):
        ours = np.asarray(cut(exact, pick("", 0, 0, (8, 20, 32, 32)), shape, 32, 32)).astype(int)
        resized = resize(exact, 64, shape.step)
        assert resized.size == (width, 64)
        assert np.abs(ours - np.asarray(resized)[8:40, 20:52]).max() <= 1


def test_a_whole_image_at_its_own_size_keeps_every_byte() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert np.array_equal(
        np.asarray(cut(picture, pick("", 0, 0, (0, 0, 256, 256)), DataSettings(), 32, 32)), np.asarray(picture)
    )


def test_the_set_loads_in_torchvision_and_datasets_with_the_same_labels(folder: Callable[..., Path], tmp_path: Path) -> None:
    import datasets

    source = folder(**{"zebra fish": 4, "ant": 4, "bullet train": 4})
    out = write(opened(source), tmp_path / "set")
    torch_set = ImageFolder(str(out))
    hub_set = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert torch_set.classes == ["ant", "bullet %74rain", "zebra fish"]  # "train" would read as a split
    by_name = {Path(path).parent.name.replace("%74", "t"): label for path, label in torch_set.samples}
    assert {row["class"]: row["label"] for row in hub_set} == by_name
    assert len(hub_set) == len(torch_set) == 3
    for row in hub_set:
        sample = next(image for image, label in torch_set if label == row["label"])
        assert np.array_equal(np.asarray(row["image"]), np.asarray(sample))


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("CON", "aux", "nul.txt", "COM1"), ["%43OM1", "%43ON", "%61ux", "%6Eul.txt"]),
        (("README.md", "set.yaml", "b2sums", "Metadata.JSONL"), ["%4Detadata.JSONL", "%52EADME.md", "%622sums", "%73et.yaml"]),
        (("Train", "train", "dog."), ["%54rain", "%64og%2E", "%74rain"]),
        (("Cat", "dog", "n01440764"), ["Cat", "dog", "n01440764"]),
    ],
)
def test_class_folders_are_such_as_any_system_holds(classes, folders, folder, tmp_path: Path) -> None:
    data = open_data(str(folder(**dict.fromkeys(classes, 1))), DataSettings(image_size=64, classes=classes), 0)
    out = write(data, tmp_path / "set", factor=1)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == folders
    assert len({path.name.lower() for path in out.iterdir()}) == len(classes) + 4
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert {line["class"]: ImageFolder(str(out)).classes[line["label"]] for line in lines} == class_folders(classes)


@pytest.mark.parametrize("pair", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("Train", "TRAIN")])
def test_class_folders_of_names_that_a_disk_takes_for_one_differ(pair: tuple[str, str]) -> None:
    found = class_folders(pair)
    assert len({folded(name) for name in found.values()}) == 2
    assert {name: class_folders([name])[name] for name in pair}[min(pair)] == found[min(pair)]


def test_every_tile_says_where_it_came_from(folder: Callable[..., Path], tmp_path: Path) -> None:
    data = opened(folder(cat=8, dog=8))
    out = write(data, tmp_path / "set", ipc=2)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["cat/00000.png", "cat/00001.png", "dog/00000.png", "dog/00001.png"]
    for line in lines:
        pixels = np.asarray(Image.open(out / line["file_name"]))
        assert pixels.shape == (64, 64, 3)
        for number, tile in enumerate(line["tiles"]):
            row = next(r for r in data.rows if r.path == tile["source"])
            assert tile["digest"] == row.digest
            top, left, height, width = tile["box"]
            expected = data.pixels(row)[top : top + height, left : left + width]
            y, x = 32 * (number // 2), 32 * (number % 2)
            assert np.array_equal(pixels[y : y + 32, x : x + 32], expected)
    assert "# Distilled image set" in (out / "README.md").read_text()


def test_jpeg_and_factor_are_settings(folder: Callable[..., Path], tmp_path: Path) -> None:
    data = opened(folder(cat=9))
    out = write(data, tmp_path / "jpeg", format="jpeg", quality=60)
    with Image.open(out / "cat" / "00000.jpg") as picture:
        assert picture.format == "JPEG"
    assert (write(data, tmp_path / "three", factor=3) / "cat" / "00000.png").exists()


def test_a_set_is_all_or_nothing(folder: Callable[..., Path], tmp_path: Path) -> None:
    source = folder(cat=4)
    data = opened(source)
    (source / "cat" / "3.png").write_bytes((source / "cat" / "2.png").read_bytes())
    with pytest.raises(DataError, match=r"cat/3.png: edited since"):
        write(data, tmp_path / "set")
    assert not list(tmp_path.glob("*set*"))


def test_another_folder_or_another_set_is_not_overwritten(folder: Callable[..., Path], tmp_path: Path) -> None:
    out = write(opened(folder(cat=4)), tmp_path / "set")
    assert is_mine(out, "set.yaml", {"format": 1, "ipc": 1, "factor": 2}, "a distilled set")
    assert not is_mine(tmp_path / "new", "set.yaml", {}, "a distilled set")
    with pytest.raises(StoreError, match=r"ipc: stored 1, asked 2"):
        is_mine(out, "set.yaml", {"format": 1, "ipc": 2, "factor": 2}, "a distilled set")
    with pytest.raises(StoreError, match="not a distilled set"):
        is_mine(tmp_path / "data", "set.yaml", {}, "a distilled set")


def test_a_set_that_could_not_be_made_is_not_called_made(folder: Callable[..., Path], tmp_path: Path) -> None:
    """A file in the way gives the same error number as a launch that was first."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file is a file, and no folder can be made in it"):
        write(opened(folder(cat=1)), tmp_path / "file" / "set", factor=1)
