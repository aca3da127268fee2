"""WebDataset shards: which samples are images of which class, and where their bytes lie."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw, small_values

from diffsel import method
from diffsel.data.images import base_of, open_data, reopen
from diffsel.sets.export import export_set
from diffsel.settings.errors import DataError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import resolve


def shard(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def picture(tmp_path: Path, seed: int) -> bytes:
    return draw(tmp_path / f"{seed}.png", seed).read_bytes()


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two shards of three samples each; classes.json names the numbers."""
    for number in range(2):
        members = {}
        for i in range(3):
            key, label = f"x/{number}{i}", (number + i) % 2
            members |= {f"{key}.png": picture(tmp_path, 10 * number + i), f"{key}.cls": b"%d\n" % label}
            members[f"{key}.json"] = json.dumps({"label": label, "breed": f"b{label}", "seed": 10 * number + i}).encode()
        shard(tmp_path / f"shards/train-{number:03d}.tar", members)
    (tmp_path / "shards/classes.json").write_text('["zebra", "ant"]')
    return tmp_path / "shards"


def test_rows_are_labelled_and_read_where_their_bytes_lie(two: Path, tmp_path: Path) -> None:
    data = open_data(str(two), DataSettings(), 0)
    assert [info.folder for info in data.classes] == ["zebra", "ant"]  # as classes.json has them
    assert [row.path.rpartition("/")[2] for row in data.of_class("zebra")] == ["00.png", "02.png", "11.png"]
    again = reopen(str(two), data.classes, data.rows, data.skipped, DataSettings())
    for row in data.rows:
        name = row.path.rpartition("/")[2].removesuffix(".png")
        assert again.read(row.path) == picture(tmp_path, int(name))
        assert np.array_equal(np.asarray(again.image(row)), np.asarray(data.image(row)))
    assert base_of(str(two)) is None


@pytest.mark.parametrize("name", ["shards", "shards/train-{000..001}.tar"])
@pytest.mark.parametrize("far", [False, True])
def test_a_folder_a_pattern_and_an_address_are_the_same(two: Path, tmp_path: Path, name: str, far: bool, monkeypatch) -> None:
    from diffsel.machine.addresses import Store

    monkeypatch.setenv("DIFFSEL_CACHE", str(tmp_path / "cache"))
    if far:
        Store(f"memory:/{tmp_path}/shards").upload(two)
    found = open_data(f"memory:/{tmp_path}/{name}" if far else f"{tmp_path}/{name}", DataSettings(), 0)
    assert list(found.rows) == list(open_data(str(two), DataSettings(), 0).rows)
    one = open_data(str(two / "train-001.tar"), DataSettings(), 0)
    assert [row.digest for row in one.of_class("ant")] == [row.digest for row in found.of_class("ant")[1:]]


def test_a_key_of_json_may_be_the_label_and_splits_are_told_apart(two: Path, tmp_path: Path) -> None:
    data = open_data(str(two), DataSettings(label_column="breed"), 0)
    assert [info.folder for info in data.classes] == ["b0", "b1"]
    shard(two / "val-000.tar", {"k.png": picture(tmp_path, 77), "k.cls": b"0"})
    assert len(open_data(str(two), DataSettings(), 0).rows) == 6
    assert len(open_data(str(two), DataSettings(split="validation"), 0).rows) == 1
    with pytest.raises(DataError, match=r"files of the splits train, val, none of 'test'"):
        open_data(str(two), DataSettings(split="test"), 0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x"}, r"bad\.tar/a: no label .*wanted is a\.cls"),
        ({"a.png": b"x", "a.jpg": b"y", "a.cls": b"1"}, r"several images: png, jpg; name one: data\.image_column"),
        ({"a.png": b"x", "a.json": b"{"}, "no label"),
        ({"a.txt": b"x"}, "no image lies in bad.tar"),
        ({"a.png": b"x", "a.json": b"3"}, "its .json holds no keys"),
        ({"a.png": b"x", "a.json": b'{"label": 1.0}'}, "1.0 is not one text or whole number"),
        ({"a.png": b"x", "a.json": b'{"label": [0, 1]}'}, "is not one text or whole number"),
        ({"a.png": b"x", "a.json": b'{"label": NaN}'}, "nan is not one text or whole number"),
        ({"a.png": b"x", "a.cls": b"0\n1"}, "is not one text or whole number"),
        ({"a.png": b"x", "a.cls": b"-1"}, r"no label \(no label\)"),
    ],
)
def test_samples_that_are_unclear_are_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(str(shard(tmp_path / "bad.tar", members)), DataSettings(), 0)


def test_what_is_no_tar_or_cut_off_is_told(two: Path, tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(DataError, match=r"no\.tar: "):
        open_data(str(tmp_path / "no.tar"), DataSettings(), 0)
    with pytest.raises(DataError, match=r"none\.tar: "):
        open_data(str(tmp_path / "none.tar"), DataSettings(), 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("null", "wanted is a list of names"),
        ('{"dog": 1, "cat": 0}', "wanted is a list of names"),
        ('"cat"', "wanted is a list of names"),
        ("[null, 3]", "wanted is a list of names"),
        ("[", "wanted is a list of names"),
        ('["zebra"]', r"no label \(list index out of range\)"),
        ('["", "ant"]', "empty name"),
    ],
)
def test_names_of_the_numbers_are_a_list_or_refused(two: Path, names: str, message: str) -> None:
    (two / "classes.json").write_text(names)
    with pytest.raises(DataError, match=message):
        open_data(str(two), DataSettings(), 0)


def test_a_label_that_classes_json_lacks_is_named(two: Path, tmp_path: Path) -> None:
    shard(two / "train-002.tar", {"k.png": picture(tmp_path, 77), "k.cls": b"cow"})
    with pytest.raises(DataError, match=r"the label 'cow' is not in classes\.json"):
        open_data(str(two), DataSettings(), 0)


def _heads(content: bytes) -> bytes:
    """With one bit of the second member's head turned over."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        at = tar.getmembers()[1].offset + 3
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_heads, "cut, joined or damaged at byte"),
        (lambda content: content + content, "cut, joined or damaged at byte"),
        (lambda content: content.rstrip(b"\0"), "unexpected end of data|cut, joined or damaged"),
        (gzip.compress, "wanted is a whole tar file, not compressed"),
        (None, "a pipe or a device"),
    ],
)
def test_a_shard_that_is_not_whole_is_refused(two: Path, damage: Any, message: str) -> None:
    """Python's reader takes a damaged head for the end of the file."""
    file = two / "train-001.tar"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(damage(content)) if damage else os.mkfifo(file)
    with pytest.raises(DataError, match=rf"train-001\.tar: .*{message}"):
        open_data(str(two), DataSettings(), 0)


def test_a_shard_that_ends_where_a_sample_does_is_refused(two: Path) -> None:
    with tarfile.open(two / "train-001.tar") as tar:
        end = tar.getmembers()[3].offset
    (two / "train-001.tar").write_bytes((two / "train-001.tar").read_bytes()[:end])
    with pytest.raises(DataError, match=f"cut, joined or damaged at byte {end}"):
        open_data(str(two), DataSettings(), 0)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = shard(tmp_path / "a.tar", {"k.png": picture(tmp_path, 1), "k.cls": b"0"})
    with tarfile.open(file, "a") as tar:
        (member := tarfile.TarInfo("k.cls")).size = 1
        tar.addfile(member, io.BytesIO(b"1"))
    with pytest.raises(DataError, match=r"a\.tar: k\.cls is there twice"):
        open_data(str(file), DataSettings(), 0)


def test_what_is_not_read_is_told(two: Path, tmp_path: Path) -> None:
    before = open_data(str(two), DataSettings(), 0)
    shard(two / "train-002.tar", {"k.heic": b"x", "k.cls": b"0"})
    shard(two / ".train-003.tar", {"h.png": picture(tmp_path, 5), "h.cls": b"0"})
    (two / "._train-001.tar").write_bytes(b"of a Mac")
    (two / "train-004.tar.gz").write_bytes(b"x")
    data = open_data(str(two), DataSettings(), 0)
    assert list(data.rows) == list(before.rows)
    assert re.search(r"not read: 1 \.gz", data.notes[0])
    assert re.search(r"1 samples have a label but no image of a known kind, such as train-002\.tar/k", data.notes[1])
    for settings, message in (
        (DataSettings(split="train[:50%]"), "have no slices"),
        (DataSettings(image_column="gif"), "'gif'"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(str(two), settings, 0)


def test_our_own_export_is_a_data_set_with_the_same_classes(folder, tmp_path: Path) -> None:
    method.distill(str(folder(cat=6, dog=6)), tmp_path / "run", {1: tmp_path / "set"}, resolve(small_values()))
    export_set(tmp_path / "set", "webdataset", tmp_path / "out")
    data = open_data(str(tmp_path / "out/shards"), DataSettings(), 0)
    blobs = {(tmp_path / "set" / name / "00000.png").read_bytes() for name in ("cat", "dog")}
    assert [row.label for row in data.rows] == ["cat", "dog"]
    assert {data.read(row.path) for row in data.rows} == blobs
