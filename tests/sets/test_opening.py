"""A set is what it was when it was made, or it is not taken."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import draw, small_values

from diffsel.data.images import open_data
from diffsel.evaluation.tasks import evaluate, relabel
from diffsel.sets.baselines import select_baseline
from diffsel.sets.export import export_set
from diffsel.sets.opening import DistilledSet, check_whole, damaged_pictures, is_there, open_set, read_set
from diffsel.settings.errors import DataError, StoreError, Withheld
from diffsel.settings.settings import Settings, resolve
from diffsel.studies.checking import check_folder

Hand = Callable[[Path], object]


def settings() -> Settings:
    values = {**small_values(), "selection": {"method": "random"}, "assembly": {"size": 16, "factor": 1}}
    return resolve({**values, "data": {"image_size": 64}, "protocol": {"labels": "hard", "epochs": 1}})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("opening")
    for i, name in enumerate(("Cat", "cat", "dog")):
        for j in range(4):
            draw(place / "data" / name / f"{j}.png", 10 * i + j)
    select_baseline(open_data(str(place / "data"), settings().data, 0), 2, place / "set", settings())
    return place


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source / "set", tmp_path / "set")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "00007.png").write_bytes((source / "data" / "dog" / "0.png").read_bytes())
    return tmp_path / "set"


def folder_of(path: Path, name: str) -> str:
    return read_set(path).folders[name]


def swap(path: Path) -> None:
    """Two whole pictures, of two classes."""
    (path / "dog" / "00000.png").rename(path / "x")
    (path / "Cat" / "00000.png").rename(path / "dog" / "00000.png")
    (path / "x").rename(path / "Cat" / "00000.png")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def relink(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


HANDS: dict[str, tuple[Hand, str]] = {
    "lost": (lambda path: (path / "dog" / "00001.png").unlink(), "dog/00001.png is named in metadata.jsonl but is not there"),
    "lost class": (lambda path: shutil.rmtree(path / "dog"), "dog/00000.png is named in metadata.jsonl but is not there"),
    "swapped": (swap, "Cat/00000.png is not what B2SUMS tells"),
    "changed": (lambda path: flip(path / "Cat" / "00001.png"), "Cat/00001.png is not what B2SUMS tells"),
    "empty": (lambda path: (path / "Cat" / "00001.png").write_bytes(b""), "Cat/00001.png is not what B2SUMS tells"),
    "copied": (lambda path: shutil.copy(path / "dog" / "00000.png", path / "dog" / "00001.png"), "dog/00001.png is not what"),
    "added": (
        lambda path: shutil.copy(path / "dog" / "00000.png", path / "Cat" / "00002.png"),
        "Cat/00002.png is not named in",
    ),
    "other kind": (lambda path: (path / "dog" / "x.JPG").touch(), "dog/x.JPG is not named in metadata.jsonl"),
    "added class": (lambda path: shutil.copytree(path / "dog", path / "emu"), "emu/00000.png is not named in"),
    "added link": (lambda path: (path / "dog" / "more").symlink_to(path.parent / "secret"), "dog/more is not named in"),
    "link out": (
        lambda path: relink(path / "dog" / "00000.png", "../../secret/00007.png"),
        "00000.png is a link that leads out",
    ),
    "note in metadata": (
        lambda path: (path / "metadata.jsonl").write_text(
            (path / "metadata.jsonl").read_text().replace("dog/0.png", "dog/9.png")
        ),
        "metadata.jsonl is not what B2SUMS tells",
    ),
    "sums cut": (lambda path: (path / "B2SUMS").write_text("0123"), "B2SUMS is damaged"),
    "sums empty": (lambda path: (path / "B2SUMS").write_text(""), "B2SUMS is damaged"),
    "sums short": (lambda path: (path / "B2SUMS").write_text(f"{'0' * 32}  set.yaml\n"), "is not in B2SUMS"),
}


def test_a_picture_that_cannot_be_read_now_condemns_no_set(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    found = read_set(made)
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(Withheld, match=r"Cat/00000\.png: Permission denied; .*, start again when it can be read$"):
        check_whole(found)
    with pytest.raises(Withheld):
        list(check_folder(made))


@pytest.mark.parametrize("name", HANDS)
def test_what_a_hand_did_to_a_set_is_named_by_all_that_take_it(
    name: str, made: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffsel.evaluation.tasks.read_checkpoint", lambda spec: None)  # the teacher is looked at first
    hand, message = HANDS[name]
    record = yaml.safe_load((made / "set.yaml").read_text())
    assert is_there(made, record)
    hand(made)
    data = open_data(str(source / "data"), settings().data, 0)
    takers: list[Callable[[], object]] = [
        lambda: open_set(made),
        lambda: is_there(made, record),
        lambda: select_baseline(data, 2, made, settings()),
        lambda: export_set(made, "csv", made.parent / "out"),
        lambda: relabel(made, "resnet18", settings()),
        lambda: evaluate([made], str(source / "data"), ["conv3"], settings()),
    ]
    for take in takers:
        with pytest.raises(DataError, match=r"the set is damaged: delete .*set and make it anew") as told:
            take()
        assert message in str(told.value)
        assert "\n" not in str(told.value)
    assert not (made.parent / "out").exists()
    shutil.rmtree(made)  # the way out that is told
    assert select_baseline(data, 2, made, settings())
    assert not list(damaged_pictures(open_set(made)))


def test_every_damaged_file_is_listed(made: Path) -> None:
    swap(made)
    (made / "dog" / "00001.png").unlink()
    found = dict(damaged_pictures(read_set(made)))
    assert sorted(found) == [made / "Cat" / "00000.png", made / "dog" / "00000.png", made / "dog" / "00001.png"]
    with pytest.raises(DataError, match=r"\(and 2 more\)"):
        open_set(made)


def test_what_people_may_change_is_no_damage(made: Path) -> None:
    (made / "README.md").write_text("license: cc0")
    (made / "notes.txt").write_text("mine")
    (made / ".DS_Store").touch()
    (made / "dog" / "@eaDir").mkdir()
    (made / "dog" / "@eaDir" / "thumb.jpg").touch()
    moved = made.rename(made.parent / "elsewhere")
    (made.parent / "link").symlink_to(moved)
    for path in (moved, made.parent / "link"):
        assert not list(damaged_pictures(open_set(path)))


def test_the_sums_are_those_that_b2sum_checks(made: Path) -> None:
    if not shutil.which("b2sum"):
        pytest.skip("no b2sum here")
    told = subprocess.run(["b2sum", "-c", "B2SUMS"], cwd=made, capture_output=True, text=True)
    assert (told.returncode, told.stdout.count(": OK")) == (0, 8)  # six pictures and two lists


def test_a_set_of_an_earlier_version_opens_and_its_lost_and_strange_pictures_are_told(made: Path) -> None:
    (made / "B2SUMS").unlink()
    with pytest.raises(DataError, match="B2SUMS is lost, which told what all files are"):
        open_set(made)  # its card speaks of it
    (made / "README.md").write_text("a set")
    assert isinstance(open_set(made), DistilledSet)
    for name in ("lost", "lost class", "added", "added class", "link out"):
        copy = shutil.copytree(made, made.parent / name.replace(" ", "-"), symlinks=True)
        HANDS[name][0](copy)
        with pytest.raises(DataError, match="the set is damaged"):
            open_set(copy)


def test_a_set_made_anew_is_not_exported_already(made: Path, source: Path) -> None:
    assert export_set(made, "csv", made.parent / "out")
    assert not export_set(made, "csv", made.parent / "out")
    flip(made / "dog" / "00000.png")
    with pytest.raises(DataError, match="the set is damaged"):
        export_set(made, "csv", made.parent / "out")


def test_class_folders_differ_on_any_disk(made: Path) -> None:
    found = open_set(made)
    assert found.names == ("Cat", "cat", "dog")
    assert len({folder.lower() for folder in found.folders.values()}) == 3
    assert [len(found.data.of_class(found.folders[name])) for name in found.names] == [2, 2, 2]


def line(path: Path, number: int = 0, **changes: object) -> None:
    lines = [json.loads(each) for each in (path / "metadata.jsonl").read_text().splitlines()]
    lines[number] = {key: value for key, value in {**lines[number], **changes}.items() if value is not None}
    (path / "metadata.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))


def tile(path: Path, **changes: object) -> None:
    first = json.loads((path / "metadata.jsonl").read_text().splitlines()[0])["tiles"][0]
    line(path, tiles=[{key: value for key, value in {**first, **changes}.items() if value != "gone"}])


def yaml_of(path: Path, *gone: str, **changes: object) -> None:
    record = yaml.safe_load((path / "set.yaml").read_text()) | changes
    (path / "set.yaml").write_text(yaml.safe_dump({key: value for key, value in record.items() if key not in gone}))


RECORDS: dict[str, tuple[Hand, str]] = {
    **{
        f"no {key}": (lambda p, key=key: yaml_of(p, key), f"set.yaml is damaged ({key}: ") for key in ("ipc", "classes", "seed")
    },
    "no assembly": (lambda p: yaml_of(p, "assembly"), "set.yaml is damaged (assembly: Field required)"),
    "no selection": (lambda p: yaml_of(p, "selection"), "set.yaml is damaged (selection: Field required)"),
    "selection null": (lambda p: yaml_of(p, selection=None), "set.yaml is damaged (selection: "),
    "no method": (lambda p: yaml_of(p, selection={}), "set.yaml is damaged (selection.method: Field required)"),
    "size text": (lambda p: yaml_of(p, assembly={"size": "large"}), "set.yaml is damaged (assembly.size: "),
    "ipc 0": (lambda p: yaml_of(p, ipc=0), "set.yaml is damaged (ipc: "),
    "ipc 3": (lambda p: yaml_of(p, ipc=3), "it lists 2 pictures of class 'Cat', but set.yaml tells 3"),
    "format 2": (lambda p: yaml_of(p, format=2), "has set format 2; this version reads format 1"),
    "a list": (lambda p: (p / "set.yaml").write_text("- a"), "set.yaml is damaged (it holds no settings)"),
    "a class more": (lambda p: yaml_of(p, classes=["Cat", "cat", "dog", "emu"]), "it lists 0 pictures of class 'emu'"),
    "metadata empty": (lambda p: (p / "metadata.jsonl").write_text(""), "it lists 0 pictures of class 'Cat'"),
    "metadata null": (lambda p: (p / "metadata.jsonl").write_text("null\n"), "metadata.jsonl is damaged (a line: "),
    "metadata number": (lambda p: (p / "metadata.jsonl").write_text("1\n"), "metadata.jsonl is damaged (a line: "),
    "metadata cut": (
        lambda p: (p / "metadata.jsonl").write_text('{"file_name": "a'),
        "metadata.jsonl is damaged (JSONDecodeError",
    ),
    "metadata gone": (lambda p: (p / "metadata.jsonl").unlink(), "metadata.jsonl is damaged (FileNotFoundError"),
    "metadata not text": (
        lambda p: (p / "metadata.jsonl").write_bytes(b"\xff"),
        "metadata.jsonl is damaged (UnicodeDecodeError",
    ),
    "no label": (lambda p: line(p, label=None), "metadata.jsonl is damaged (label: Field required)"),
    "other label": (lambda p: line(p, label=2), "it gives Cat/00000.png the label 2, which is not the place of its folder"),
    "label text": (lambda p: line(p, label="0"), "metadata.jsonl is damaged (label: "),
    "other class": (lambda p: line(p, **{"class": "dog"}), "it lists 1 pictures of class 'Cat', but set.yaml tells 2"),
    "tiles null": (lambda p: line(p, tiles=5), "metadata.jsonl is damaged (tiles: "),
    "box short": (lambda p: tile(p, box=[1, 2, 3]), "metadata.jsonl is damaged (tiles.0.box: "),
    "box outside": (lambda p: tile(p, box=[-5, -5, 3, 3]), "metadata.jsonl is damaged (tiles.0.box: "),
    "box of nothing": (lambda p: tile(p, box=[0, 0, 0, 3]), "metadata.jsonl is damaged (tiles.0.box: "),
    "no tiles": (lambda p: line(p, tiles=[]), "it gives Cat/00000.png 0 tiles, but set.yaml tells 1 a side"),
    "no source": (lambda p: tile(p, source="gone"), "metadata.jsonl is damaged (tiles.0.source: Field required)"),
    "no number": (lambda p: tile(p, score=float("nan")), "metadata.jsonl is damaged (tiles.0.score: "),
    "twice": (lambda p: line(p, file_name="Cat/00001.png"), "it lists a picture twice"),
    "other folder": (lambda p: line(p, file_name="dog/00002.png"), "it lists a class in two folders, or two classes in one"),
    **{
        name: (lambda p, name=name: line(p, file_name=name), "metadata.jsonl is damaged (file_name: ")
        for name in (
            *(
                "../secret/00007.png",
                "/etc/00007.png",
                "Cat/../../secret/00007.png",
                "Cat/../../../x/0.png",
                "..\\secret\\0.png",
            ),
            *("C:\\secret\\0.png", "00000.png", "Cat/x.png", "Cat/00000.txt", ".hidden/0.png", "", "../0.png", "Cat/0.png\n"),
        )
    },
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_one_line_that_names_the_file(name: str, made: Path, diffsel) -> None:
    (made / "B2SUMS").unlink()  # the record must speak for itself
    hand, message = RECORDS[name]
    hand(made)
    with pytest.raises(StoreError) as told:
        read_set(made)
    assert message in str(told.value)
    code, out, err = diffsel("export", made, "--to", "csv")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not made.with_name("set-csv").exists()


def test_a_place_that_cannot_take_a_set_is_refused_before_anything_is_drawn(source: Path, tmp_path: Path, monkeypatch) -> None:
    data = open_data(str(source / "data"), settings().data, 0)
    monkeypatch.setattr("diffsel.sets.baselines.select_random", lambda *_: pytest.fail("work was done"))
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(StoreError, match="disk is where a disk is mounted"):
        select_baseline(data, 2, tmp_path / "disk", settings())
