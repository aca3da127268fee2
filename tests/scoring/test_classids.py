"""A class by its number, its wnid or a name; nothing where it is not clear."""

from __future__ import annotations

import pytest

from diffsel.scoring.classids import ClassIds

NAMES = {"0": "tench, Tinca tinca", "134": "crane", "517": "crane", "207": "golden retriever"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("n01440764", 0), ("n02099601", 207), ("tench", 0), ("Tinca tinca", 0), ("tench, Tinca tinca", 0)),
        *(("Golden_Retriever", 207), ("999", 999), ("", 1000), ("1000", None), ("crane", None), ("unicorn", None)),
    ],
)
def test_a_class_is_found_in_many_ways(text: str, number: int | None) -> None:
    assert ClassIds(NAMES, 1000).find(text) == number


def test_a_thousand_classes_without_names_are_imagenets() -> None:
    ids = ClassIds({}, 1000)
    assert (ids.find("golden retriever"), ids.find("n02099601")) == (207, 207)


def test_wnids_mean_nothing_to_other_numbers_of_classes() -> None:
    ids = ClassIds({"0": "cat", "1": "dog"}, 2)
    assert (ids.find("n01440764"), ids.find("dog"), ids.find("")) == (None, 1, 2)
