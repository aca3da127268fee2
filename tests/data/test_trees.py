"""Folders of class folders, and folders that only look like them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import draw

from diffsel.data.images import class_names, open_data
from diffsel.data.trees import list_tree
from diffsel.settings.errors import DataError
from diffsel.settings.sections import DataSettings

SETTINGS = DataSettings(image_size=32)


def tree(root: Path, *files: str) -> Path:
    for number, name in enumerate(files):
        draw(root / name, number, 40, 40)
    return root


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
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "above").symlink_to(tmp_path)
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    paths = [r.path for r in open_data(str(root), SETTINGS, 0).rows]
    assert paths == ["cat/0.png", "cat/linked.png", "dog/1.png"]


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "@eaDir", "__MACOSX"])
def test_folders_that_systems_leave_among_images_are_not_looked_into(folder, hidden: str) -> None:
    root = folder(cat=2)
    (root / "cat" / hidden).mkdir()
    (root / "cat" / hidden / "0.png").write_bytes((root / "cat" / "0.png").read_bytes())
    assert [row.path for row in open_data(str(root), SETTINGS, 0).rows] == ["cat/0.png", "cat/1.png"]


# ---- splits ----------------------------------------------------------------------------------------------------------

SPLITS = [
    ("Training/a", "Testing/a"),
    ("train_images/a", "val_images/a"),
    ("train2017/a", "val2017/a", "unlabeled"),
    ("train/a", "eval/a"),
    ("seg_train/a", "seg_test/a", "seg_pred"),
    ("trainA", "testA", "trainB", "testB"),
    ("TrainSet/a", "ValSet/a"),
    ("train", "test"),
    ("training_images", "test_imgs"),
    ("VALIDATION/a",),
]


@pytest.mark.parametrize("folders", SPLITS)
def test_splits_are_not_taken_for_classes(folders: tuple[str, ...], tmp_path: Path) -> None:
    root = tree(tmp_path / "data", *(f"{name}/0.png" for name in folders))
    with pytest.raises(DataError, match=r"data holds splits \(.*not classes; give one of them, say .*--classes") as caught:
        open_data(str(root), SETTINGS, 0)
    train = next((name.split("/")[0] for name in folders if "train" in name.lower()), "VALIDATION")
    assert f"say {root / train} (" in str(caught.value)
    named = tuple(dict.fromkeys(name.split("/")[0] for name in folders))
    data = open_data(str(root), DataSettings(classes=named), 0)  # whoever names them means them
    assert [info.folder for info in data.classes] == list(named)


NO_SPLITS = [("train", "bus"), ("bullet train", "freight train"), ("test tube", "flask"), ("value", "latest"), ("val", "dog")]


@pytest.mark.parametrize("folders", NO_SPLITS)
def test_classes_may_be_called_by_such_words(folders: tuple[str, ...], tmp_path: Path) -> None:
    data = open_data(str(tree(tmp_path / "data", *(f"{name}/0.png" for name in folders))), SETTINGS, 0)
    assert (len(data.rows), data.notes) == (2, ())


def test_what_may_be_a_split_is_told(tmp_path: Path) -> None:
    inner = [f"{name}/0.png" for name in ("a", "b")]
    beside = tree(tmp_path / "beside", *(f"train/{name}" for name in inner), "unlabeled/0.png")
    assert "the folder 'train' is a class here, but holds folders" in open_data(str(beside), SETTINGS, 0).notes[0]
    years = tree(tmp_path / "years", *(f"{year}/{name}" for year in (2019, 2020) for name in inner))
    assert "every class holds the same folders (a, b): are those the classes" in open_data(str(years), SETTINGS, 0).notes[0]
    flat = tree(tmp_path / "flat", "part1/0.png", "part2/0.png")
    (flat / "part1" / "metadata.csv").write_text("file_name,label\n0.png,0\n")
    assert "'part1' holds labels of its own (metadata.*): is it a split" in open_data(str(flat), SETTINGS, 0).notes[0]
    one = tree(tmp_path / "one", "train/0.png")
    (one / "train" / "metadata.jsonl").write_text('{"file_name": "0.png", "label": 0}\n')
    with pytest.raises(DataError, match=r"holds splits \(train\)"):
        open_data(str(one), SETTINGS, 0)
    with pytest.raises(DataError, match=r"holds no class folders; its images seem to be labelled by metadata.jsonl"):
        open_data(str(one / "train"), SETTINGS, 0)
    nested = tree(tmp_path / "nested", "cat/front/0.png", "dog/1.png", "cow/side/2.png")
    assert open_data(str(nested), SETTINGS, 0).notes == ()


def test_a_folder_around_the_classes_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "PetImages/Cat/0.png", "PetImages/Dog/0.png")
    with pytest.raises(DataError, match=rf"holds one folder, 'PetImages'.*give {root}/PetImages \(.*--classes PetImages"):
        open_data(str(root), SETTINGS, 0)
    assert [info.folder for info in open_data(str(root / "PetImages"), SETTINGS, 0).classes] == ["Cat", "Dog"]
    assert len(open_data(str(root), DataSettings(classes=("PetImages",)), 0).rows) == 2
    deep = tree(tmp_path / "deep", "a/b/cat/0.png", "a/b/dog/0.png")
    with pytest.raises(DataError, match=rf"give {deep}/a/b \("):
        open_data(str(deep), SETTINGS, 0)
    chain = tree(tmp_path / "chain", "a/cat/0.png")
    with pytest.raises(DataError, match=rf"give {chain}/a \("):
        open_data(str(chain), SETTINGS, 0)


# ---- what diffsel made itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["run.yaml", "set.yaml"])
def test_our_own_folders_are_no_classes_and_hold_no_images_of_them(mark: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "cat/0.png", "dog/0.png", "made/cat/0.png", "sets/one/x/0.png", "cat/inner/x/0.png")
    for where in ("made", "sets/one", "cat/inner"):
        (root / where / mark).write_text("format: 1\n")
    tree(root, "made-prompts/heat.png", "made-up/0.png")  # of which one is named after it
    data = open_data(str(root), SETTINGS, 0)
    assert [row.path for row in data.rows] == ["cat/0.png", "dog/0.png", "made-up/0.png"]
    assert data.notes == (
        f"{root}: passed over what diffsel made itself: 'cat/inner', 'made', 'sets/one', 'made-prompts', 'sets'",
    )


def test_a_folder_to_write_to_that_leads_in_a_circle_is_no_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "cat/0.png")
    (tmp_path / "circle").symlink_to("circle")
    assert list(list_tree(root, SETTINGS, tmp_path / "circle" / "set").images) == ["cat"]


def test_the_folder_that_is_written_to_is_no_class_whatever_a_stopped_start_left(tmp_path: Path) -> None:
    root = tree(tmp_path / "in", "cat/0.png")
    for left in ((), ("index.parquet",), ("logs/events",)):
        for name in left:
            (root / "runs" / "one" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "runs" / "one" / name).write_bytes(b"")
        (root / "runs" / "one").mkdir(parents=True, exist_ok=True)
        assert list(list_tree(root, SETTINGS, root / "runs" / "one").images) == ["cat"]
    with pytest.raises(DataError, match=r"class folder 'runs' .* holds no image"):
        open_data(str(root), SETTINGS, 0)
    draw(root / "runs" / "0.png", 0)  # a class that is written to is a class
    assert list(list_tree(root, SETTINGS, root / "runs").images) == ["cat", "runs"]


# ---- what would be missing -------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_looked_into_stop_the_opening(folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(cat=1, dog=1)
    (root / "dog" / "more").symlink_to(tmp_path / "unmounted" / "more")
    with pytest.raises(DataError, match=r"dog/more: a link that leads nowhere; its images would be missing"):
        open_data(str(root), SETTINGS, 0)
    (root / "dog" / "more").unlink()
    (root / "cow").symlink_to(tmp_path / "unmounted" / "cow")
    with pytest.raises(DataError, match=r"cow: a link that leads nowhere"):
        open_data(str(root), SETTINGS, 0)
    (root / "cow").unlink()
    scandir = os.scandir

    def failing(path: str):
        if str(path).endswith("dog"):
            raise OSError(5, "Input/output error", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(DataError, match=r"dog: Input/output error; its images would be missing"):
        open_data(str(root), SETTINGS, 0)


OTHERS = {
    "a.heic": ".heic",
    "a.jxl": ".jxl",
    "a.apng": ".apng",
    "a": "no extension",
    "a.jpg?w=200": ".jpg?w=200",
    "a.jpg ": "'.jpg '",
    "a.jpg_large": ".jpg_large",
    "a.jpg.1": ".jpg.1",
    "a.png!w700.webp.txt": ".png!w70...",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_not_taken_for_images_are_counted(name: str, folder) -> None:
    root = folder(cat=1, dog=1)
    (root / "cat" / name).write_bytes(b"\0")
    expected = f"1 {OTHERS[name]}"
    told = f"files beside them that are not taken for images: {expected}; taken are .avif"
    assert open_data(str(root), SETTINGS, 0).notes[0].startswith(told)
    (root / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"class folder 'cat' .* holds no image, but 1 other files: ") as caught:
        open_data(str(root), SETTINGS, 0)
    assert f"other files: {expected}; convert them, or give them an extension" in str(caught.value)


def test_whoever_gives_the_folder_above_shards_is_told_theirs(folder) -> None:
    root = folder(cat=1, shards=0)
    (root / "shards").mkdir(exist_ok=True)
    (root / "shards" / "train-000000.tar").write_bytes(b"\0")
    with pytest.raises(DataError, match=f"give {root}/shards; or"):
        open_data(str(root), SETTINGS, 0)


def test_all_classes_are_known_whatever_is_asked_for(folder) -> None:
    assert class_names(str(folder(cat=1, dog=1)), DataSettings(classes=("cat",))) == ["cat", "dog"]
