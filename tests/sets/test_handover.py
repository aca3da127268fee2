"""Scores in the forms of other tools: read back by plain libraries, and by the tools themselves where they are installed."""

from __future__ import annotations

import base64
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import draw, small_values

from diffsel import method
from diffsel.runs.run import Run, open_run
from diffsel.sets import handover
from diffsel.sets.scores import Scores
from diffsel.settings.errors import StoreError
from diffsel.settings.settings import resolve


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    place = tmp_path_factory.mktemp("handover")
    for number, name in enumerate(("zebra", "ant")):
        for i in range(8):
            draw(place / "data" / name / f"{i}.png", 100 * number + i)
    (place / "data/ant/9.png").write_bytes(b"")
    method.distill(str(place / "data"), place / "run", {1: place / "run" / "ipc1"}, resolve(small_values()))
    return open_run(place / "run")


@pytest.fixture
def lines(run: Run) -> list[dict]:
    return [line for table in Scores(run, 4) for line in table.to_pylist()]


def test_parquet_holds_every_line_in_few_groups(run: Run, lines, tmp_path: Path, monkeypatch) -> None:
    assert handover.export_scores(Scores(run, 4), "parquet", tmp_path / "out")
    assert pq.read_table(tmp_path / "out/scores.parquet").to_pylist() == lines
    monkeypatch.setattr(handover, "GROUP", 1)
    assert handover.export_scores(Scores(run, 4), "parquet", tmp_path / "small")
    assert pq.ParquetFile(tmp_path / "small/scores.parquet").num_row_groups > 1
    assert pq.read_table(tmp_path / "small/scores.parquet").to_pylist() == lines


@pytest.mark.parametrize("form", handover.FORMS)
def test_every_form_has_a_card_the_same_bytes_and_is_not_made_twice(run: Run, tmp_path: Path, form) -> None:
    scores = Scores(run, 4, vectors=True)
    assert handover.export_scores(scores, form, tmp_path / "out")
    assert not handover.export_scores(scores, form, tmp_path / "out")
    assert handover.export_scores(scores, form, tmp_path / "again")
    files = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert all((tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)
    assert f"`{handover.LOADING[form]}`" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(StoreError, match="made with other settings"):
        handover.export_scores(Scores(run, 5, vectors=True), form, tmp_path / "out")


def test_datasets_shows_images_where_they_lie_with_class_names(run: Run, lines, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    handover.export_scores(Scores(run, 4), "datasets", tmp_path / "out")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.features["label"].names == ["ant", "zebra"]
    assert [table.features["label"].int2str(line) for line in table["label"]] == [line["class"] for line in lines]
    assert np.array_equal(np.asarray(table[0]["image"]), np.asarray(run.data.image(run.data.rows[0])))
    raw = table.cast_column("image", datasets.Image(decode=False))
    assert [Path(row["image"]["path"]).read_bytes() for row in raw] == [run.data.read(line["path"]) for line in lines]


def test_fiftyone_samples_hold_boxes_and_maps(run: Run, lines, tmp_path: Path) -> None:
    handover.export_scores(Scores(run, 4), "fiftyone", tmp_path / "out")
    samples = json.loads((tmp_path / "out/samples.json").read_text())["samples"]
    for sample, line in zip(samples, lines, strict=True):
        assert Path(sample["filepath"]).read_bytes() == run.data.read(line["path"])
        assert ("label raises the loss" in sample["tags"]) == (line["statistic"] is not None and line["statistic"] < 0)
        if line["row"] is not None:
            unit = next(unit for unit in run.units if line["row"] in {row.row for row in unit.rows})
            heat = np.load(io.BytesIO(zlib.decompress(base64.b64decode(sample["map"]["map"]))))
            assert np.allclose(heat, run.image_map(*run.maps(unit), run.data.rows[line["row"]]))
            assert sample["box"]["detections"][0]["bounding_box"] == line["region"]
    assert [sample["tags"] for sample in samples if "passed_over" in sample] == [["passed over"]]


@pytest.mark.skipif("FIFTYONE_DATABASE_URI" not in os.environ, reason="FiftyOne needs a MongoDB")
def test_fiftyone_itself_loads_them(run: Run, lines, tmp_path: Path) -> None:
    fiftyone = pytest.importorskip("fiftyone")
    handover.export_scores(Scores(run, 4), "fiftyone", tmp_path / "out")
    found = fiftyone.Dataset.from_dir(str(tmp_path / "out"), dataset_type=fiftyone.types.LegacyFiftyOneDataset)
    try:
        assert found.values("score") == [line["score"] for line in lines]
        assert found.values("label.label") == [line["class"] for line in lines]
        first = found.first()
        assert first["map"].map.shape == (8, 8)
        assert first["box"].detections[0].bounding_box == lines[0]["region"]
    finally:
        found.delete()


def test_cleanlab_gets_the_scored_images_and_their_vectors(run: Run, lines, tmp_path: Path) -> None:
    handover.export_scores(Scores(run, 4, vectors=True), "cleanlab", tmp_path / "out")
    table, features = pq.read_table(tmp_path / "out/scores.parquet"), np.load(tmp_path / "out/features.npy")
    assert table["row"].to_pylist() == list(range(16))
    vectors = {
        row: v for unit in run.units for row, v in zip(run.patches(unit)["row"], run.patches(unit)["vector"], strict=True)
    }
    assert all(np.array_equal(vector, vectors[row]) for row, vector in enumerate(features))
    pytest.importorskip("cleanlab")
    issues = handover.open_datalab(tmp_path / "out").get_issues("raised_loss")
    told = [line["statistic"] for line in lines if line["statistic"] is not None]
    assert issues["is_raised_loss_issue"].tolist() == [value < 0 for value in told]
    assert issues["raised_loss_score"].to_numpy().argsort().tolist() == np.argsort(told).tolist()


def test_the_command_tells_forms_apart_and_writes_beside_the_run(diffsel, run: Run) -> None:
    beside = run.path.with_name("run-parquet")
    code, out, _ = diffsel("export", run.path, "--to", "parquet", "-q")
    assert (code, out) == (0, f"written: {beside}\n")
    assert pq.read_table(beside / "scores.parquet")["nats"].null_count == 1  # its model is here
    assert yaml.safe_load((beside / "export.yaml").read_text())["nats"]
    code, _, err = diffsel("export", run.path, "--to", "csv")
    assert (code, err) == (2, f"error: --to csv: {run.path} is a run, which can be parquet, datasets, fiftyone, cleanlab\n")
    code, _, err = diffsel("export", run.path / "ipc1", "--to", "parquet")
    assert (code, "is a set, which can be hf" in err) == (2, True)
