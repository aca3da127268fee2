"""Data sets behind addresses: the same rows, runs and sets as from a folder, through one cached reader."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import fsspec
import pytest
from conftest import draw, small_values

from diffsel import method
from diffsel.data.far import Far, far_reader
from diffsel.data.images import base_of, open_data, reopen
from diffsel.machine.addresses import Store
from diffsel.settings.errors import DataError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFSEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def far(folder, tmp_path: Path) -> str:
    """The address of a data set; its copy lies in data/."""
    data = folder(cat=6, dog=6)
    (data / "cat" / "notes.txt").write_text("no image")
    (data / "dog" / "broken.jpg").write_bytes(b"<html>")
    Store(f"memory:/{tmp_path}/far").upload(data)
    return f"memory:/{tmp_path}/far"


def test_rows_are_those_of_a_folder_and_each_object_comes_once(far: str, tmp_path: Path, monkeypatch) -> None:
    near, opened = open_data(str(tmp_path / "data"), DataSettings(), 0), open_data(far, DataSettings(), 0)
    assert list(opened.rows) == list(near.rows)
    assert (list(opened.skipped), opened.notes) == (list(near.skipped), near.notes)
    monkeypatch.setattr(Store, "read", lambda *_: pytest.fail("asked for again"))
    again = reopen(far, opened.classes, opened.rows, opened.skipped, DataSettings())
    for data in (opened, again):
        assert [data.image(row).tobytes() for row in data.rows] == [near.image(row).tobytes() for row in near.rows]
    assert base_of(far) == far


def test_a_copy_that_is_damaged_is_fetched_anew_and_an_edited_object_is_told(far: str, cache: Path, tmp_path: Path) -> None:
    opened = open_data(far, DataSettings(), 0)
    for copy in cache.rglob("*"):
        if copy.is_file():
            copy.write_bytes(b"bits that fell over")
    assert opened.image(opened.rows[0]).size == (64, 64)
    Store(far).write("cat/1.png", draw(tmp_path / "other.png", 999).read_bytes())
    with pytest.raises(DataError, match=r"cat/1\.png: edited since it was indexed"):
        opened.image(opened.rows[1])


def test_a_whole_job_from_an_address_has_the_bytes_of_one_from_a_folder(far: str, tmp_path: Path) -> None:
    settings = resolve(small_values())
    for source, name in ((far, "far"), (str(tmp_path / "data"), "near")):
        method.distill(source, tmp_path / name, {1: tmp_path / name / "ipc1"}, settings)
    files = [path.relative_to(tmp_path / "near") for path in (tmp_path / "near").rglob("*") if path.is_file()]
    assert len(files) > 8
    for file in files:
        if file.name != "run.yaml":  # says where the images are
            assert (tmp_path / "far" / file).read_bytes() == (tmp_path / "near" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train/cat/1.png val/cat/1.png", "holds splits"),
        ("a.png b.png", "holds no class folders"),
        ("all/cat/1.png all/dog/1.png", r"if those are the classes, give memory://.*/shapes/all"),
    ],
)
def test_places_that_are_no_classes_are_refused(tmp_path: Path, name: str, message: str) -> None:
    store = Store(f"memory:/{tmp_path}/shapes")
    for each in name.split():
        store.write(each, b"x")
    with pytest.raises(DataError, match=message):
        open_data(store.root, DataSettings(), 0)


def test_runs_and_hidden_files_there_are_passed_over(tmp_path: Path) -> None:
    store, blob = Store(f"memory:/{tmp_path}/mixed"), draw(tmp_path / "a.png", 1).read_bytes()
    for name in ("cat/a.png", "cat/.hidden.png", "__MACOSX/a.png", "run/ipc1/cat/0.png", "run/ipc1/set.yaml", "classes.yaml"):
        store.write(name, blob)
    opened = open_data(store.root, DataSettings(), 0)
    assert [row.path for row in opened.rows] == ["cat/a.png"]
    assert "passed over what diffsel made itself: 'run/ipc1'" in opened.notes[0]
    assert "classes.yaml is not read" in opened.notes[1]


def test_readers_travel_to_other_processes(far: str) -> None:
    reader: Far = pickle.loads(pickle.dumps(far_reader(far, DataSettings())))
    assert reader("cat/0.png")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on the loopback."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    for key, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(key, value)
    port = 20_000 + os.getpid() % 20_000
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-c", f"from moto.server import main; main(['-p', '{port}'])"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                urlopen(address).close()
                break
            except OSError:
                time.sleep(0.1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        fsspec.filesystem("s3").mkdir("photos")
        yield "s3://photos"
    finally:
        server.kill()
        server.wait()


def test_a_real_s3_server_gives_the_rows_of_a_folder_and_takes_exports(bucket: str, folder, diffsel, tmp_path: Path) -> None:
    data = folder(cat=4, dog=4)
    Store(f"{bucket}/train").upload(data)
    opened = open_data(f"{bucket}/train", DataSettings(), 0)
    assert list(opened.rows) == list(open_data(str(data), DataSettings(), 0).rows)
    assert opened.image(opened.rows[0]).size == (64, 64)
    with pytest.raises(DataError, match="nothing lies there"):
        open_data(f"{bucket}/none", DataSettings(), 0)
    words = ["--method", "random", "--ipc", "1", "--factor", "1", "--image-size", "64", "--size", "16", "-q"]
    assert diffsel("select", f"{bucket}/train", *words, "--out", tmp_path / "set")[0] == 0
    export = ["export", tmp_path / "set", "--to", "webdataset", "--out", f"{bucket}/out"]
    assert diffsel(*export)[:2] == (0, f"written: {bucket}/out\n")
    assert diffsel(*export)[:2] == (0, f"there already: {bucket}/out\n")
    shards = open_data(f"{bucket}/out/shards", DataSettings(), 0)
    assert [row.label for row in shards.rows] == ["cat", "dog"]
    assert shards.image(shards.rows[0]).size == (16, 16)
