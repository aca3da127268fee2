"""The embedded data and checkpoint: reproducible, disjoint, within their size, and good enough to find the digits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffsel import method
from diffsel.report import text as report
from diffsel.runs.session import start
from diffsel.scoring.folder import locate
from diffsel.settings.errors import SettingsDiffer
from diffsel.settings.sections import ModelSettings
from diffsel.studies import demo, scenes
from diffsel.studies.demo import compose_data, demo_settings, held, hit_rates, run_demo


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_scenes_depend_on_nothing_but_their_index() -> None:
    first, again = scenes.compose("train", 3, 7, seed=5), scenes.compose("train", 3, 7, seed=5)
    assert np.array_equal(first.pixels, again.pixels)
    assert first.boxes == again.boxes
    others = [scenes.compose("train", 3, 8, seed=5), scenes.compose("test", 3, 7, seed=5), scenes.compose("train", 3, 7)]
    assert all(not np.array_equal(first.pixels, other.pixels) for other in others)


def test_train_and_test_digits_are_disjoint_and_complete() -> None:
    train, test = ({digit.tobytes() for group in scenes.digits(s) for digit in group} for s in ("train", "test"))  # type: ignore[arg-type]
    assert not train & test
    assert sum(len(g) for s in ("train", "test") for g in scenes.digits(s)) == 1797  # type: ignore[arg-type]


@pytest.mark.parametrize("objects", [1, 2])
def test_boxes_are_tight_and_inside_and_apart(objects: int) -> None:
    for index in range(30):
        scene = scenes.compose("train", index % 10, index, objects)
        assert len(set(scene.labels)) == len(scene.boxes) == objects
        for top, left, height, width in scene.boxes:
            assert top >= 0
            assert left >= 0
            assert top + height <= scenes.SIZE
            assert left + width <= scenes.SIZE
        if objects == 2:
            assert held(scene.boxes[0], scene.boxes[1]) == 0


def test_held_is_the_share_of_the_box() -> None:
    assert held((10, 10, 10, 20), (0, 0, 64, 64)) == 1
    assert held((10, 10, 10, 20), (15, 10, 32, 32)) == 0.5
    assert held((10, 10, 10, 20), (15, 20, 32, 32)) == 0.25
    assert held((10, 10, 10, 20), (30, 30, 32, 32)) == 0


def test_the_checkpoint_is_whole_and_small() -> None:
    folder = locate(ModelSettings(model="demo"))
    assert sum(p.stat().st_size for p in folder.path.rglob("*") if p.is_file()) <= 12_000_000
    assert not [p for p in folder.path.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_the_data_is_written_once_and_refuses_another_seed(tmp_path: Path) -> None:
    truth = compose_data(tmp_path, 0, 2)
    rows = list(csv.DictReader((tmp_path / "truth.csv").read_text().splitlines()))
    assert {row["path"] for row in rows} == set(truth)
    assert {size(tmp_path / path) for path in truth} == {(64, 64)}
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == sorted(scenes.NAMES)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    assert compose_data(tmp_path, 0, 2) == truth
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    with pytest.raises(SettingsDiffer, match="seed: stored 0, asked 1"):
        compose_data(tmp_path, 1, 2)


def test_the_best_patches_hold_the_digits_far_more_often_than_random_ones(tmp_path: Path) -> None:
    truth = compose_data(tmp_path, 3, 6)
    session = start(str(tmp_path / "train"), tmp_path / "run", demo_settings(3))
    method.score(session)
    rates = hit_rates(session.run, truth, "train")
    assert rates["random"] < 0.3
    assert rates["diffsel"] >= 0.9


def test_the_demo_leaves_all_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", {1: 2, 10: 1})
    monkeypatch.setattr(demo, "STUDENTS", 2)
    text = run_demo(tmp_path, seed=1, per_class=40, settings=demo_settings(1, draws=3))
    for name in ("train", "test", "truth.csv", "run", "ipc1", "ipc10", "summary.json", "demo.png"):
        assert (tmp_path / name).exists(), name
    summary = json.loads((tmp_path / "summary.json").read_text())
    for key in ("hit_rate", "hit_rate_two_objects"):
        assert set(summary[key]) == {"diffsel", "differential", "gap", "random", "centre"}
        assert all(0 <= value <= 1 for value in summary[key].values())
    assert summary["forwards"] == 400 * 3 * 2
    assert summary["seconds"] > 0
    assert len(list((tmp_path / "ipc10").glob("*/*.png"))) == 100
    assert "one digit" in text
    assert set(summary["accuracy"]) == {"1", "10"}
    for accuracy in summary["accuracy"].values():
        assert set(accuracy) == {"diffsel", "rded", "random"}
        assert all(set(figures) == {"mean", "std", "ci95"} for figures in accuracy.values())
        assert all(0 <= figures["mean"] <= 100 for figures in accuracy.values())
    for name in ("rded-ipc1", "random-ipc10/set-2"):
        assert len(list((tmp_path / name).glob("*/*.png"))) == (10 if name.endswith("-ipc1") else 100)
    assert len(list((tmp_path / "results").rglob("seed-*.json"))) == 2 * (2 * 2 + 3 * 2)
    assert "random" in text.split("Accuracy on the test scenes")[1]
    assert size(tmp_path / "demo.png")[0] > 600


def test_tables_align() -> None:
    lines = report.table([["a", 1.5], ["long name", 22.25]], ["who", "value"]).splitlines()
    assert lines[0] == "who        value"
    assert lines[2] == "a            1.5"
    assert lines[3] == "long name  22.25"
