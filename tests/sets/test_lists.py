"""A set's list: the set made again of the source images, byte for byte, or the sources alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import draw, small_values

from diffsel import method
from diffsel.data.images import open_data
from diffsel.data.pixels import digest
from diffsel.sets import lists
from diffsel.sets.baselines import select_baseline
from diffsel.sets.opening import read_set
from diffsel.settings.errors import DataError, StoreError
from diffsel.settings.sections import DataSettings
from diffsel.settings.settings import resolve


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """DATA, and sets of it: by diffsel (png, mosaics) and by chance (jpeg, one class of two)."""
    place = tmp_path_factory.mktemp("lists")
    for number, name in enumerate(("train", "cat")):
        for i in range(9):
            draw(place / "data" / name / f"{'deep/' * (i % 2)}{i}.png", 100 * number + i, 64 + i)
    method.distill(str(place / "data"), place / "run", {2: place / "diffsel"}, resolve(small_values()))
    values = {**small_values(), "selection": {"method": "random"}, "assembly": {"size": 20, "format": "jpeg", "factor": 2}}
    settings = resolve(values)
    select_baseline(open_data(str(place / "data"), settings.data, 0), 1, place / "random", settings, ["cat"])
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["diffsel", "random"])
def test_a_set_made_again_of_its_list_has_the_same_bytes(diffsel, made: Path, tmp_path: Path, name: str) -> None:
    assert diffsel("export", made / name, "--to", "list", "--out", tmp_path / "list")[0] == 0
    assert not [*(tmp_path / "list").rglob("*.png"), *(tmp_path / "list").rglob("*.jpg")]
    again = tmp_path / "again"
    code, out, err = diffsel("rebuild", tmp_path / "list", "--data", made / "data", "--out", again, "-q")
    assert (code, out, err) == (0, f"the set: {again}\n", "")
    assert contents(again) == contents(made / name)
    code, out, _ = diffsel("rebuild", made / name / "metadata.jsonl", "--data", made / "data", "--out", again, "-q")
    assert (code, out) == (0, f"the set: {again}\n")  # there already


def test_a_source_that_is_another_image_or_missing_is_named(made: Path, tmp_path: Path) -> None:
    found = lists.open_list(made / "diffsel")
    shutil.copytree(made / "data", tmp_path / "data")
    first, second, *_ = sorted({tile["source"] for picture in found.pictures for tile in picture.tiles})
    draw(tmp_path / "data" / first, 999)
    (tmp_path / "data" / second).unlink()
    with pytest.raises(DataError, match=rf"{first}: another image than the list tells .* \(and 1 more\)"):
        lists.rebuild(found, str(tmp_path / "data"), DataSettings(), tmp_path / "out")
    shutil.copy(made / "data" / first, tmp_path / "data" / first)
    with pytest.raises(DataError, match=rf"lacks images of the list: .*{second}: No such file"):
        lists.apply(found, str(tmp_path / "data"), DataSettings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../secret.png", "cat/../../secret.png", "/{place}/secret.png"])
def test_a_list_from_somebody_else_reaches_no_file_outside_of_the_images(made: Path, tmp_path: Path, name: str) -> None:
    """Its hash is right, and so are the sums of the list."""
    shutil.copytree(made / "data", tmp_path / "data")
    secret = draw(tmp_path / "secret.png", 7).read_bytes()
    shutil.copytree(made / "random", tmp_path / "set")
    lines = (tmp_path / "set/metadata.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    first["tiles"][0] |= {"source": name.format(place=tmp_path), "digest": digest(secret)}
    (tmp_path / "set/metadata.jsonl").write_text("".join([json.dumps(first) + "\n", *lines[1:]]))
    (tmp_path / "set/B2SUMS").unlink()
    (tmp_path / "set/README.md").unlink()
    with pytest.raises(StoreError, match="leads out of the data set"):
        lists.apply(lists.open_list(tmp_path / "set"), str(tmp_path / "data"), DataSettings(), tmp_path / "out", copy=True)
    assert not (tmp_path / "out").exists()


def test_a_list_without_its_settings_is_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "random", tmp_path / "set")
    text = (tmp_path / "set/set.yaml").read_text()
    (tmp_path / "set/set.yaml").write_text(text.replace("image_size:", "size_of_images:"))
    with pytest.raises(StoreError, match="does not tell how its pictures were made"):
        lists.rebuild(read_set(tmp_path / "set"), str(made / "data"), DataSettings(), tmp_path / "out")
    with pytest.raises(StoreError, match="is not a distilled set"):
        lists.open_list(made / "data")


@pytest.mark.parametrize("copy", [False, True])
def test_apply_gives_the_whole_sources_once_and_a_set_can_be_made_of_them(made: Path, tmp_path: Path, copy: bool) -> None:
    found = lists.open_list(made / "diffsel")
    wanted = {tile["source"] for picture in found.pictures for tile in picture.tiles}
    assert lists.apply(found, str(made / "data"), DataSettings(), tmp_path / "out", copy) == len(wanted)
    links = [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert len(links) == (0 if copy else len(wanted))
    told = {path.replace("train/", "%74rain/", 1): (made / "data" / path).read_bytes() for path in wanted}
    assert contents(tmp_path / "out") == {**told, "classes.yaml": b"cat:\n  name: cat\n'%74rain':\n  name: train\n"}
    with pytest.raises(StoreError, match="give a new or empty folder"):
        lists.apply(found, str(made / "data"), DataSettings(), tmp_path / "out", copy)


def test_the_classes_of_applied_images_keep_names_words_and_order(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "data", data := tmp_path / "data")
    (data / "classes.yaml").write_text("train: {name: steam train, wnid: '04310018'}\ncat: 'no'\n")
    settings = resolve({**small_values(), "selection": {"method": "random"}, "assembly": {"size": 20, "factor": 1}})
    select_baseline(open_data(str(data), settings.data, 0), 2, tmp_path / "set", settings)
    lists.apply(lists.open_list(tmp_path / "set"), str(data), DataSettings(), tmp_path / "out")
    told = [(info.name, info.words) for info in open_data(str(tmp_path / "out"), DataSettings(), 0).classes]
    assert told == [("steam train", {"wnid": "04310018"}), ("no", {})]


def test_images_of_a_table_are_copied_with_an_extension_and_never_linked(diffsel, made: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted((made / "data/cat").glob("*.png"))
    columns = {"image": [str(path) for path in files], "label": ["cat"] * len(files)}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "table"))
    settings = resolve({**small_values(), "selection": {"method": "random"}, "assembly": {"size": 20, "factor": 1}})
    select_baseline(open_data(str(tmp_path / "table"), settings.data, 0), 2, tmp_path / "set", settings)
    words = ["apply", tmp_path / "set", "--data", tmp_path / "table", "--out", tmp_path / "out"]
    code, _, err = diffsel(*words)
    assert (code, "no image files of this machine, which could be linked to; --copy" in err) == (2, True)
    assert diffsel(*words, "--copy")[:2] == (0, f"2 images: {tmp_path / 'out'}\n")
    bytes_of = {path.read_bytes() for path in files}
    assert all(path.suffix == ".png" and path.read_bytes() in bytes_of for path in (tmp_path / "out/cat").iterdir())
