"""Label suspects: ranked by what the store holds, left out on request, and found on scenes with flipped labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, small_values
from PIL import Image

from diffsel import method
from diffsel.machine.formats import read_yaml
from diffsel.machine.tensors import write_unit
from diffsel.runs.session import Session, resume, start
from diffsel.sets.candidates import check_set
from diffsel.sets.suspects import left_out, suspect_table, suspects
from diffsel.settings.errors import ConfigError, SelectionError
from diffsel.settings.settings import resolve
from diffsel.studies import scenes
from diffsel.studies.demo import demo_settings


def settings(**sections):
    values = {**small_values(), "assembly": {"size": 32, "factor": 1}}
    return resolve({**values, **{key: {**values.get(key, {}), **fields} for key, fields in sections.items()}})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Session:
    """A run of five cats and a dog whose stored maps were put there by hand: cat i has -D = means[i] everywhere."""
    place = tmp_path_factory.mktemp("suspects")
    for seed, name in enumerate((*(f"cat/{i}" for i in range(5)), "dog/0")):
        draw(place / "data" / f"{name}.png", seed)
    session = start(str(place / "data"), place / "run", settings())
    for unit in session.run.units:
        tensors = {}
        for row in unit.rows:
            d = np.full((1, 3, 8, 8), -MEANS[row.row], np.float16)
            d[:, 2] -= EXTRA[row.row]
            tensors |= {
                f"{row.row}.differential": d,
                f"{row.row}.gap": np.abs(d),
                f"{row.row}.null": np.ones((3, 8, 8), np.float32),
            }
        extra = {"label": unit.label, "rows": [row.row for row in unit.rows], "skipped": []}
        write_unit(session.run.map_file(unit), session.run.mark, tensors, extra)
    return session


MEANS = (0.5, -0.25, 0.75, 0.25, -0.5, 0.5)
EXTRA = (0.0, 3.0, 0.0, 0.0, 0.0, 0.0)  # in the last timestep bin only


def test_images_are_ranked_by_the_mean_of_minus_d(made: Session) -> None:
    found = suspects(made.run, "cat")
    assert [each.path for each in found] == [f"cat/{i}.png" for i in (4, 3, 0, 1, 2)]
    assert [each.statistic for each in found] == pytest.approx([-0.5, 0.25, 0.5, 0.75, 0.75])
    assert [each.rank for each in found] == [0, 1, 2, 3, 4]
    early = resume(made.run.path, settings(patches={"t_range": (0.1, 0.3)}))
    assert [each.path for each in suspects(early.run, "cat")] == [f"cat/{i}.png" for i in (4, 1, 3, 0, 2)]
    assert [(each.rank, each.path) for each in suspects(made.run, "dog")] == [(0, "dog/0.png")]


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({}, set()),
        ({"drop_suspects": 0.19}, set()),  # rounded down
        ({"drop_suspects": 0.2}, {4}),
        ({"drop_suspects": 0.5}, {4, 3}),
        ({"drop_below": 0.0}, {4}),
        ({"drop_below": 0.6}, {4, 3, 0}),
        ({"drop_suspects": 0.4, "drop_below": 0.0}, {4, 3}),
    ],
)
def test_a_share_or_all_below_a_threshold_are_left_out(made: Session, asked, rows) -> None:
    session = resume(made.run.path, settings(selection=asked))
    assert left_out(session.run, "cat", range(99)) == rows
    assert left_out(session.run, "cat", ()) == set()
    assert left_out(session.run, "cat", rows) <= rows


def test_select_leaves_them_out_and_says_so_in_the_set(made: Session, tmp_path: Path) -> None:
    chosen = {"method": "diffsel-noclusters", "drop_suspects": 0.4}
    session = resume(made.run.path, settings(selection=chosen))
    assert method.select(session, 3, tmp_path / "set", ["cat"])
    lines = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert {tile["row"] for line in lines for tile in line["tiles"]} == {0, 1, 2}
    assert read_yaml(tmp_path / "set" / "set.yaml")["selection"]["drop_suspects"] == 0.4
    with pytest.raises(SelectionError, match="class 'cat' has 3 patches"):
        check_set(session.run, 4, tmp_path / "four", ["cat"])


def test_baselines_without_a_pass_refuse_it() -> None:
    with pytest.raises(ConfigError, match="need a scoring pass"):
        settings(selection={"method": "random", "drop_suspects": 0.1})


def test_the_command_lists_and_exports(diffsel, made: Session, tmp_path: Path) -> None:
    code, out, _ = diffsel("suspects", made.run.path, "--top", 1, "--out", tmp_path / "list.csv", "-q")
    assert code == 0
    assert "cat/4.png" in out
    assert "cat/3.png" not in out
    assert "raises the loss of 1 of 6 images" in out
    rows = list(csv.DictReader((tmp_path / "list.csv").read_text().splitlines()))
    assert (tmp_path / "list.csv").read_text() == suspect_table(
        [*suspects(made.run, "cat"), *suspects(made.run, "dog")]
    ).decode()
    assert [row["path"] for row in rows if row["class"] == "cat"] == [f"cat/{i}.png" for i in (4, 3, 0, 1, 2)]
    for wrong in (("--drop-suspects", "1.5"), ("--drop-suspects", "0")):
        code, _, err = diffsel("select", made.run.path, "--ipc", 1, "--out", tmp_path / "set", "-q", *wrong)
        assert code == 2
        assert "drop_suspects" in err


def test_wrong_digits_have_lower_statistics_than_right_ones(tmp_path: Path) -> None:
    """The embedded checkpoint on held-out digits: half of the files lie in a wrong class."""
    for label, name in ((1, "one"), (7, "seven")):
        for i in range(6):
            given = name if i % 2 else {"one": "seven", "seven": "one"}[name]
            (tmp_path / "data" / given).mkdir(parents=True, exist_ok=True)
            Image.fromarray(scenes.compose("test", label, i).pixels).save(tmp_path / "data" / given / f"{name}-{i}.png")
    session = start(str(tmp_path / "data"), tmp_path / "run", demo_settings(draws=6))
    method.score(session)
    found = [each for label in ("one", "seven") for each in suspects(session.run, label)]
    right = [each.statistic for each in found if each.path.split("/")[1].startswith(each.label)]
    wrong = [each.statistic for each in found if not each.path.split("/")[1].startswith(each.label)]
    assert np.mean([r > w for r in right for w in wrong]) > 0.7
