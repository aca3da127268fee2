"""What known answers and stored maps say of a prior, against sums done by hand."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from diffusers import DDPMScheduler

from diffsel import method
from diffsel.runs.knowledge import Answer, knowledge, overall, stored, unknown, verdict, what_it_knows
from diffsel.runs.run import open_run
from diffsel.runs.session import start
from diffsel.scoring.folder import ModelFolder
from diffsel.sets.suspects import suspects


def answer(own: float, others: list[float], gap: float = 1.0, unit: float = 10.0) -> Answer:
    return Answer("cat", np.array([own, *others]), gap, unit)


def test_figures_of_known_answers() -> None:
    found = knowledge([answer(-0.5, [0.1, 0.2]), answer(-0.3, [-0.1, 0.0], gap=0.6), answer(0.2, [0.1, 0.3], gap=0.4)])
    assert found.images == 3
    assert found.top1[0] == pytest.approx(200 / 3)
    assert found.nats[0] == pytest.approx(10 * (0.5 + 0.3 - 0.2) / 3)
    assert found.nats[1] == pytest.approx(1.96 * np.std([5, 3, -2], ddof=1) / math.sqrt(3))
    assert found.calibration == pytest.approx(0.6 / 2.0)
    pairs = [(own, other) for own in (0.5, 0.3, -0.2) for other in (-0.1, -0.2, 0.1, 0.0, -0.1, -0.3)]
    assert found.auroc[0] == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a, b in pairs]))


def test_a_class_whose_words_do_not_help_is_unknown() -> None:
    known = knowledge([answer(-1 - i / 10, [0.0]) for i in range(5)])
    luck = knowledge([answer(value, [0.0]) for value in (-1.0, 1.1, -0.9, 0.8)])
    worse = knowledge([answer(0.5 + i / 10, [0.0]) for i in range(5)])
    assert unknown({"cat": known, "dog": luck, "emu": worse}) == ["dog", "emu"]
    notes = verdict({"cat": known, "dog": luck, "emu": worse})
    assert "does not surely know: 'dog', 'emu' (the loss is not lower with the words, beyond chance)" in notes[0]


@pytest.mark.parametrize(("r", "told"), [(0.5, True), (0.8, False), (1.3, False), (2.0, True)])
def test_a_calibration_far_from_one_is_told(r: float, told: bool) -> None:
    known = {label: knowledge([answer(-1 - i / 10, [0.0], gap=1.2 / r) for i in range(5)]) for label in ("cat", "dog")}
    assert overall(known.values()) == (pytest.approx(12), pytest.approx(r))
    assert verdict(known) == ([f"r = {r:.2f} is far from 1: {LITTLE}"] if told else [])


LITTLE = (
    "the label predictions are no posterior means (a distilled or little trained model, or words that it does not know); "
    "scores are no log-likelihoods"
)


def test_a_pass_tells_nats_and_calibration_and_its_record_keeps_the_unit(tmp_path: Path, folder, small) -> None:
    session = start(str(folder(cat=3, dog=4)), tmp_path / "run", small)
    method.score(session)
    run = session.run
    alphas = DDPMScheduler.from_pretrained(TINY, subfolder="scheduler").alphas_cumprod.double().numpy()
    window = np.diff(np.log(alphas / (1 - alphas))[[700, 100]])[0]
    cells = np.prod(run.maps(run.units[0])[1] and run.maps(run.units[0])[0]["0.null"].shape[1:])
    elements = cells * ModelFolder(Path(TINY)).config("vae")["latent_channels"]
    maps = {k: v for unit in run.units for k, v in run.maps(unit)[0].items()}
    for label, rows in (("cat", range(3)), ("dog", range(3, 7))):
        d = np.array([maps[f"{row}.differential"].mean(dtype=np.float64) for row in rows])
        g = np.array([maps[f"{row}.gap"].mean(dtype=np.float64) for row in rows])
        found = stored(run, label)
        assert found
        assert found.nats[0] == pytest.approx(-d.mean() * elements * window / 2, rel=1e-5)
        assert found.calibration == pytest.approx(-d.mean() / g.mean(), rel=1e-5)
        assert [each.nats for each in suspects(run, label)] == pytest.approx(np.sort(-d * elements * window / 2), rel=1e-5)
    mean, r = overall([known for label in run.infos if (known := stored(run, label))])
    assert f"an image's label tells {mean:.2f} nats on average (at most ln 2 = 0.69" in what_it_knows(run)[0]
    assert f"r = {r:.2f}" in what_it_knows(run)[0]
    assert set(what_it_knows(run)) <= set(session.notes)
    half = run.settings.patches.model_copy(update={"t_range": (0.1, 0.3)})
    third = replace(run, settings=run.settings.model_copy(update={"patches": half}))
    assert third.nats == pytest.approx(run.nats * np.diff(np.log(alphas / (1 - alphas))[[300, 100]])[0] / window, rel=1e-5)


def test_a_run_of_an_earlier_version_has_the_unit_of_its_model(tmp_path: Path, folder, small) -> None:
    """Where that is here; else scores have none."""
    shutil.copytree(TINY, tmp_path / "model")
    model = small.model.model_copy(update={"model": str(tmp_path / "model")})
    run = start(str(folder(cat=1)), tmp_path / "run", small.model_copy(update={"model": model})).run
    file = run.path / "run.yaml"
    kept = file.read_text()
    file.write_text(re.sub("(?m)^checksum:.*\n", "", kept[: kept.index("unit:")]))
    assert open_run(run.path).nats == run.nats
    shutil.rmtree(tmp_path / "model")
    assert open_run(run.path).nats is None
    file.write_text(kept)
    assert open_run(run.path).nats == run.nats
