"""WebDataset shards: which samples are images of which class, and where their bytes lie."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

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
    with pytest.raises(DataError, match=r"shards of the splits train, val, none of 'test'"):
        open_data(str(two), DataSettings(split="test"), 0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"x"}, r"bad\.tar/a: no label .*wanted is a\.cls"),
        ({"a.png": b"x", "a.jpg": b"y", "a.cls": b"1"}, r"several images: png, jpg; name one: data\.image_column"),
        ({"a.png": b"x", "a.json": b"{"}, "no label"),
        ({"a.txt": b"x"}, "no image lies in bad.tar"),
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


def test_our_own_export_is_a_data_set_with_the_same_classes(folder, tmp_path: Path) -> None:
    method.distill(str(folder(cat=6, dog=6)), tmp_path / "run", {1: tmp_path / "set"}, resolve(small_values()))
    export_set(tmp_path / "set", "webdataset", tmp_path / "out")
    data = open_data(str(tmp_path / "out/shards"), DataSettings(), 0)
    blobs = {(tmp_path / "set" / name / "00000.png").read_bytes() for name in ("cat", "dog")}
    assert [row.label for row in data.rows] == ["cat", "dog"]
    assert {data.read(row.path) for row in data.rows} == blobs
