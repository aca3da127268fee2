"""What a run says of every image: against the boxes, maps and picks that it was made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import TINY, draw, small_values

from diffsel import method
from diffsel.runs.run import Run, open_run
from diffsel.sets.scores import COLUMNS, Scores, best_of_rows
from diffsel.settings.errors import StoreError
from diffsel.settings.settings import resolve


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two classes with a copy, a web page and a cut-off image, with two patches an image, and a set in it."""
    place = tmp_path_factory.mktemp("scores")
    for number, name in enumerate(("dog", "cat")):
        for i in range(6):
            draw(place / "data" / name / f"{i}.png", 100 * number + i, 64, 80)
    shutil.copy(place / "data/cat/3.png", place / "data/cat/copy.png")
    (place / "data/cat/page.png").write_bytes(b"<html>")
    (place / "data/dog/cut.png").write_bytes((place / "data/dog/0.png").read_bytes()[:-100])
    values = {**small_values(), "assembly": {"size": 32, "factor": 1}}
    values["patches"] = {"patch_size": 32, "stride": 4, "per_image": 2}
    method.distill(str(place / "data"), place / "run", {2: place / "run" / "ipc2"}, resolve(values))
    return place / "run"


@pytest.fixture
def run(made: Path) -> Run:
    return open_run(made)


def lines(scores: Scores) -> dict[str, dict]:
    return {line["path"]: line for table in scores for line in table.to_pylist()}


def test_every_image_is_one_line_and_says_why_it_has_no_score(run: Run) -> None:
    found = lines(Scores(run, 2))
    assert len(found) == 15
    assert {path: line["passed_over"] for path, line in found.items() if line["passed_over"]}.keys() == {
        "cat/page.png",
        "dog/cut.png",
    }
    assert all((line["score"] is None) == (line["passed_over"] is not None) for line in found.values())
    assert {line["label"] for line in found.values() if line["class"] == "dog"} == {1}  # classes in the run's order: cat, dog
    assert [found["cat/copy.png"][name] for name in ("cluster", "place")] == [None, None]  # selection takes the first alone


def test_scores_and_boxes_are_those_of_the_best_patches(run: Run) -> None:
    found = lines(Scores(run, 2, vectors=True))
    for unit in run.units:
        patches = run.patches(unit)
        ranks = run.ranks(unit, patches)
        for row in {*patches["row"].tolist()}:
            own = np.flatnonzero(patches["row"] == row)
            best = own[ranks[own].argmax()]
            line = found[run.data.rows[row].path]
            assert (line["score"], line["box"]) == (ranks[best], patches["box"][best].tolist())
            assert np.array_equal(line["vector"], patches["vector"][best])
            top, left, height, width = line["box"]  # images of 64 x 80, shortest side 64 already
            assert line["region"] == [left / 64, top / 80, width / 64, height / 80]
        scored = [line for line in found.values() if line["class"] == unit.label and line["score"] is not None]
        assert [line["rank"] for line in sorted(scored, key=lambda line: -line["score"])] == sorted(x["rank"] for x in scored)


def test_clusters_are_those_of_the_set(run: Run, made: Path) -> None:
    from diffsel.sets.opening import read_set

    found = lines(Scores(run, 2))
    tiles = [tile for picture in read_set(made / "ipc2").pictures for tile in picture.tiles]
    same = [tile for tile in tiles if found[tile["source"]]["box"] == tile["box"]]
    assert len(same) >= 2
    for tile in same:
        line = found[tile["source"]]
        assert [line[name] for name in ("cluster", "place", "distance")] == [tile[n] for n in ("cluster", "place", "distance")]


def test_nats_are_the_mean_of_minus_d_over_half_the_window_of_log_snr(run: Run) -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    window = np.diff(np.log(alphas / (1 - alphas))[[700, 100]])[0]
    tensors = {}
    for unit in run.units:
        tensors |= run.maps(unit)[0]
    for line in lines(Scores(run, 2)).values():
        if line["row"] is not None and line["score"] is not None:
            d = tensors[f"{line['row']}.differential"][0].astype(np.float64)
            assert line["statistic"] == pytest.approx(-d.mean())
            assert line["nats"] == pytest.approx(-d.mean() * 4 * 8 * 10 * window / 2, rel=1e-4)


def test_another_model_gives_no_nats_and_a_run_without_vectors_says_what_to_do(run: Run, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model/scheduler/scheduler_config.json").write_text('{"beta_start": 0.1, "beta_end": 0.2}')
    other = run.settings.model.model_copy(update={"model": str(tmp_path / "model")})
    earlier = {key: value for key, value in run.record.items() if key != "unit"}  # which did not say the unit itself
    assert Run(run.path, earlier, run.settings, run.classes, run.data).nats == run.nats
    assert Run(run.path, earlier, run.settings.model_copy(update={"model": other}), run.classes, run.data).nats is None
    larger = run.settings.model_copy(update={"patches": run.settings.patches.model_copy(update={"patch_size": 48})})
    with pytest.raises(StoreError, match="run `diffsel embed`"):
        list(Scores(open_run(run.path, larger), 2))


def test_the_first_of_equal_patches_is_the_best() -> None:
    rows, scores = np.array([4, 4, 7, 9, 9]), np.array([1.0, 2.0, 2.0, 0.5, 0.5])
    assert best_of_rows(rows, scores).tolist() == [1, 2, 3]
    assert set(pa.schema([(n, k) for n, (k, _) in COLUMNS.items()]).names) >= {"path", "score", "nats", "box", "statistic"}
