"""Hand-over forms: each is loaded back by its own library or format, with the labels and bytes of the set."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import draw, small_values
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from diffsel.data.images import open_data
from diffsel.machine.formats import from_csv
from diffsel.sets import export
from diffsel.sets.baselines import select_baseline
from diffsel.settings.errors import ConfigError, DataError, StoreError
from diffsel.settings.settings import resolve

CLASSES = ("zebra", "train", "a|b <i>.x")  # not in order; a split's name; harmful for tables, pages and paths


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A set of two pictures a class, of 2 x 2 tiles."""
    place = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (place / "data" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / "data" / name / f"{i}.png")
    values = {**small_values(), "selection": {"method": "random"}, "baseline": {"whole": True}, "assembly": {"size": 16}}
    values["data"] = {"image_size": 64, "classes": list(CLASSES)}
    settings = resolve(values)
    assert select_baseline(open_data(str(place / "data"), settings.data, 0), 2, place / "set", settings)
    return place / "set"


@pytest.fixture
def lines(made: Path) -> list[dict]:
    return [json.loads(line) for line in (made / "metadata.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(blob: bytes) -> list:
    with Image.open(io.BytesIO(blob)) as picture:
        return np.asarray(picture).tolist()


def test_a_set_may_be_the_folder_one_is_in(diffsel, made: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(made, tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    code, out, err = diffsel("export", ".", "--to", "csv")
    assert (code, err) == (0, "")
    assert f"written: {tmp_path / 'set-csv'}" in out


def test_hf_loads_with_datasets_with_the_same_labels_names_and_pixels(made: Path, lines, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    assert export.export_set(made, "hf", tmp_path / "out")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].names == sorted(CLASSES, key=lambda name: export_label(lines, name))
    assert table["label"] == [line["label"] for line in lines]
    for row, line in zip(table, lines, strict=True):
        assert np.asarray(row["image"]).tolist() == pixels((made / line["file_name"]).read_bytes())
        assert [tile["source"] for tile in row["tiles"]] == [tile["source"] for tile in line["tiles"]]
        assert [[t["top"], t["left"], t["height"], t["width"]] for t in row["tiles"]] == [t["box"] for t in line["tiles"]]
    alone = datasets.Dataset.from_parquet(
        str(tmp_path / "out" / "data" / "train-00000-of-00001.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert alone.features["label"] == table.features["label"]  # the file says so itself, without the card
    about = pq.read_schema(tmp_path / "out/data/train-00000-of-00001.parquet").metadata[b"huggingface"].decode()
    assert set(re.findall(r'"_type": "(\w+)"', about)) == {"Image", "ClassLabel", "Value"}  # versions 3 know no List


def export_label(lines: list[dict], name: str) -> int:
    return next(line["label"] for line in lines if line["class"] == name)


def test_webdataset_shards_hold_whole_samples_mixed_classes_and_fixed_bytes(made, lines, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", 3 * (made / lines[0]["file_name"]).stat().st_size)
    export.export_set(made, "webdataset", tmp_path / "out")
    export.export_set(made, "webdataset", tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    shards = sorted((tmp_path / "out" / "shards").iterdir())
    assert len(shards) >= 2
    samples: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)  # as webdataset splits a name
                stream = tar.extractfile(member)
                assert stream is not None
                samples.setdefault(key, {})[suffix] = stream.read()
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
    assert sorted(samples) == [f"{i:08d}" for i in range(6)]
    assert [int(samples[key]["cls"]) for key in sorted(samples)] == [0, 1, 2, 0, 1, 2]
    by_pixels = {str(pixels((made / line["file_name"]).read_bytes())): line for line in lines}
    for sample in samples.values():
        line, about = by_pixels[str(pixels(sample["png"]))], json.loads(sample["json"])
        assert int(sample["cls"]) == about["label"] == line["label"]
        assert (about["class"], about["tiles"]) == (line["class"], line["tiles"])


def test_webdataset_loads_with_datasets(made: Path, lines, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export.export_set(made, "webdataset", tmp_path / "out")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(table["cls"]) == sorted(line["label"] for line in lines)
    assert {tuple(t["source"] for t in row["tiles"]) for row in table["json"]} == {
        tuple(t["source"] for t in line["tiles"]) for line in lines
    }


def test_fiftyone_has_the_documented_layout(made: Path, lines, tmp_path: Path) -> None:
    export.export_set(made, "fiftyone", tmp_path / "out")
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    files = {path.stem: path for path in (tmp_path / "out" / "data").iterdir()}
    assert set(labels) == {"classes", "labels"}
    assert set(files) == set(labels["labels"])
    found = sorted((labels["classes"][label], str(pixels(files[key].read_bytes()))) for key, label in labels["labels"].items())
    assert found == sorted((line["class"], str(pixels((made / line["file_name"]).read_bytes()))) for line in lines)


def test_names_reach_no_spreadsheet_as_formulas_and_programs_as_they_are(tmp_path: Path) -> None:
    names = ['=HYPERLINK("http:x","y")', "+a", "-b", "@c", "'d", "e"]
    for seed, name in enumerate(names):
        draw(tmp_path / "data" / name / "=1+1.png", seed)
    values = {**small_values(), "selection": {"method": "random"}, "assembly": {"size": 16, "factor": 1}}
    settings = resolve({**values, "data": {"image_size": 64}})
    select_baseline(open_data(str(tmp_path / "data"), settings.data, 0), 1, tmp_path / "set", settings)
    export.export_set(tmp_path / "set", "csv", tmp_path / "out")
    for table, column in (("images.csv", "class"), ("tiles.csv", "source")):
        content = (tmp_path / "out" / table).read_bytes()
        cells = [row[column] for row in csv.DictReader(content.decode().splitlines())]
        assert not [cell for cell in cells if cell[0] in "=+-@"]
        read = [row[column] for row in from_csv(content)]
        assert sorted(read) == sorted(names if column == "class" else [f"{name}/=1+1.png" for name in names])
    assert "has a ' before it" in (tmp_path / "out" / "README.md").read_text()


def test_csv_lists_pictures_and_tiles(made: Path, lines, tmp_path: Path) -> None:
    export.export_set(made, "csv", tmp_path / "out")
    pictures = list(csv.DictReader((tmp_path / "out" / "images.csv").read_text().splitlines()))
    tiles = list(csv.DictReader((tmp_path / "out" / "tiles.csv").read_text().splitlines()))
    assert [(p["class"], int(p["label"])) for p in pictures] == [(line["class"], line["label"]) for line in lines]
    for picture, line in zip(pictures, lines, strict=True):
        assert (tmp_path / "out" / picture["path"]).read_bytes() == (made / line["file_name"]).read_bytes()
        own = [tile for tile in tiles if tile["path"] == picture["path"]]
        assert [tile["source"] for tile in own] == [tile["source"] for tile in line["tiles"]]
        assert [int(tile["tile"]) for tile in own] == [0, 1, 2, 3]


@pytest.mark.parametrize("form", export.FORMS)
def test_every_form_has_a_card_and_is_not_made_twice(made: Path, lines, tmp_path: Path, form) -> None:
    assert export.export_set(made, form, tmp_path / "out", "Random pixels.")
    before = contents(tmp_path / "out")
    assert not export.export_set(made, form, tmp_path / "out", "Random pixels.")
    assert contents(tmp_path / "out") == before
    front, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)[1:]
    matter = yaml.safe_load(front)
    assert matter["task_categories"] == ["image-classification"]
    assert "license" not in matter  # left to the user
    assert "Random pixels." in body
    assert "2 x 2 patches" in body
    assert "at random, at 2 images per class, seed 0" in body
    assert "| `a\\|b <i>.x` |" in body
    if form == "hf":
        names = matter["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
        assert {names[str(line["label"])] for line in lines} == set(CLASSES)
    with pytest.raises(StoreError, match="made with other settings"):
        export.export_set(made, form, tmp_path / "out", "Other pixels.")


def test_what_is_no_whole_set_is_refused(made: Path, lines, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a distilled set"):
        export.export_set(tmp_path, "csv", tmp_path / "out")
    shutil.copytree(made, tmp_path / "set")
    (tmp_path / "set" / lines[3]["file_name"]).unlink()
    with pytest.raises(DataError, match=r"named in metadata\.jsonl but is not there"):
        export.export_set(tmp_path / "set", "csv", tmp_path / "out")
    (tmp_path / "set" / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(StoreError, match="is damaged"):
        export.export_set(tmp_path / "set", "csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_beside_the_set(diffsel, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "set")
    assert diffsel("export", tmp_path / "set", "--to", "csv")[:2] == (0, f"written: {tmp_path / 'set-csv'}\n")
    assert diffsel("export", tmp_path / "set", "--to", "csv")[:2] == (0, f"there already: {tmp_path / 'set-csv'}\n")
    code, _, err = diffsel("export", tmp_path / "set", "--to", "zip")
    assert code == 2
    assert "webdataset" in err


class Hub:
    """Stands for the hub; remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[dict] = []

    def whoami(self) -> dict:
        return {"name": "somebody"}

    def create_repo(self, repo_id: str, **options):
        self.asked.append({"repo_id": repo_id, **options})
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, **options) -> None:
        self.asked.append(options)


def test_push_uploads_the_export_to_a_private_data_set_repository(diffsel, made: Path, tmp_path: Path, monkeypatch) -> None:
    fake = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    code, out, _ = diffsel("export", made, "--to", "hf", "--out", tmp_path / "out", "--push", "somebody/pets")
    assert code == 0
    assert "logged in to the hub as somebody" in out
    (tmp_path / "out" / "secret.txt").write_text("mine")
    assert diffsel("export", made, "--to", "hf", "--out", tmp_path / "out", "--push", "somebody/pets")[0] == 0
    repo, upload = fake.asked[2:]
    sent = set(filter_repo_objects(contents(tmp_path / "out"), allow_patterns=upload["allow_patterns"]))
    assert sent == contents(tmp_path / "out").keys() - {"secret.txt"}
    assert (repo["repo_id"], repo["repo_type"], repo["private"]) == ("somebody/pets", "dataset", True)
    assert (upload["repo_id"], upload["repo_type"], Path(upload["folder_path"])) == (
        "somebody/pets",
        "dataset",
        tmp_path / "out",
    )


def test_push_without_a_login_or_with_a_bad_id_is_refused_before_any_work(diffsel, made, tmp_path: Path, monkeypatch) -> None:
    def nobody(self: Hub) -> dict:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(Hub, "whoami", nobody)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    for hub_id, message in (("me/pets", "nobody is logged in to the hub; run `hf auth login`"), ("a/b/c", "not a hub id")):
        code, _, err = diffsel("export", made, "--to", "hf", "--out", tmp_path / "out", "--push", hub_id)
        assert code == 2
        assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("Name or service not known\nmore")])
def test_a_hub_that_fails_is_one_clear_line_and_the_export_stays(diffsel, made, tmp_path: Path, monkeypatch, error) -> None:
    class Failing(Hub):
        def upload_folder(self, **options) -> None:
            raise error

    monkeypatch.setattr("huggingface_hub.HfApi", Failing)
    code, _, err = diffsel("export", made, "--to", "csv", "--out", tmp_path / "out", "--push", "me/pets")
    assert code == 2
    assert err == f"error: --push me/pets: {str(error).splitlines()[0]} (the export itself is whole: {tmp_path / 'out'})\n"
    monkeypatch.setattr(Failing, "whoami", Failing.upload_folder)
    with pytest.raises(ConfigError, match="did not answer"):
        export.check_login("me/pets")
