"""Students: the same batches whatever the labels come from, reproducible, honest statistics, one JSON each."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import forks, until
from students import CPU, QUICK, Trusting, cell_of
from tqdm import tqdm

from diffsel.data.images import open_data
from diffsel.evaluation import cells as experiment
from diffsel.evaluation import students as evaluation
from diffsel.evaluation.bench import Bench
from diffsel.evaluation.cells import gather, make_cell, result_file, run_cells, students_at_once
from diffsel.evaluation.protocols import resolve_recipe
from diffsel.evaluation.results import line_of
from diffsel.evaluation.storing import write_labels
from diffsel.evaluation.teachers import load_teacher
from diffsel.machine.device import Machine
from diffsel.sets.opening import open_set
from diffsel.settings.errors import ConfigError, DataError, StoreError
from diffsel.settings.sections import DataSettings
from diffsel.settings.training import ProtocolSettings

# ---- batches and labels ----------------------------------------------------------------------------------------------


# ---- students --------------------------------------------------------------------------------------------------------


def test_results_are_written_once_and_never_mixed(world, tmp_path: Path) -> None:
    bench = Trusting(CPU)
    cell = cell_of(world, bench)
    run_cells([cell], range(2), tmp_path / "r", bench)
    files = sorted((tmp_path / "r").rglob("*.json"))
    assert [file.name for file in files] == ["seed-0.json", "seed-1.json"]
    before = {file: file.stat().st_mtime_ns for file in files}
    run_cells([cell], range(2), tmp_path / "r", bench)
    assert before == {file: file.stat().st_mtime_ns for file in files}
    other = cell_of(world, bench, QUICK.model_copy(update={"temperature": 4.0}))
    assert result_file(tmp_path, other, 0, CPU) != result_file(tmp_path, cell, 0, CPU)
    assert result_file(tmp_path, cell, 0, Machine(CPU.device, "bf16")) != result_file(tmp_path, cell, 0, CPU)
    shown = cell_of(world, bench, QUICK.model_copy(update={"report": "best"}))  # only another column of the same results
    assert result_file(tmp_path, shown, 0, CPU) == result_file(tmp_path, cell, 0, CPU)
    named = cell_of(world, bench, QUICK.model_copy(update={"name": "../a b/c"}))
    assert named.identity == cell.identity
    assert result_file(tmp_path, named, 0, CPU).parent.parent == tmp_path
    (line,) = gather([cell], range(2), tmp_path / "r", CPU)
    values = [json.loads(file.read_text())["last"]["top1"] for file in files]
    assert line.top1.mean == pytest.approx(np.mean(values))
    assert line.last == line.top1  # rded-fixed reports the last epoch
    with pytest.raises(StoreError, match=r"seed-2\.json"):
        gather([cell], range(3), tmp_path / "r", CPU)


def test_a_line_end_makes_no_other_labels(world, tmp_path: Path) -> None:
    bench = Trusting(CPU)
    cell = cell_of(world, bench)
    write_labels(labels := tmp_path / "l", bench.pictures(cell.train), cell.protocol, cell.recipe, 0, cell.teacher, 1)
    before, record = replace(cell, labels=labels).identity, labels / "labels.yaml"
    record.write_bytes(record.read_bytes().rstrip(b"\n"))
    assert replace(cell, labels=labels).identity == before
    record.write_bytes(record.read_bytes().replace(b"seed: 0", b"seed: 1"))
    assert replace(cell, labels=labels).identity != before


def test_cells_of_the_same_images_are_done_together(world, tmp_path: Path) -> None:
    """They share a result, so that none is told done before it is there."""
    bench, told = Trusting(CPU), []
    cells = [cell_of(world, bench), cell_of(world, bench)]
    run_cells(cells, range(2), tmp_path, bench, lambda cell: told.append((id(cell), len(list(tmp_path.rglob("*.json"))))))
    assert told == [(id(cell), 2) for cell in cells]


def test_one_bar_counts_all_students_whoever_trains_them(world, tmp_path: Path) -> None:
    bars: list = []

    def progress(*given, **words):
        bars.append(tqdm(*given, **words, file=io.StringIO()))
        return bars[-1]

    bench = Trusting(CPU, progress=progress)
    cell, other = cell_of(world, bench), cell_of(world, bench, QUICK.model_copy(update={"temperature": 4.0}))
    run_cells([cell], range(1), tmp_path, Trusting(CPU))
    late, real = result_file(tmp_path, other, 1, CPU), experiment.train_one

    def train(*given):  # meanwhile another process ends with the last one
        late.parent.mkdir(exist_ok=True)
        late.write_text(json.dumps(real(other, 1, bench)))
        return real(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "train_one", train)
        run_cells([cell, other], range(2), tmp_path, bench)
    (bar,) = (bar for bar in bars if bar.desc == "students")
    assert (bar.initial, bar.n, bar.total) == (1, 4, 4)


def timeless(folder: Path) -> dict[str, dict]:
    """Results without what a clock says."""
    return {str(file.relative_to(folder)): {**json.loads(file.read_text()), "seconds": 0} for file in folder.rglob("*.json")}


@forks
def test_students_trained_at_the_same_time_are_those_trained_in_turn(world, tmp_path: Path, monkeypatch) -> None:
    """Two processes at work, each begins with a student of its own before either may go on."""
    real, here = experiment.train_one, tmp_path / "processes"
    here.mkdir()

    def train(cell, seed, bench):
        (here / str(os.getpid())).touch()
        until(lambda: len(list(here.iterdir())) == 2)
        return real(cell, seed, bench)

    bench, two = Trusting(replace(CPU, at_once=1)), Trusting(replace(CPU, at_once=2))
    cells = [cell_of(world, bench), cell_of(world, bench, QUICK.model_copy(update={"temperature": 4.0}))]
    run_cells(cells, range(2), tmp_path / "turn", bench)
    monkeypatch.setattr(experiment, "train_one", train)
    run_cells(cells, range(2), tmp_path / "time", two)
    assert len(list(here.iterdir())) == 2
    assert timeless(tmp_path / "turn") == timeless(tmp_path / "time")
    assert len(timeless(tmp_path / "time")) == 4


@forks
def test_what_a_helper_cannot_do_is_done_here(world, tmp_path: Path, monkeypatch, capfd) -> None:
    real, me, failed = experiment.train_one, os.getpid(), tmp_path / "failed"

    def train(cell, seed, bench):
        if os.getpid() != me:
            failed.touch()
            raise RuntimeError("no memory")
        until(failed.exists)
        return real(cell, seed, bench)

    monkeypatch.setattr(experiment, "train_one", train)
    bench = Trusting(replace(CPU, at_once=2))
    run_cells([cell_of(world, bench)], range(4), tmp_path / "r", bench)
    assert len(timeless(tmp_path / "r")) == 4
    assert "a helping process failed and is missed: RuntimeError: no memory" in capfd.readouterr().err


@forks
def test_helpers_end_with_an_error_here_and_give_their_students_back(world, tmp_path: Path, monkeypatch) -> None:
    me, busy = os.getpid(), tmp_path / "busy"

    def train(cell, seed, bench):
        if os.getpid() != me:
            busy.touch()
            time.sleep(600)
        until(busy.exists)
        raise RuntimeError("no memory")

    monkeypatch.setattr(experiment, "train_one", train)
    bench = Trusting(replace(CPU, at_once=2))
    with pytest.raises(RuntimeError, match="no memory"):
        run_cells([cell_of(world, bench)], range(4), tmp_path / "r", bench)
    assert not [child for child in multiprocessing.active_children() if isinstance(child, ForkProcess)]
    assert not [path for path in (tmp_path / "r").rglob("*") if path.is_file()]  # no claim either


def test_as_many_students_at_a_time_as_there_are_threads_on_a_cpu(monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [students_at_once(CPU, n) for n in (1, 7, 8, 20)] == [1, 1, 8, 8]  # few have all threads each, in turn
    assert [students_at_once(replace(CPU, at_once=2), n) for n in (1, 5)] == [1, 2]
    assert students_at_once(replace(CPU, compile=True), 20) == 1
    assert students_at_once(Machine(torch.device("cuda")), 20) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # whose driver does not survive a fork
    assert students_at_once(CPU, 20) == 1


def test_a_student_that_diverges_is_on_record_and_the_others_go_on(world, tmp_path: Path, monkeypatch) -> None:
    real = evaluation.batch_loss

    def loss(output, batch, temperature, labels):
        return real(output, batch, temperature, labels) * (math.nan if torch.initial_seed() == 1 else 1)

    monkeypatch.setattr(evaluation, "batch_loss", loss)
    bench = Trusting(CPU)
    cell = cell_of(world, bench)
    run_cells([cell], range(3), tmp_path, bench)
    (line,) = gather([cell], range(3), tmp_path, CPU)
    assert line.top1.n == 2
    assert line.failed == {1: "the loss is not a number in epoch 0"}


def test_what_cannot_work_is_refused_before_training(world, folder, tmp_path: Path) -> None:
    found, val, teacher = world
    bench = Bench(CPU)
    with pytest.raises(ConfigError, match="unknown network 'convnext'"):
        make_cell("x", found, val, "convnext", QUICK, teacher, bench)
    with pytest.raises(ConfigError, match="conv5w8 halves images 5 times"):
        make_cell("x", found, val, "conv5w8", QUICK, teacher, bench)
    with pytest.raises(DataError, match="3 images in its smallest class, so ipc 4 cannot be evaluated"):
        make_cell("x", found, val, "conv3w8", QUICK, teacher, bench, ipc=4)
    with pytest.raises(ConfigError, match="needs a teacher"):
        make_cell("x", found, val, "conv3w8", QUICK, None, bench)
    other = open_data(str(folder("other", (16, 16), ant=1, cat=1)), DataSettings(), 0)
    with pytest.raises(DataError, match="lacks 1 of the 2 classes: 'bee'; it has 'ant', 'cat'"):
        make_cell("x", found, other, "conv3w8", QUICK, teacher, bench)
    with pytest.raises(DataError, match="no such distilled set"):
        open_set(tmp_path / "nowhere")
    (tmp_path / "set" / "ant" / "9.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="the set is damaged"):
        open_set(found.path)


def test_epochs_without_a_step_and_batches_of_one_are_refused(world) -> None:
    with pytest.raises(ConfigError, match=r"accumulate = 3, but an epoch of 6 images has only 2 batches of 4"):
        cell_of(world, Bench(CPU), QUICK.model_copy(update={"accumulate": 3}))
    few = QUICK.model_copy(update={"accumulate": 9, "batch_size": None})  # 10 // 9
    with pytest.raises(ConfigError, match=r"accumulate = 9 make batches of 1 image"):
        cell_of(world, Bench(CPU), few)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        ProtocolSettings(batch_size=1)


def test_a_teacher_that_slipped_stops_before_it_labels(world, folder, tmp_path: Path) -> None:
    found, _, teacher = world
    val = open_data(str(folder("many", (16, 16), ant=30, bee=30)), DataSettings(), 0)
    bench = Bench(CPU)
    cell = make_cell("x", found, val, "conv3w8", QUICK, teacher, bench)
    with pytest.raises(DataError, match="on 60 validation images, no better than chance for 2 classes"):
        run_cells([cell], range(1), tmp_path / "r", bench)
    assert not (tmp_path / "r").exists()


# ---- pictures --------------------------------------------------------------------------------------------------------


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_load_teacher_keeps_the_order_of_the_classes_asked_for(world) -> None:
    found, _, teacher = world
    infos = found.album(None, 16).classes
    loaded = load_teacher(teacher, infos, 16, CPU.device)
    assert loaded.rows.tolist() == [0, 1]
    assert resolve_recipe(QUICK, classes=2, ipc=3, factor=2, size=16, student="conv3w8").crop_scale == (0.5, 1.0)


def test_a_set_made_from_validation_images_is_told(world) -> None:
    found, val, _ = world
    told: list[str] = []
    hard = QUICK.model_copy(update={"labels": "hard"})
    make_cell("x", found, val, "conv3w8", hard, None, Bench(CPU, tell=told.append))
    assert not told
    leaking = make_cell("x", found, found.data, "conv3w8", hard, None, Bench(CPU, tell=told.append))
    (note,) = told
    many = len(found.data.rows)
    assert note.startswith(f"note: {many} of the images that {found.name} was made from are validation images too:")
    assert make_cell("x", found, found.data, "conv3w8", hard, None, Bench(CPU), ipc=1).leaked == many // found.ipc
    result = experiment.train_one(leaking, 0, Bench(CPU))
    assert line_of([result]).leaked == result["validation_images"]["of_the_set"] == many
