"""The card of a set and of its exports: names are shown as they are, and nothing else."""

from __future__ import annotations

import re

import pytest
import yaml
from huggingface_hub import DatasetCard

from diffsel.sets.card import card, code

NAMES = {
    "cat": "`cat`",
    "<img src=x onerror=alert(1)>": "`<img src=x onerror=alert(1)>`",
    "[click](javascript:alert(1))": "`[click](javascript:alert(1))`",
    "a`<b>x": "`` a`<b>x ``",
    "``": "``` `` ```",
    "a``b`c": "``` a``b`c ```",
    "a|b": r"`a\|b`",
    r"a\|b": r"`a\\\|b`",
    "line\nend": r"`line\nend`",
    "---": "`---`",
    "\x1b[31m": r"`\x1b[31m`",
    "猫": r"`\u732b`",
    " ": "`   `",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_code_from_its_first_to_its_last_letter(name: str) -> None:
    told = code(name)
    assert told == NAMES[name]
    (fence,) = set(re.findall(r"^`+|`+$", told))
    assert fence not in re.split(r"(?<!`)`+(?!`)", told[len(fence) : -len(fence)])
    assert max(map(len, re.findall("`+", told[len(fence) : -len(fence)])), default=0) != len(fence)


def record(*classes: str) -> dict:
    return {
        "ipc": 2,
        "factor": 2,
        "seed": 3,
        "classes": list(classes),
        "assembly": {"size": 64},
        "selection": {"method": "random"},
    }


def test_a_card_says_what_a_set_is() -> None:
    classes = ("train", "<b>", "- x: y")
    text = card(record(*classes), classes, "load()", "My *photos*.", "About it.", {name: name.upper() for name in classes})
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front) == {
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation", "diffsel"],
        "size_categories": ["n<1K"],
    }
    for part in ("3 classes, 2 images each", "6 pictures of 64 x 64 pixels, 2 x 2 patches", "My *photos*.", "About it."):
        assert part in body
    assert "Selected at random, at 2 images per class, seed 3." in body
    assert "| label | class | in prompts |\n|" in body.replace("| --- | --- | --- |", "|---|") or "| --- |" in body
    assert "| 1 | `<b>` | `<B>` |\n" in body


def test_front_matter_holds_names_as_data() -> None:
    names = ["a: b", "- c", "<i>", "x\n---\ny", "'\"", "yes", "1"]
    features = {"names": dict(enumerate(names))}
    text = card(record(*names), names, "load()", front={"dataset_info": features})
    assert DatasetCard(text).data.to_dict()["dataset_info"] == features


def test_settings_stay_in_their_block() -> None:
    text = card(record("x\n\n# Headline", "y\u2028z"), ["a"], "load()")
    block = text.partition("## Settings\n\n")[2]
    assert block
    assert all(line.startswith("    ") for line in block.splitlines())
