"""Rows as columns are what a list of rows is."""

from __future__ import annotations

import random

import pytest

from diffsel.data import rows as module
from diffsel.data.rows import Row, Rows
from diffsel.settings.settings import fingerprint


def listed(sizes: dict[str, int], copies: float = 0.0) -> list[Row]:
    rng, found = random.Random(0), list[Row]()
    for label, count in sizes.items():
        for i in range(count):
            digest = rng.choice(found).digest if found and rng.random() < copies else f"{rng.getrandbits(128):032x}"
            found.append(Row(len(found), f"{label}/é {i}.png", label, rng.randrange(1, 9000), rng.randrange(1, 9000), digest))
    return found


@pytest.fixture(params=[3, 10_000], autouse=True)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that end within classes, and one that holds them all."""
    monkeypatch.setattr(module, "BLOCK", request.param)


def test_columns_give_the_rows_that_they_were_made_of() -> None:
    truth = listed({"cat": 7, "dog": 1, "ant": 12})
    rows = Rows.of([truth[:5], truth[5:]])
    assert list(rows) == truth
    assert [rows[i] for i in range(-20, 20)] == [truth[i] for i in range(-20, 20)]
    assert list(rows[6:][2:9]) == truth[8:15]
    assert list(rows[15:4]) == []
    assert rows[3:9][-1] == truth[8]
    assert {label: list(rows.of_class(label)) for label in rows.spans} == {
        label: [row for row in truth if row.label == label] for label in ("cat", "dog", "ant")
    }
    assert list(rows.of_class("bee")) == []
    assert rows.texts("digest") == [row.digest for row in truth]
    assert rows[4:].numbers("width").tolist() == [row.width for row in truth[4:]]


def test_rows_of_a_list_bear_its_numbers() -> None:
    truth = [row for row in listed({"cat": 7, "dog": 4}) if row.row % 3]
    rows = Rows.listed(truth)
    assert list(rows) == truth
    assert list(rows.of_class("dog")) == [row for row in truth if row.label == "dog"]
    assert [rows.numbered(row.row) for row in truth] == [rows[i] for i in range(len(truth))] == truth


def test_the_digest_is_that_of_the_list() -> None:
    truth = listed({"cat": 7, "dog": 4})
    assert Rows.of([truth]).digest == fingerprint([[row.path, row.label, row.digest] for row in truth])
    assert Rows.of([truth])[2:5].digest == fingerprint([[row.path, row.label, row.digest] for row in truth[2:5]])
    assert Rows.of([]).digest == fingerprint([])


def test_parts_of_one_table_become_it_again_and_others_are_numbered_anew() -> None:
    truth = listed({"cat": 7, "dog": 4})
    rows = Rows.of([truth])
    assert Rows.of([rows[:3], rows[3:]]).table is rows.table
    assert Rows.of([rows[:3], truth[3:6], rows[6:]]) == rows
    shorter = Rows.of([rows[4:7], rows[9:]])
    assert [row.row for row in shorter] == list(range(5))
    assert [row.path for row in shorter] == [row.path for row in (*truth[4:7], *truth[9:])]
    assert shorter != rows
    assert len({rows[:3], Rows.of([truth])[:3], rows[3:6]}) == 2
    with pytest.raises(ValueError, match="several places"):
        _ = Rows.of([rows[:2], rows[8:], rows[2:4]]).spans


@pytest.mark.parametrize("field", ["path", "label", "width", "height", "digest"])
def test_the_checksum_sees_every_column(field: str) -> None:
    truth = listed({"cat": 7, "dog": 4})
    values = {name: getattr(truth[6], name) for name in ("row", "path", "label", "width", "height", "digest")}
    values[field] = values[field] + ("x" if isinstance(values[field], str) else 1)
    other = [*truth[:6], Row(**values), *truth[7:]]  # the last cat
    assert Rows.of([other]).checksum != Rows.of([truth]).checksum
    assert Rows.of([Rows.of([truth])[:6], truth[6:]]).checksum == Rows.of([truth]).checksum


def test_copies_are_those_of_a_search_by_hand() -> None:
    truth = listed({"cat": 30, "dog": 40}, copies=0.3)
    first: dict[str, Row] = {}
    expected = [(row, first[row.digest]) for row in truth if first.setdefault(row.digest, row) is not row]
    assert expected
    assert Rows.of([truth]).copies() == expected
    assert Rows.of([truth]).firsts() == [row.row for row in truth if first[row.digest] is row]
    chosen = Rows.listed([row for row in truth if row.row % 3])[5:]
    once = {row.digest: row.row for row in reversed(chosen)}
    assert chosen.firsts() == sorted(once.values())
