"""Accuracy against compute: shares of the epochs, what sets cost to make and to keep, and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffsel import method
from diffsel.evaluation.results import Line
from diffsel.evaluation.tasks import lengths
from diffsel.runs.session import start
from diffsel.sets.opening import read_set
from diffsel.settings.errors import ConfigError
from diffsel.settings.training import ProtocolSettings
from diffsel.studies.budgets import bytes_of, construction, read_budgets


def test_budgets_are_shares_of_the_epochs() -> None:
    assert read_budgets("1, 0.25,0.5,1") == (0.25, 0.5, 1)
    assert [p.epochs for p in lengths(ProtocolSettings(epochs=10), (0.01, 0.02, 0.25, 1, 2))] == [1, 2, 10, 20]
    for text in ("", "a", "0", "0.5,-1", "nan"):
        with pytest.raises(ConfigError, match="expected shares of the protocol's epochs above 0"):
            read_budgets(text)


def line(labels: str, epochs: int = 3) -> Line:
    told = {"images": 6, "classes": ["a", "b"], "protocol": {"epochs": epochs, "resolved": {"factor": 1}}}
    return Line("set", "t", labels, "conv3", "p", "fp32", None, None, None, None, {}, 0, told)


def test_bytes_are_counted_as_they_are_stored() -> None:
    """Float16 logits; online an epoch also keeps order, partner, crop, strips (8 bytes each) and flip of every image."""
    assert bytes_of(line("hard"), 16) == (6 * 3 * 16 * 16, 0)
    assert bytes_of(line("fixed"), 16)[1] == 6 * 2 * 2
    assert bytes_of(line("online"), 16)[1] == bytes_of(line("stored"), 16)[1] == 3 * 6 * (2 * 2 + 8 * (1 + 1 + 4 + 1 + 1) + 1)


@pytest.mark.parametrize("where", ["run/ipc1", "elsewhere/ipc1"])
def test_a_set_knows_what_its_pass_took_where_that_is_at_hand(where: str, folder, small, tmp_path: Path) -> None:
    session = start(str(folder("data", (64, 64), cat=4, dog=4)), tmp_path / "run", small)
    method.score(session)
    method.embed(session)
    method.select(session, 1, tmp_path / where / "set-0")
    forwards, clock = construction(read_set(tmp_path / where / "set-0"))
    draws = small.scoring.draws
    assert (forwards, clock.endswith("s")) == ((f"{8 * 2 * draws}", True) if where.startswith("run") else ("-", False))


def test_the_table_and_the_picture_show_every_length(diffsel, colours, tmp_path: Path) -> None:
    colours(train=6, val=4)
    small = ["--factor", 1, "--image-size", 16, "--patch-size", 0, "--size", 16, "-q"]
    assert diffsel("select", tmp_path / "train", "--method", "random", "--ipc", 2, *small, "--out", tmp_path / "set")[0] == 0
    words = ["--val", tmp_path / "val", "--student", "conv3w8", "--epochs", 4, "--students", 2, "--config", "hard", "-q"]
    code, out, err = diffsel("evaluate", tmp_path / "set", *words, "--budgets", "0.5,1")
    assert code == 0, err
    rows = [row.split("  ") for row in out.splitlines() if row.startswith("set ") and "conv3w8" in row]
    seen = [[part.strip() for part in row if part.strip()][-5:] for row in rows]
    assert seen == [["8", "0", "0 s", "3.1 kB", "0 B"], ["16", "0", "0 s", "3.1 kB", "0 B"]]
    with Image.open(tmp_path / "set-results" / "budgets.png") as picture:
        assert picture.width > 300
    assert f"picture: {tmp_path / 'set-results' / 'budgets.png'}" in out
    code, out, _ = diffsel("evaluate", tmp_path / "set", *words)
    assert (code, "forwards" in out) == (0, False)
    assert len(list((tmp_path / "set-results").rglob("seed-0.json"))) == 2  # the whole length was there
    code, _, err = diffsel("evaluate", tmp_path / "set", *words, "--budgets", "0")
    assert (code, "--budgets 0: expected shares" in err) == (2, True)
