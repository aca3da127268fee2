"""Tables that a spreadsheet opens and a program reads; records and what differs in them."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from diffsel.machine import formats
from diffsel.machine.formats import as_csv, differences, dump_yaml, from_csv, is_mine

FORMULAS = (
    *(
        '=HYPERLINK("http:x","y")',
        "=1+1",
        "+1+1",
        "-2+3",
        "@SUM(A1)",
        "\t=1+1",
        "\r=1+1",
        "\n=1+1",
        "\uff1d1+1",
        "-",
        "+cmd|' /C x'!A1",
    ),
    *("-1.5.2", "+", "@", "=", "-1e", "'=1+1", "''", "'"),
)
OTHERS = (
    "cat",
    "a=b",
    "a,b",
    'say "hi"',
    "-0.25",
    "+3",
    "-1e-05",
    "猫",
    "a\nb",
    "a\rb",
    "a\r\nb",
    "",
    " =1",
    "1-2",
    "n01440764",
)


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_reaches_a_spreadsheet_as_a_formula(text: str) -> None:
    content = as_csv(["class", "value"], [[text, 1]])
    ((cell, value),) = list(csv.reader(io.StringIO(content.decode(), newline="")))[1:]
    assert (cell, value) == (f"'{text}", "1")
    assert from_csv(content) == [{"class": text, "value": "1"}]


@pytest.mark.parametrize("text", OTHERS)
def test_other_texts_and_numbers_stay(text: str) -> None:
    content = as_csv(["class"], [[text]])
    assert list(csv.DictReader(io.StringIO(content.decode(), newline=""))) == ([{"class": text}] if text else [{"class": ""}])
    assert from_csv(content) == [{"class": text}]


def test_numbers_keep_their_sign_and_none_is_empty() -> None:
    content = as_csv(["a", "b", "c", "d"], [[-1, -0.5, None, float("-inf")]])
    assert content == b"a,b,c,d\n-1,-0.5,,-inf\n"


def test_a_setting_may_come_later_but_none_may_be_stored_that_nobody_knows() -> None:
    assert differences({"a": 1}, {"a": 1, "later": None}) == {}
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "later": 3}) == {"a.b": (1, 2), "later": (None, 3)}
    assert differences({"a": 1, "tot_k": None}, {"a": 1, "top_k": None}) == {"tot_k": (None, "no such setting")}


def test_a_folder_that_another_process_begins_meanwhile_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes the record between our two looks, and then what belongs to it."""
    folder, looked = tmp_path / "labels", formats.is_unused

    def begun() -> None:
        folder.mkdir()
        (folder / "labels.yaml").write_bytes(dump_yaml({"epochs": 3}))
        (folder / "epoch-000").touch()

    monkeypatch.setattr(formats, "is_unused", lambda *what: [looked(*what), begun()][0])
    assert is_mine(folder, "labels.yaml", {"epochs": 3}, "a folder of labels")
    monkeypatch.undo()
    exists = Path.exists

    def late(path: Path) -> bool:
        found = exists(path)
        if path.name == "labels.yaml" and not found:
            begun()
        return found

    shutil.rmtree(folder)
    monkeypatch.setattr(Path, "exists", late)
    assert not is_mine(folder, "labels.yaml", {"epochs": 3}, "a folder of labels")  # each of them writes the same record
