"""Data sets of the `datasets` library: splits, configurations, and the columns that are images and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import draw
from PIL import Image

from diffsel.data.albums import open_validation
from diffsel.data.images import class_names, open_data, reopen
from diffsel.settings.errors import DataError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import Settings

datasets = pytest.importorskip("datasets")
SETTINGS = DataSettings(image_size=32)


@pytest.fixture
def hub_set(tmp_path: Path):
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
    assert data.pixels(data.rows[0]).shape == (32, 44, 3)  # 42, to the nearest multiple of 4
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


@pytest.mark.parametrize("place", ["file", "pattern", "memory://bucket/train-0.parquet"])
def test_parquet_files_near_and_behind_an_address(place: str, hub_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the library takes every address for a network
    hub_set.to_parquet(str(tmp_path / "train-0.parquet"))
    if place.startswith("memory"):
        fsspec.filesystem("memory").pipe_file("/bucket/train-0.parquet", (tmp_path / "train-0.parquet").read_bytes())
    path = {"file": str(tmp_path / "train-0.parquet"), "pattern": str(tmp_path / "train-*.parquet")}.get(place, place)
    data = open_data(path, DataSettings(image_size=32, split="train[:50%]"), 0)
    assert [c.folder for c in data.classes] == ["zebra", "a/../b"]
    assert [len([r for r in data.rows if r.label == label]) for label in ("zebra", "a/../b")] == [2, 1]
    again = reopen(path, data.classes, data.rows, (), data.settings)
    assert np.array_equal(again.pixels(data.rows[2]), data.pixels(data.rows[2]))
    with pytest.raises(DataError, match=r"other.parquet.*(Unable to find|FileNotFound)"):
        open_data(path.rpartition("/")[0] + "/other.parquet", SETTINGS, 0)


# ---- columns ---------------------------------------------------------------------------------------------------------

TWO = datasets.ClassLabel(names=["cat", "dog"])
FOUR = datasets.ClassLabel(names=["tabby", "siamese", "poodle", "pug"])


def saved(where: Path, **columns: tuple[Any, list]) -> str:
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    rows = datasets.Dataset.from_dict({name: values for name, (_, values) in columns.items()}, features=features)
    rows.save_to_disk(str(where))
    return str(where)


def pictures(colour: str, count: int = 4) -> tuple[Any, list]:
    return datasets.Image(), [Image.new("RGB", (40, 40), colour) for _ in range(count)]


IMAGE, MASK, LABEL = pictures("red"), pictures("white"), (TWO, [0, 1, 0, 1])
TAKEN = {
    "a split before the label": ({"image": IMAGE, "split": (FOUR, [0, 1, 2, 3]), "label": LABEL}, "image", "label"),
    "labels": ({"gender": (FOUR, [0, 1, 2, 3]), "img": IMAGE, "labels": LABEL}, "img", "labels"),
    "fine labels": ({"image": IMAGE, "coarse_label": (FOUR, [0, 1, 2, 3]), "fine_label": LABEL}, "image", "fine_label"),
    "a mask before the image": ({"mask": MASK, "image": IMAGE, "label": LABEL}, "image", "label"),
    "a text": (
        {"image": IMAGE, "split": (FOUR, [0, 1, 2, 3]), "label": (datasets.Value("string"), ["cat", "dog"] * 2)},
        "image",
        "label",
    ),
    "the only ones": ({"photo": IMAGE, "breed": LABEL}, "photo", "breed"),
    "Label": ({"Image": IMAGE, "Label": LABEL, "split": (FOUR, [0, 1, 2, 3])}, "Image", "Label"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_columns_that_say_what_they_are_are_taken_and_told(name: str, tmp_path: Path) -> None:
    columns, image, label = TAKEN[name]
    data = open_data(saved(tmp_path / "d", **columns), SETTINGS, 0)
    assert [info.folder for info in data.classes] == ["cat", "dog"]
    assert data.pixels(data.rows[0])[0, 0].tolist() == [255, 0, 0]
    assert f"images are column {image!r} and labels column {label!r} of {', '.join(columns)}" in data.notes[0]


LISTS = datasets.List(TWO)
UNCLEAR = {
    "two labels": (
        {"image": IMAGE, "breed": LABEL, "age": LABEL},
        r"several columns of one label.*: breed, age; .*--label-col",
    ),
    "two images": ({"left": IMAGE, "right": MASK, "label": LABEL}, r"several columns of images: left, right; .*--image-column"),
    "lists": (
        {"image": IMAGE, "label": (LISTS, [[0], [0, 1], [1], [0]])},
        r"column 'label' holds List.*not one label an image",
    ),
    "lists beside": (
        {"image": IMAGE, "labels": (LISTS, [[0], [0, 1], [1], [0]]), "split": LABEL},
        r"column 'labels' holds List.*--label-column",
    ),
    "numbers": ({"image": IMAGE, "label": (datasets.Value("float32"), [0.5] * 4)}, r"column 'label' holds .*float32"),
    "lists of images": ({"image": (datasets.List(datasets.Image()), [[]] * 4), "label": LABEL}, r"'image' holds List"),
    "no label": ({"image": IMAGE}, r"expected an Image and a ClassLabel"),
    "an empty text": ({"image": IMAGE, "label": (datasets.Value("string"), ["a", "", "a", "a"])}, "image 1 has no label"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_columns_that_are_unclear_are_refused(name: str, tmp_path: Path) -> None:
    columns, message = UNCLEAR[name]
    with pytest.raises(DataError, match=message):
        open_data(saved(tmp_path / "d", **columns), SETTINGS, 0)


def test_settings_choose_columns(tmp_path: Path) -> None:
    where = saved(tmp_path / "d", left=IMAGE, right=MASK, breed=(FOUR, [0, 1, 2, 3]), label=LABEL, many=(LISTS, [[0]] * 4))
    data = open_data(where, DataSettings(image_column="right", label_column="breed"), 0)
    assert [info.folder for info in data.classes] == ["tabby", "siamese", "poodle", "pug"]
    assert data.pixels(data.rows[0]).min() == 255
    again = reopen(where, data.classes, data.rows, [], DataSettings(image_column="right", label_column="breed"))
    assert again.pixels(data.rows[0]).min() == 255
    for chosen, message in (
        ({"image_column": "top"}, r"no column 'top', as data.image_column \(--image-column\) says; it has left, right, breed"),
        ({"image_column": "label"}, r"column 'label' holds ClassLabel.*not images"),
        ({"image_column": "left", "label_column": "many"}, r"column 'many' holds List"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(where, DataSettings(**chosen), 0)
    assert class_names(where, DataSettings(image_column="left")) == ["cat", "dog"]


# ---- splits and configurations ---------------------------------------------------------------------------------------


def test_splits_that_there_are_are_named_and_slices_are_taken(hub_set, tmp_path: Path) -> None:
    where = tmp_path / "d"
    datasets.DatasetDict({"training": hub_set, "fold-0": hub_set.select(range(2))}).save_to_disk(str(where))
    with pytest.raises(DataError, match=r"split 'train' \(data.split\): .*training.*fold-0"):
        open_data(str(where), SETTINGS, 0)
    for split, count in {"training[:4]": 4, "training[:50%]": 3, "training[4:]": 2, "fold-0": 2, "training[-2:]": 2}.items():
        data = open_data(str(where), DataSettings(split=split), 0)
        assert len(data.rows) == count, split
    assert len(open_data(str(where), DataSettings(split="training[:2]+training[4:]"), 0).rows) == 4
    last = open_data(str(where), DataSettings(split="training[4:]"), 0)
    whole = open_data(str(where), DataSettings(split="training"), 0)
    assert {row.digest for row in last.rows} == {row.digest for row in whole.rows if row.path[-1] in "45"}
    with pytest.raises(DataError, match="training"):
        open_data(str(where), DataSettings(split="all[:2]"), 0)


def test_a_split_saved_alone_is_of_any_name_and_can_be_sliced(hub_set, tmp_path: Path) -> None:
    hub_set.save_to_disk(str(tmp_path / "d"))
    for split, count in {"train": 6, "test": 6, "train[:4]": 4, "fold-0": 6}.items():
        assert len(open_data(str(tmp_path / "d"), DataSettings(split=split), 0).rows) == count, split
    with pytest.raises(DataError, match="Unknown split"):
        open_data(str(tmp_path / "d"), DataSettings(split="train+test"), 0)


def test_configurations_and_revisions_are_asked_for(monkeypatch: pytest.MonkeyPatch, hub_set, tmp_path: Path) -> None:
    asked: list[Any] = []

    def load(*words: Any, **named: Any) -> Any:
        asked.append((*words, named))
        return hub_set

    monkeypatch.setattr(datasets, "load_dataset", load)
    open_data("somebody/pets", DataSettings(config="small", revision="v1", split="test"), 0)
    assert asked == [("somebody/pets", "small", {"split": "test", "revision": "v1"})]
    hub_set.save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="neither configurations nor revisions"):
        open_data(str(tmp_path / "d"), DataSettings(config="small"), 0)


def written(file: Path, labels: list[Any], names: list[str] | None = None, images: list[Any] | None = None) -> Path:
    """A parquet file as whoever writes it without the library, which would check it."""
    import pyarrow
    from pyarrow import parquet

    label = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    blobs = [draw(file.parents[1] / "src" / f"{i}.png", i, 40, 30).read_bytes() for i in range(len(labels))]
    cells = [{"bytes": blob, "path": None} for blob in blobs] if images is None else images
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(cells, kind), "label": labels})
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), file)
    return file


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("label", [2, -2])
def test_a_number_without_a_name_is_told(label: int, tmp_path: Path, own_cache: None) -> None:
    file = written(tmp_path / "t.parquet", [0, 1, label], ["cat", "dog"])
    with pytest.raises(DataError, match=f"image 2 has the label {label}, but there are names for 0 to 1"):
        open_data(str(file), SETTINGS, 0)


@pytest.mark.parametrize("where", ["", "/*.parquet"])
def test_files_that_name_their_numbers_otherwise_are_refused(where: str, tmp_path: Path, own_cache: None) -> None:
    (tmp_path / "d").mkdir()
    written(tmp_path / "d/a-0.parquet", [0, 1], ["cat", "dog"])
    written(tmp_path / "d/a-1.parquet", [0, 1], ["dog", "cat"])
    with pytest.raises(DataError, match=r"a-1\.parquet has other class names than .*a-0\.parquet"):
        open_data(f"{tmp_path}/d{where}", SETTINGS, 0)


def test_a_pattern_over_splits_means_one_of_them(tmp_path: Path, own_cache: None) -> None:
    (tmp_path / "test").mkdir()  # what the folder is called tells nothing
    for name, labels in (("train", [0, 1]), ("test", [0, 1, 1])):
        written(tmp_path / f"test/{name}-0.parquet", labels, ["cat", "dog"])
    pattern = f"{tmp_path}/test/*.parquet"
    assert len(open_data(pattern, SETTINGS, 0).rows) == 2
    assert len(open_data(pattern, DataSettings(image_size=32, split="test"), 0).rows) == 3
    with pytest.raises(DataError, match="files of the splits test, train, none of 'validation'"):
        open_data(pattern, DataSettings(split="validation"), 0)
    with pytest.raises(DataError, match="no such file"):
        open_data(f"{tmp_path}/none-*.parquet", SETTINGS, 0)


def test_rows_without_an_image_and_splits_without_rows(tmp_path: Path, own_cache: None) -> None:
    cell = {"bytes": draw(tmp_path / "a.png", 1, 40, 30).read_bytes(), "path": None}
    file = written(tmp_path / "t.parquet", [0, 1, 1, 1], ["cat", "dog"], [cell, cell, {"bytes": None, "path": None}, None])
    assert [item.reason for item in open_data(str(file), SETTINGS, 0).skipped] == ["no image in this row"] * 2
    with pytest.raises(DataError, match="no image lies there"):
        open_data(str(file), DataSettings(split="train[:0]"), 0)
    with pytest.raises(DataError, match="empty name"):
        open_data(str(written(tmp_path / "u.parquet", [0, 1], ["", "dog"])), SETTINGS, 0)
