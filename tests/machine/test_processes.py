"""Numbers that are logged while they come, what a pass will cost, and processes that help."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_method import distill, with_

from diffsel import method
from diffsel.machine.processes import Workers
from diffsel.runs.session import resume, start
from diffsel.scoring.diffusion import Diffusion
from diffsel.settings.errors import StoreError


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


# ---- helpers ---------------------------------------------------------------------------------------------------------
