"""Numbers that are logged while they come, what a pass will cost, and processes that help."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import psutil
import pytest
import torch
from conftest import draw, forks, until
from test_method import distill, with_

from diffsel import method
from diffsel.data.images import count_images
from diffsel.machine.helpers import helped
from diffsel.machine.processes import Workers
from diffsel.runs.forecast import forecast
from diffsel.runs.session import resume, start
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import open_scorer
from diffsel.settings.errors import StoreError
from diffsel.settings.settings import Settings


def test_speed_is_logged_by_the_tracker_that_is_set(folder, tmp_path, small) -> None:
    pytest.importorskip("tensorboardX")
    distill(folder(cat=4, dog=4), tmp_path / "run", with_(small, compute={"tracker": "tensorboard"}))
    blob = b"".join(file.read_bytes() for file in (tmp_path / "run" / "logs").rglob("*tfevents*"))
    assert b"images_scored_per_second" in blob
    assert b"patches_embedded" in blob


def test_without_a_tracker_nothing_is_logged(folder, tmp_path, small) -> None:
    distill(folder(cat=4), tmp_path / "run", small)
    assert not (tmp_path / "run" / "logs").exists()


def test_a_tracker_that_is_not_installed_is_told_before_any_work(folder, tmp_path: Path, small, monkeypatch) -> None:
    source, values = folder(cat=4), with_(small, compute={"tracker": "wandb"})
    start(str(source), tmp_path / "run", small)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    monkeypatch.setattr("diffsel.runs.session.open_data", lambda *_: pytest.fail("images were read"))
    for begin in (
        lambda: start(str(source), tmp_path / "new", values),
        lambda: resume(tmp_path / "run", values),
        lambda: Workers().tracker("wandb", tmp_path, {}),
    ):
        with pytest.raises(StoreError, match=r"compute.tracker = 'wandb': pip install wandb"):
            begin()
    assert not (tmp_path / "new").exists()


def test_a_tracker_that_does_not_open_is_told_before_the_first_unit(folder, tmp_path: Path, small, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreError("nobody is logged in")

    session = start(str(folder(cat=4)), tmp_path / "run", small)
    monkeypatch.setattr(Workers, "tracker", refuse)
    monkeypatch.setattr(Diffusion, "predict_noise", lambda *_: pytest.fail("a network ran"))
    with pytest.raises(StoreError, match="nobody is logged in"):
        method.score(session)


def test_a_plan_counts_what_the_pass_will_do(folder, tmp_path, small: Settings) -> None:
    """Forwards, bytes and classes as the pass then has them; FLOP as one image has them, times images."""
    source = folder(cat=5, dog=3)
    scorer = open_scorer(small)
    told = forecast(str(source), small, scorer)
    session = distill(source, tmp_path / "run", small)
    assert (told.classes, told.images) == (2, 8)
    assert told.forwards == session.counts["U-Net forwards"]
    tensors = session.run.maps(session.run.units[0])[0]
    assert told.bytes * 5 // 8 == sum(value.nbytes for value in tensors.values())
    half = forecast(str(source), with_(small, data={"images_per_class": 2}), scorer)
    assert half.images == 4
    assert half.flop == pytest.approx(told.flop / 2)
    assert told.seconds > 0
    assert told.rate > 0
    more = forecast(str(source), with_(small, scoring={"adaptive_draws": 12}), scorer)
    assert (more.forwards, more.most_forwards) == (told.forwards, 4 * told.forwards)
    assert "adaptive" in str(more)


def test_the_plan_counts_what_fills_up_the_batches(folder, tmp_path, small, monkeypatch) -> None:
    """Photographs come in many sizes; the samples that really run are those of the plan."""
    source = folder(cat=3)
    for i, size in enumerate([(96, 64), (96, 64), (64, 96), (128, 64)]):
        draw(source / "cat" / f"wide{i}.png", i, *size)
    values = with_(small, compute={"batch_size": 32})
    told, run = forecast(str(source), values, open_scorer(values)), []
    original = Diffusion.predict_noise

    def predict(self, noisy, *rest):
        run.append(len(noisy))
        return original(self, noisy, *rest)

    monkeypatch.setattr(Diffusion, "predict_noise", predict)
    method.score(start(str(source), tmp_path / "run", values))
    assert (told.forwards, told.filled) == (7 * 3 * 2, 4 * 32) == (7 * 3 * 2, sum(run))
    assert "42 (128 with filling of batches)" in str(told)


def test_images_are_counted_without_being_read(folder, small) -> None:
    source = folder(cat=5, dog=3)
    (source / "cat" / "0.png").write_bytes(b"not looked at")
    assert count_images(str(source), small.data) == {"cat": 5, "dog": 3}
    assert count_images(str(source), small.data.model_copy(update={"images_per_class": 4})) == {"cat": 4, "dog": 3}


# ---- helpers ---------------------------------------------------------------------------------------------------------

ORPHAN = """
import sys, time
from pathlib import Path
from diffsel.machine.helpers import helped

def job():
    Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
    time.sleep(600)

with helped(job, 1):
    time.sleep(600)
"""


@forks
def test_helpers_have_one_thread_and_end_with_the_block(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def job() -> None:
        (tmp_path / str(os.getpid())).write_text(str(torch.get_num_threads()))

    try:
        with helped(job, 2):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    said = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert set(said.values()) == {"1"}
    assert len(said) == 2
    assert str(os.getpid()) not in said
    with pytest.raises(KeyError), helped(lambda: time.sleep(600), 1):
        raise KeyError
    assert not [child for child in multiprocessing.active_children() if isinstance(child, ForkProcess)]


@forks
def test_helpers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", ORPHAN, str(said)])
    try:
        until(lambda: said.exists() and said.read_text())
        helper = psutil.Process(int(said.read_text()))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not runs(helper))


def runs(process: psutil.Process) -> bool:
    """A zombie, which whoever adopted it has not asked about, does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@forks
def test_no_memory_for_a_helper_means_fewer_helpers(tmp_path: Path, monkeypatch) -> None:
    real, begun = ForkProcess.start, []

    def start(self) -> None:
        begun.append(self)
        if len(begun) == 2:
            raise OSError("Cannot allocate memory")
        real(self)

    monkeypatch.setattr(ForkProcess, "start", start)
    with helped(lambda: (tmp_path / str(os.getpid())).touch(), 3):
        pass
    assert len(list(tmp_path.iterdir())) == 1
