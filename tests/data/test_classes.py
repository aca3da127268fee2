"""Classes: their order, names and words."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from diffsel.data.classes import ClassInfo, imagenet_wnids, spelled
from diffsel.data.images import open_data
from diffsel.settings.errors import ConfigError, DataError
from diffsel.settings.sections import DataSettings, hash_classes
from diffsel.settings.settings import load_settings

SETTINGS = DataSettings(image_size=32)
CONFIGS = ROOT / "configs" / "datasets"


def test_class_order_and_names_come_from_classes_yaml(folder) -> None:
    root = folder(n01440764=1, tabby_cat=1, other=1)
    table = {"tabby_cat": {"name": "tabby", "description": "a striped cat"}, "n01440764": {"wnid": "n01440764"}}
    (root / "classes.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    data = open_data(str(root), SETTINGS, 0)
    assert [(c.folder, c.name) for c in data.classes] == [("tabby_cat", "tabby"), ("n01440764", "tench"), ("other", "other")]
    assert data.classes[0].prompt("{label}, {description}") == "tabby, a striped cat"
    with pytest.raises(DataError, match=r"asks for \{description\}, which class 'other' lacks"):
        data.classes[2].prompt("{label}, {description}")


def test_names_of_folders_become_words() -> None:
    assert ClassInfo("tabby", "tabby cat").prompt("An image of {label}.") == "An image of tabby cat."
    assert ClassInfo("x", "{label} {0} {label.__class__}").prompt("a {label}") == "a {label} {0} {label.__class__}"


def test_a_class_file_that_does_not_fit_is_refused(folder) -> None:
    root = folder(cat=1)
    (root / "classes.yaml").write_text("cats: a cat\n")
    with pytest.raises(DataError, match=r"names class 'cats'.*did you mean 'cat'"):
        open_data(str(root), SETTINGS, 0)
    (root / "classes.yaml").write_text("- cat\n")
    with pytest.raises(DataError, match="expected lines like"):
        open_data(str(root), SETTINGS, 0)
    (root / "classes.yaml").unlink()
    os.mkfifo(root / "classes.yaml")
    with pytest.raises(DataError, match=r"classes.yaml: .*a pipe or a device"):
        open_data(str(root), SETTINGS, 0)


def test_wnids_are_named_by_their_imagenet_index() -> None:
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert wnids == sorted(wnids)
    assert wnids.index("n02123045") == 281  # tabby


@pytest.mark.parametrize(
    ("preset", "count"), [("imagenette", 10), ("imagewoof", 10), ("imagenet-10", 10), ("imagenet-100", 100)]
)
def test_presets_are_hashed_lists_of_imagenet_classes(preset: str, count: int, tmp_path: Path) -> None:
    file = CONFIGS / f"{preset}.yaml"
    settings = load_settings([file])
    assert settings.data.classes is not None
    assert len(settings.data.classes) == count
    assert set(settings.data.classes) <= set(imagenet_wnids())
    assert hash_classes(settings.data.classes) == settings.data.classes_sha256
    swapped = tmp_path / "swapped.yaml"
    lines = file.read_text().splitlines()
    lines[4], lines[5] = lines[5], lines[4]
    swapped.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="does not match classes_sha256"):
        load_settings([swapped])


def test_classes_are_taken_in_the_order_asked(folder) -> None:
    root = folder(a=1, b=1, c=1)
    data = open_data(str(root), DataSettings(image_size=32, classes=("c", "a")), 0)
    assert [r.path for r in data.rows] == ["c/0.png", "a/0.png"]
    with pytest.raises(DataError, match=r"class 'cc' is not in .*did you mean 'c'"):
        open_data(str(root), DataSettings(classes=("cc",)), 0)


COMPOSED = ("café", "thé vert", "Ångström", "한국", "été")
NFD = [unicodedata.normalize("NFD", name) for name in COMPOSED]


def test_names_are_the_same_however_their_letters_are_composed() -> None:
    assert all(a != b for a, b in zip(COMPOSED, NFD, strict=True))
    assert spelled(COMPOSED, NFD) == NFD
    assert spelled(NFD, COMPOSED) == list(COMPOSED)
    assert spelled(["\u212bngström", "cafe", "café", "café"], COMPOSED) == ["Ångström", None, "café", "café"]
    assert spelled([COMPOSED[0], NFD[0]], [COMPOSED[0], NFD[0]]) == [COMPOSED[0], NFD[0]]  # both are there: as they stand
    assert spelled(["\u212b"], ["\u00c5", "A\u030a"]) == [None]  # it may be either


@pytest.mark.parametrize(("there", "asked"), [(NFD, COMPOSED), (COMPOSED, NFD)])
def test_classes_are_found_in_either_form(there: list[str], asked: list[str], folder) -> None:
    root = folder(**dict.fromkeys(there, 1))
    data = open_data(str(root), DataSettings(classes=tuple(asked[::-1])), 0)
    assert [info.folder for info in data.classes] == list(there[::-1])
    (root / "classes.yaml").write_text(f"{asked[1]}: green tea\n", encoding="utf-8")
    data = open_data(str(root), SETTINGS, 0)
    assert (data.classes[0].folder, data.classes[0].name) == (there[1], "green tea")
    assert len(data.of_class(there[1])) == 1
    (root / "classes.yaml").write_text(f"{asked[1]}: green tea\n{there[1]}: tea\n", encoding="utf-8")
    with pytest.raises(DataError, match="twice, with its letters composed in two ways"):
        open_data(str(root), SETTINGS, 0)
    (root / "classes.yaml").unlink()
    with pytest.raises(DataError, match="is asked for twice"):
        open_data(str(root), DataSettings(classes=(asked[1], there[1])), 0)


def test_words_of_classes_are_read_as_they_stand(folder, tmp_path: Path) -> None:
    root = folder(**{"0010": 1, "s0": 1})
    (root / "classes.yaml").write_text("0010: off\ns0: {name: 007, colour: yes}\n")
    data = open_data(str(root), SETTINGS, 0)
    assert [(c.folder, c.name, dict(c.words)) for c in data.classes] == [("0010", "off", {}), ("s0", "007", {"colour": "yes"})]
