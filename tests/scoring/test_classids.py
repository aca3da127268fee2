"""A class by its number, its wnid or a name; nothing where it is not clear."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from families import saved

from diffsel.data.classes import imagenet_wnids
from diffsel.scoring.classids import ClassIds
from diffsel.scoring.folder import ModelFolder

NAMES = {"0": "tench, Tinca tinca", "134": "crane", "517": "crane", "207": "golden retriever"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("n01440764", 0), ("n02099601", 207), ("tench", 0), ("Tinca tinca", 0), ("tench, Tinca tinca", 0)),
        *(("Golden_Retriever", 207), ("999", 999), ("", 1000), ("1000", None), ("crane", None), ("unicorn", None)),
    ],
)
def test_a_class_is_found_in_many_ways(text: str, number: int | None) -> None:
    assert ClassIds(NAMES, 1000, imagenet_wnids()).find(text) == number


def test_a_thousand_classes_without_names_are_imagenets(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("dit"), tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    del index["id2label"]
    (folder / "model_index.json").write_text(json.dumps(index))
    ids = ModelFolder(folder).classes
    assert (ids.find("golden retriever"), ids.find("n02099601")) == (207, 207)


def test_wnids_mean_nothing_to_other_numbers_of_classes() -> None:
    ids = ClassIds({"0": "cat", "1": "dog"}, 2)
    assert (ids.find("n01440764"), ids.find("dog"), ids.find("")) == (None, 1, 2)
