"""Rivals added to a stored pass: what they cost, that the pass stays, and that the same settings give the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import small_values
from test_method import contents, with_

from diffsel import method
from diffsel.machine.processes import as_shard
from diffsel.runs import prompts
from diffsel.runs.parts import possible_rivals
from diffsel.runs.rivals import forwards_left
from diffsel.runs.run import open_run
from diffsel.runs.session import resume, start
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.maps import Asked, rival_losses
from diffsel.settings.errors import ConfigError, StoreError
from diffsel.settings.settings import Settings, load_settings, resolve
from diffsel.studies.checking import check_folder

TEXT = "An image of {}."


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A pass over two images of each of three classes, without rivals."""
    from conftest import draw

    place = tmp_path_factory.mktemp("rivals")
    for number, name in enumerate(("cat/0", "cat/1", "dog/0", "dog/1", "owl/0", "owl/1")):
        draw(place / "data" / f"{name}.png", number)
    method.score(start(place / "data", place / "run", resolve(small_values())))
    return place / "run"


@pytest.fixture
def run(scored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "run"))


def asked(rivals: int | tuple[str, ...], **sections: dict) -> Settings:
    return with_(resolve(small_values()), patches={"rivals": rivals}, **sections)


@pytest.mark.parametrize(
    ("rivals", "cost"), [(1, 6 * (2 + 2)), (2, 6 * 2 * 3), (("owl", "dog"), (2 * 2 + 4 * 1) * 3), (("cat",), 4 * 3)]
)
def test_rivals_are_added_to_a_pass_that_stays_as_it_is(run: Path, rivals, cost: int, monkeypatch) -> None:
    """Three draws: every other label by one, the rivals by three; named ones by three.  No forward of the pass again."""
    before, seen = contents(run), list[int]()
    session = resume(run, asked(rivals))
    part = session.run.rivals
    assert part is not None
    assert forwards_left(session, part) == cost
    original = Diffusion.predict_noise
    monkeypatch.setattr(Diffusion, "predict_noise", lambda self, x, *rest: seen.append(len(x)) or original(self, x, *rest))
    method.score(session)
    assert session.counts["U-Net forwards of rivals"] == cost
    assert session.counts["U-Net forwards"] == 0
    assert sum(seen) >= cost
    assert before.items() <= contents(run).items()
    assert forwards_left(session, part) == 0
    assert session.run.forwards_taken() == open_run(run).forwards_taken() + cost
    checked = {each.file: each for each in check_folder(run)}
    assert all(each.reason is None for each in checked.values())
    assert "--rivals` with the rivals in" in checked[part.file(session.run.units[0])].remake


def test_what_is_stored_are_the_likeliest_labels_and_their_losses_above_the_null_prompt(run: Path) -> None:
    session = resume(run, asked(1))
    method.score(session)
    names = [info.folder for info in session.run.classes]
    for unit in session.run.units:
        tensors, others = session.run.maps(unit)[0], [name for name in names if name != unit.label]
        pictures = session.pictures(unit, unit.rows)
        texts = tuple(TEXT.format(name) for name in others)
        for i, (order, losses) in rival_losses(session.scorer, [Asked(row.digest, p, texts) for row, p in pictures], 1):
            row = pictures[i][0].row
            assert [names[k] for k in tensors[f"{row}.rival"]] == [others[k] for k in order]
            np.testing.assert_allclose(tensors[f"{row}.rivals"], losses - tensors[f"{row}.null"], rtol=1e-3, atol=1e-6)
            assert tensors[f"{row}.rivals"].shape == (1, *tensors[f"{row}.gap"].shape[1:])


def test_rivals_have_the_same_bytes_at_once_or_later_after_a_kill_or_by_shards(run: Path, tmp_path: Path) -> None:
    method.score(resume(run, asked(1)))
    whole = contents(run)
    method.score(start(resume(run).data.root, tmp_path / "at-once", asked(1)))
    assert contents(tmp_path / "at-once") == whole
    for file in sorted((run / "rivals").rglob("*.safetensors"))[::2]:
        file.unlink()
    method.score(resume(run, asked(1)))
    assert contents(run) == whole
    shutil.rmtree(run / "rivals")
    for shard in ("1/2", "0/2"):
        with as_shard(shard):
            method.score(resume(run, asked(1)))
        assert (contents(run) == whole) == (shard == "0/2")


def test_boxes_and_vectors_are_of_the_maps_with_rivals(run: Path) -> None:
    """Each choice of rivals has boxes of its own; without any, all is as it was."""
    plain = open_run(run)
    unit, row = plain.units[0], plain.units[0].rows[0]
    expected = plain.image_map(*plain.maps(unit), row)
    method.score(resume(run, asked(1)))
    with_rivals = resume(run, asked(1)).run
    assert not np.allclose(with_rivals.image_map(*with_rivals.maps(unit), row), expected)
    np.testing.assert_array_equal(plain.image_map(*plain.maps(unit), row), expected)
    assert with_rivals.feature_folder != plain.feature_folder
    assert resolve(small_values()).patches == load_settings([], {"patches.rivals": 0}, small_values()).patches


def test_boxes_before_rivals_are_scored_are_refused_with_the_command(run: Path) -> None:
    seen = open_run(run, asked(2))
    with pytest.raises(
        StoreError, match=r"not scored against its rivals yet; run `diffsel score .* --out .*` with the same --rivals"
    ):
        seen.boxes(seen.units[0])


@pytest.mark.parametrize(
    ("rivals", "message"),
    [
        (3, "patches.rivals = 3: of 3 classes, an image has 2 other labels at most"),
        (("dgo",), "patches.rivals names 'dgo', which is no class; there is dog"),
    ],
)
def test_rivals_that_cannot_be_are_refused_before_any_work(scored: Path, tmp_path: Path, rivals, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start(scored.parent / "data", tmp_path / "new", asked(rivals))
    assert not (tmp_path / "new" / "run.yaml").exists()


def test_one_class_has_no_rivals() -> None:
    with pytest.raises(ConfigError, match="there is one class; it needs two or more"):
        possible_rivals(1, ["cat"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"patches": {"rivals": 1, "estimator": "gap"}}, "must not go with patches.estimator = gap"),
        ({"scoring": {"adaptive_draws": 6}}, "must not go with scoring.adaptive_draws"),
    ],
)
def test_settings_that_leave_rivals_nothing_to_do_are_refused(sections: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_(asked(1), **sections)


def test_prompts_are_compared_without_rivals(run: Path) -> None:
    with pytest.raises(ConfigError, match="add --rivals 0"):
        prompts.plan(resume(run, asked(1)), ["a photo of a {label}"])
