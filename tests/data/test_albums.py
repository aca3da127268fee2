"""Validation pictures: cut as torchvision does, of the right classes."""

from __future__ import annotations

import threading
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from conftest import draw
from students import CPU, QUICK, Trusting

from diffsel.data.albums import Album, Opener, match_classes, open_validation, validation_pictures
from diffsel.data.classes import ClassInfo
from diffsel.data.images import ImageData, open_data
from diffsel.data.rows import Row
from diffsel.evaluation import cells as experiment
from diffsel.evaluation.cells import make_cell
from diffsel.settings.errors import DataError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import resolve


def test_validation_pictures_are_torchvisions(tmp_path: Path) -> None:
    from PIL import Image
    from torchvision.transforms import v2

    for i, (width, height) in enumerate(((50, 37), (37, 50), (36, 36), (91, 36))):
        draw(tmp_path / "v" / "cat" / f"{i}.png", i, width, height)
    data = open_data(str(tmp_path / "v"), DataSettings(), 0)
    ours = validation_pictures(data, data.classes, 32, 36).load()
    theirs = v2.Compose([v2.Resize(36), v2.CenterCrop(32), v2.PILToTensor()])
    for row, mine in zip(data.rows, ours.pixels, strict=True):
        assert torch.equal(mine, theirs(Image.open(tmp_path / "v" / row.path).convert("RGB")))


def test_a_subset_of_validation_classes_and_the_first_files(folder, world) -> None:
    found, _, _ = world
    more = open_data(str(folder("more", (16, 16), bee=3, ant=2, cow=2)), DataSettings(), 0)
    train = found.album(2, 16)
    assert len(train.rows) == 4
    album = validation_pictures(more, train.classes, 16, 16)
    assert [row.label for row in album.rows] == ["ant", "ant", "bee", "bee", "bee"]
    assert album.load().labels.tolist() == [0, 0, 1, 1, 1]
    assert len(validation_pictures(more, train.classes, 16, 16, per_class=1).rows) == 2


def test_all_validation_images_are_read_and_broken_ones_told(folder, world, tmp_path: Path) -> None:
    val = folder("v", (16, 16), ant=3, bee=2)
    (val / "bee" / "9.png").write_bytes(b"broken")
    data = open_validation(str(val), resolve({"data": {"images_per_class": 1}}))
    assert len(data.rows) == 5
    found, _, teacher = world
    told: list[str] = []
    bench = Trusting(CPU, tell=told.append)
    cell = make_cell("x", found, data, "conv3w8", QUICK.model_copy(update={"epochs": 1}), teacher, bench)
    result = experiment.train_one(cell, 0, bench)
    assert result["validation_images"] == {"read": 5, "unreadable": 1, "of_the_set": 5}  # the set is of equal pictures
    (unreadable,) = [text for text in told if "unreadable" in text]
    assert "1 of 6 images cannot be read and are left out; the first: bee/9.png" in unreadable


def test_two_classes_never_share_a_folder(folder) -> None:
    cranes = [ClassInfo("crane_bird", "crane"), ClassInfo("crane_machine", "crane")]
    one = open_data(str(folder("one", (16, 16), crane=1, bee=1)), DataSettings(), 0)
    with pytest.raises(DataError, match=r"'crane_bird' and 'crane_machine' both match 'crane'"):
        match_classes(cranes, one)
    two = replace(one, classes=(ClassInfo("bird", "crane"), ClassInfo("machine", "crane")))
    with pytest.raises(DataError, match="lacks 1 of the 1 classes: 'crane_bird'"):  # which of the two?
        match_classes(cranes[:1], two)


def test_validation_classes_match_in_either_unicode_form_by_folder_and_by_name(folder) -> None:
    composed, apart = ("café", "thé"), tuple(unicodedata.normalize("NFD", name) for name in ("café", "thé"))
    data = open_data(str(folder("val", (16, 16), **dict.fromkeys(apart, 1))), DataSettings(), 0)
    assert match_classes([ClassInfo(name, "x") for name in composed], data) == list(apart)
    assert match_classes([ClassInfo(f"n{i}", name) for i, name in enumerate(composed)], data) == list(apart)
    with pytest.raises(DataError, match="both match"):
        match_classes([ClassInfo(composed[0], "x"), ClassInfo(apart[0], "y")], data)


def test_what_was_not_taken_for_an_image_is_told_of_training_and_validation_images(folder) -> None:
    for name in ("train", "val"):
        (folder(name, (16, 16), ant=1, bee=1) / "ant" / "1.heic").write_bytes(b"")
    told: list[str] = []
    opener = Opener(tell=told.append)
    root = folder("train", (16, 16))
    for _ in range(2):  # each data set is opened once
        opener.training(str(root), resolve({}))
        opener.validation(str(root.parent / "val"), resolve({}))
    assert [note.split(";")[0] for note in told] == ["note: files beside them that are not taken for images: 1 .heic"] * 2


def test_pictures_are_read_by_as_many_threads_as_asked(folder) -> None:
    album = Album(data := open_data(str(folder(cat=9)), DataSettings(), 0), tuple(data.rows), data.classes, 16, 16)
    inside, most, lock, image = [0], [0], threading.Lock(), type(data).image

    def watched(self: ImageData, row: Row):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1
        return image(self, row)

    with patch.object(type(data), "image", watched):
        found = {workers: album.load(workers=workers) for workers in (1, 3)}
        assert most[0] <= 3
    assert torch.equal(found[1].pixels, found[3].pixels)
