"""Two priors on the same images: one line each, and how far they agree."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import small_values
from families import saved

from diffsel.settings.settings import resolve
from diffsel.studies.priors import Prior, compare_priors, priors_table


def test_two_priors_are_compared_and_a_second_start_scores_nothing(
    folder: Callable[..., Path], tmp_path: Path, diffsel
) -> None:
    values = {**small_values(), "assembly": {"size": 32, "factor": 1}}
    del values["model"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    source, out = folder(tench=3, golden_retriever=3), tmp_path / "out"
    words = ("compare-priors", saved("sd"), saved("dit"), source, "--out", out, "--config", tmp_path / "small.yaml", "-q")
    code, told, err = diffsel(*words)
    assert (code, err) == (0, "")
    lines = told.splitlines()
    assert [line.split()[1] for line in lines if "tiny-" in line] == ["6", "6"]
    (every,) = [row for row in csv.DictReader((out / "agreement.csv").read_text().splitlines()) if row["class"] == "all"]
    assert every["priors"] == "0 and 1"
    assert -1 <= float(every["places"]) <= 1 and 0 <= float(every["boxes"]) <= 1  # noqa: PT018
    assert float(every["selection"]) in (0, 0.5, 1)
    assert (out / "0" / "ipc1" / "set.yaml").exists() and (out / "1" / "ipc1" / "set.yaml").exists()  # noqa: PT018
    code, again, _ = diffsel(*words)
    assert [line.split()[2] for line in again.splitlines() if "tiny-" in line] == ["-", "-"]
    assert diffsel(*words[:2], saved("sd"), *words[3:])[0] == 2


def test_a_prior_agrees_with_a_copy_of_itself(folder: Callable[..., Path], tmp_path: Path) -> None:
    twin = shutil.copytree(saved("sd3"), tmp_path / "twin")
    settings = resolve({**small_values(), "assembly": {"size": 32, "factor": 1}})
    both, rows = compare_priors([str(saved("sd3")), str(twin)], str(folder(cat=3, dog=3)), tmp_path / "out", settings, 1)
    assert (rows[0].boxes, rows[0].selection) == (1, 1)
    assert rows[0].places == pytest.approx(1)
    assert both[0].nats is not None
    assert both[0].nats == both[1].nats
    assert both[0].calibration == both[1].calibration


def test_what_is_not_known_is_a_dash() -> None:
    assert priors_table([Prior("a", 3, None, None, 1.0)]).splitlines()[-1].split() == ["a", "3", "-", "-", "1.00"]
