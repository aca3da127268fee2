"""What works with Stable Diffusion 1.5 works with every family: the whole way from images to a set, and its promises."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TWO_PROCESSES, draw, small_values
from families import NEW, saved

from diffsel import method
from diffsel.report.page import write_report
from diffsel.runs import prompts
from diffsel.runs.session import Session, resume, start
from diffsel.scoring.nats import stable_diffusion
from diffsel.sets.suspects import suspects
from diffsel.settings.errors import ConfigError, DataError
from diffsel.settings.settings import Settings, resolve

WINDOW = [stable_diffusion(0.1), stable_diffusion(0.7)]


def values(name: str, **sections: dict) -> dict:
    base = {**small_values(), "model": {"model": str(saved(name))}, "assembly": {"size": 32, "factor": 1}}
    return {key: {**base.get(key, {}), **sections.get(key, {})} for key in {**base, **sections}}


def settings(name: str, **sections: dict) -> Settings:
    return resolve(values(name, **sections))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that every prior knows, one picture of another shape."""
    place = tmp_path_factory.mktemp("families") / "data"
    for number, label in enumerate(("golden_retriever", "tench")):
        for i in range(3):
            draw(place / label / f"{i}.png", 10 * number + i, 88 if i == 2 else 64)
    return place


@pytest.fixture(scope="module", params=NEW)
def done(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Session]:
    """A family's name, and its finished run with a set."""
    run = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, method.make_sets(str(source), run, {2: run / "ipc2"}, settings(request.param))


def contents(run: Path) -> dict[str, bytes]:
    kinds = (".safetensors", ".png", ".jsonl", ".parquet")
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted(run.rglob("*")) if f.suffix in kinds}


def test_the_whole_way_and_what_was_left_open_is_recorded(done: tuple[str, Session]) -> None:
    name, session = done
    assert session.counts["images scored"] == 6
    assert len(list((session.run.path / "ipc2").rglob("*.png"))) == 4
    scoring = session.run.record["settings"]["scoring"]
    assert scoring["log_snr"] == pytest.approx(WINDOW)
    assert scoring["null_prompt"] == ""
    elements = (16 if name in ("sd3", "prx") else 4) / 64  # of a latent, a pixel
    assert session.run.nats == pytest.approx(elements * (WINDOW[0] - WINDOW[1]) / 2, rel=1e-5)
    assert scoring["prompts"] == (["{folder}"] if name == "dit" else ["An image of {label}."])
    for unit in session.run.units:
        tensors, _ = session.run.maps(unit)
        assert all(np.isfinite(tensor).all() for tensor in tensors.values())
        assert any(tensors[key].any() for key in tensors if key.endswith(".differential"))


def test_a_run_that_lost_files_is_made_again_byte_for_byte(done: tuple[str, Session], source: Path) -> None:
    name, session = done
    before = contents(session.run.path)
    for kind in ("maps", "features/*"):
        next(iter(sorted(session.run.path.glob(f"{kind}/*.safetensors")))).unlink()
    again = method.make_sets(str(source), session.run.path, {2: session.run.path / "ipc2"}, settings(name))
    assert again.counts["images scored"] == 3
    assert contents(session.run.path) == before
    assert resume(session.run.path, settings(name)).run.mark == session.run.mark  # settings that leave it open suit it


def test_draws_are_uniform_in_log_snr(done: tuple[str, Session], monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = done[1].scorer.model, []
    monkeypatch.setattr(model, "levels", model.levels)
    original = model.predict_noise
    monkeypatch.setattr(model, "predict_noise", lambda z, t, w: seen.extend(t.tolist()) or original(z, t, w))
    scorer = done[1].scorer
    from dataclasses import replace

    from diffsel.scoring.maps import score_images

    more = replace(scorer, settings=scorer.settings.model_copy(update={"draws": 48, "bins": 3}), batch_size=4)
    rows = done[1].data.rows[:1]
    dict(score_images(more, [(row.digest, done[1].data.pixels(row)) for row in rows], ["tench"]))
    found = np.sort([model.levels.log_snr(t / model.steps) for t in dict.fromkeys(seen)])
    assert len(found) == 48
    even = np.linspace(*WINDOW[::-1], 97)[1::2]  # one draw in each 48th of the window
    assert abs(found - even).max() < 1.6 * (WINDOW[0] - WINDOW[1]) / 48


def test_adaptive_draws_prompts_suspects_and_the_report(done: tuple[str, Session], source: Path, tmp_path: Path) -> None:
    name, session = done
    adaptive = start(str(source), tmp_path / "run", settings(name, scoring={"draws": 3, "adaptive_draws": 6}))
    method.score(adaptive)
    assert 6 * 3 * 2 <= adaptive.counts["U-Net forwards"] <= 6 * 6 * 2
    (other,) = ("{label}",) if name == "dit" else ("a photo of a {label}",)
    if name == "dit":  # by name or by folder: the same class
        with pytest.raises(ConfigError, match=r"says the same|no class 'a photo"):
            prompts.score(prompts.plan(session, ["a photo of a {label}"]))
    study = prompts.plan(resume(session.run.path, settings(name)), [other])
    prompts.score(study)
    assert [view.run.prompt("tench") for view in study.views()][1] == ("tench" if name == "dit" else "a photo of a tench")
    assert len(suspects(session.run, "tench")) == 3
    (page,) = write_report(session.run.path, tmp_path / "page.html")
    assert page.stat().st_size > 10_000


@pytest.mark.parametrize("name", NEW[3:])
def test_two_processes_write_the_same_bytes_as_one(name: str, source: Path, tmp_path: Path) -> None:
    one = method.make_sets(str(source), tmp_path / "one", {1: tmp_path / "one" / "ipc1"}, settings(name))
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(values(name)))
    words = ("distill", source, "--out", tmp_path / "two", "--ipc", 1, "--config", config, "-q")
    command = [sys.executable, "-m", *TWO_PROCESSES, "-m", "diffsel", *map(str, words)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=240, capture_output=True)
    assert contents(tmp_path / "two") == contents(one.run.path)


def test_classes_that_a_prior_lacks_are_refused_by_name(folder: Callable[..., Path], tmp_path: Path) -> None:
    data = folder(tench=2, unicorn=2, n02099601=2)
    with pytest.raises(ConfigError, match=r"has no class for 'unicorn' \(1 of 3\); name its classes in a column `prior`"):
        start(str(data), tmp_path / "run", settings("dit"))
    assert not (tmp_path / "run").exists()
    (data / "classes.yaml").write_text("tench: {prior: '0'}\nunicorn: {prior: goldfish}\nn02099601: {prior: n02099601}\n")
    session = start(str(data), tmp_path / "run", settings("dit"))
    assert session.settings.scoring.prompts == ("{prior}",)
    words = session.scorer.model.embed_prompts([info.prompt("{prior}") for info in session.run.classes])
    assert words.flatten().tolist() == [0, 1, 207]
    (data / "classes.yaml").write_text("tench: {prior: tench}\nunicorn: {prior: tench}\nn02099601: {prior: n02099601}\n")
    with pytest.raises(DataError, match="the classes 'tench' and 'unicorn' both match 0"):
        start(str(data), tmp_path / "run2", settings("dit"))
    with pytest.raises(ConfigError, match="has no class 'a photo of tench'"):
        start(str(data), tmp_path / "run3", settings("dit", scoring={"prompts": ["a photo of {label}"]}))


@pytest.mark.parametrize("name", ["dit", "sd3"])
def test_inspect_probe_and_the_plan_ask_a_prior_in_its_own_words(name: str, source: Path, diffsel) -> None:
    words = (source, "--model", saved(name), "--image-size", 64, "--device", "cpu")
    code, out, _ = diffsel("inspect", *words[:3], "--image-size", 64, "-q")
    assert code == 0
    assert ("golden_retriever" if name == "dit" else "An image of golden retriever.") in out
    assert "null prompt: ''" in out
    code, out, err = diffsel("probe", *words, "--draws", 3, "--images", 2, "-q")
    assert (code, err) == (0, "")
    assert "golden_retriever" in out
    code, out, _ = diffsel("score", *words, "--draws", 3, "--out", source.parent / "none", "--dry-run", "-q")
    assert code == 0
    assert "U-Net forwards" in out
