"""Prompts compared on a stored run: what they cost, that they equal a run of their own, and what is refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import draw, small_values
from PIL import Image
from scipy.stats import spearmanr

from diffsel import method
from diffsel.data.albums import open_validation
from diffsel.data.rows import Row
from diffsel.runs import prompts
from diffsel.runs.run import Run
from diffsel.runs.session import Session, resume, start
from diffsel.scoring.patches import patch_scores
from diffsel.settings.errors import ConfigError, DataError, StoreError
from diffsel.settings.settings import resolve
from diffsel.studies.agreement import compare

CAT, PHOTO, WORDS = "An image of {label}.", "a photo of a {label}", "{label}, {description}"
N, DRAWS = 3, 3


def settings(**patches):
    return resolve(
        {**small_values(), "patches": {"patch_size": 32, "stride": 8, **patches}, "assembly": {"size": 32, "factor": 1}}
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A scored run of two cats and a dog, and its images."""
    place = tmp_path_factory.mktemp("prompts")
    for number, name in enumerate(("cat/0", "cat/1", "dog/0")):
        draw(place / "data" / f"{name}.png", number)
    (place / "data" / "classes.yaml").write_text(
        "cat: {name: cat, description: a pet}\ndog: {name: dog, description: a friend}\n"
    )
    method.score(start(str(place / "data"), place / "run", settings()))
    return place / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Session:
    shutil.copytree(original, tmp_path / "run")
    return resume(tmp_path / "run", settings())


def study(run: Session, *templates: str, null: str | None = None, words: Path | None = None, **patches) -> prompts.Comparison:
    return prompts.plan(resume(run.run.path, settings(**patches)), templates, null, words)


def scored(run: Session, *templates: str, **options) -> prompts.Comparison:
    planned = study(run, *templates, **options)
    promised = planned.forwards()
    prompts.score(planned)
    assert planned.session.counts.get("U-Net forwards", 0) == promised
    return planned


def test_a_prompt_added_later_costs_its_own_forwards_and_for_the_gap_map_the_nulls(run: Session) -> None:
    cost = N * DRAWS
    assert scored(run, CAT, PHOTO, estimator="differential").session.counts["U-Net forwards"] == cost
    assert study(run, CAT, PHOTO, estimator="differential").forwards() == 0
    assert study(run, CAT, PHOTO, WORDS).forwards() == 3 * cost  # both for the gap map, the null prompt once
    scored(run, CAT, PHOTO, WORDS)
    assert study(run, WORDS, PHOTO, CAT).forwards() == 0
    assert study(run, CAT, PHOTO, WORDS, estimator="differential").forwards() == 0  # what holds more serves


def test_another_null_prompt_is_computed_once(run: Session) -> None:
    cost = N * DRAWS
    assert study(run, CAT, PHOTO, null="", estimator="differential").forwards() == 3 * cost  # CAT is new against this one
    scored(run, CAT, PHOTO, null="", estimator="differential")
    assert study(run, CAT, WORDS, null="", estimator="differential").forwards() == cost
    assert study(run, CAT, WORDS, null="An image of {description}.").forwards() == 3 * cost


@pytest.mark.parametrize("estimator", ["differential", "combined"])
@pytest.mark.parametrize("null", [None, ""])
def test_an_added_prompt_has_the_maps_of_a_run_made_with_it(run: Session, tmp_path: Path, null, estimator) -> None:
    if null is not None:
        scored(run, CAT, null=null, estimator="differential")  # keeps the null losses, so that the next is computed alone
    views = scored(run, CAT, WORDS, null=null, estimator=estimator).views()
    null = settings().scoring.null_prompt if null is None else null
    asked = settings(estimator=estimator).model_copy(
        update={"scoring": settings().scoring.model_copy(update={"prompts": (WORDS,), "null_prompt": null})}
    )
    own = start(run.data.root, tmp_path / "own", asked)
    method.score(own)
    own, view = own.run, views[1].run
    for unit in own.units:
        for row in unit.rows:
            expected = own.image_map(*own.maps(unit), row)
            np.testing.assert_allclose(view.image_map(*view.maps(unit), row), expected, rtol=3e-3, atol=3e-5)


def test_with_latents_kept_prompts_need_no_images_and_have_the_same_bytes(run: Session, original: Path, tmp_path: Path) -> None:
    asked = settings()
    kept = asked.model_copy(update={"compute": asked.compute.model_copy(update={"keep_latents": True})})
    shutil.copytree(original.parent / "data", tmp_path / "data")
    session = start(str(tmp_path / "data"), tmp_path / "kept", kept)
    method.score(session)
    for unit in session.run.units:
        assert session.run.map_file(unit).read_bytes() == run.run.map_file(unit).read_bytes()
    for file in (tmp_path / "data").glob("*/*.png"):
        file.unlink()
    a, b = (scored(each, CAT, PHOTO) for each in (run, resume(tmp_path / "kept", kept)))
    for one, other in zip(a.parts, b.parts, strict=True):
        for unit in session.run.units if one and other else []:
            assert one.file(unit).read_bytes() == other.file(unit).read_bytes()
    assert sum(reason is None for _, reason in session.run.damaged()) == 3 * len(session.run.units)  # maps, latents, prompt
    file = session.run.latent_file(session.run.units[0])
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert [path for path, reason in session.run.damaged() if reason] == [file]


def test_a_killed_comparison_goes_on_and_ends_with_the_same_bytes(run: Session, monkeypatch) -> None:
    scored(run, CAT, PHOTO, null="")
    files = {p: p.read_bytes() for p in (run.run.path / "prompts").rglob("*") if p.is_file()}
    for path in sorted(files)[::2]:
        path.unlink()
    scored(run, CAT, PHOTO, null="")
    assert files == {p: p.read_bytes() for p in (run.run.path / "prompts").rglob("*") if p.is_file()}


def test_the_stages_after_scoring_work_on_a_view_and_leave_the_run_alone(run: Session, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in run.run.path.rglob("*") if p.is_file()}
    for n, view in enumerate(scored(run, CAT, PHOTO).views()):
        method.embed(view)
        assert method.select(view, 1, tmp_path / f"set{n}")
    method.embed(resume(run.run.path, settings()))  # a stored prompt's features are the run's own
    assert len(list((run.run.path / "features").iterdir())) == 2
    assert before.items() <= {p: p.read_bytes() for p in run.run.path.rglob("*") if p.is_file()}.items()
    sets = [yaml.safe_load((tmp_path / f"set{n}" / "set.yaml").read_text()) for n in (0, 1)]
    assert [s["scoring"]["prompts"] for s in sets] == [[CAT], [PHOTO]]


def test_agreement_is_one_with_itself_and_known_otherwise(run: Session) -> None:
    views = [view.run for view in scored(run, CAT, PHOTO, estimator="differential").views()]
    same = compare([views[0], views[0]])
    assert [row.label for row in same] == [None, "cat", "dog"]
    assert all((row.places, row.boxes) == pytest.approx((1, 1)) for row in same)
    assert [row.order for row in same] == [pytest.approx(1), pytest.approx(1), None]  # one dog alone has no order
    cat = views[0].units[0]
    found = compare(views)[1]
    assert (found.label, found.images, found.selection) == ("cat", len(cat.rows), None)
    expected = [spearmanr(*(scores(view, row) for view in views)).statistic for row in cat.rows]
    assert found.places == pytest.approx(np.mean(expected))


def scores(view: Run, row: Row) -> np.ndarray:
    width, height = view.data.size(row)
    return patch_scores(view.image_map(*view.maps(view.units[0]), row), height, width, 32, 8)[0].ravel()


@pytest.mark.parametrize(
    ("templates", "null", "message"),
    [
        ((CAT, "a {labell}"), None, "asks for {labell}, which class 'cat' lacks; it has {label}"),
        ((CAT, "a {label"), None, "stray '{'"),
        ((CAT, "a { label }"), None, "stray '{'"),
        ((CAT, CAT), None, "give each prompt once"),
        ((CAT, "An image of {name}."), None, "{name}"),
        ((CAT, "so " * 100), None, "tokens, the model takes"),
        ((CAT, "An image of cat."), "An image of cat.", "null prompt are both 'An image of cat.' for class 'cat'"),
        ((CAT, PHOTO), "a {no}", "asks for {no}"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(run: Session, templates, null, message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        study(run, *templates, null=null)
    assert message in str(error.value)
    assert not (run.run.path / "prompts").exists()


def test_further_words_come_from_a_file_and_the_class_must_be_there(run: Session, tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_text("cat: {name: cat, other: dog}\ndog: {name: dog, other: cat}\n")
    found = study(run, CAT, null="An image of {other}.", words=tmp_path / "words.yaml")
    assert found.texts(found.null) == {"cat": "An image of dog.", "dog": "An image of cat."}
    (tmp_path / "words.yaml").write_text("cow: cow\n")
    with pytest.raises(DataError, match="names class 'cow', which the run does not hold"):
        study(run, CAT, PHOTO, words=tmp_path / "words.yaml")


def test_a_run_without_maps_is_refused(run: Session) -> None:
    next((run.run.path / "maps").glob("dog*")).unlink()
    with pytest.raises(StoreError, match=r"dog-000 is not scored yet; start `diffsel score` again"):
        study(run, CAT, PHOTO)


def test_the_command_compares_selects_and_draws(diffsel, run: Session, tmp_path: Path) -> None:
    words = [
        "prompts",
        run.run.path,
        "--prompt",
        PHOTO,
        "--prompt",
        WORDS,
        "--prompt",
        "cat",
        "--null",
        "",
        "--ipc",
        1,
        "--factor",
        1,
    ]
    code, out, err = diffsel(*words, "--shown", 3, "-q")
    assert (code, err) == (0, "")
    assert f"prompt 1: '{WORDS}' (added)" in out
    assert "U-Net forwards to compute: 36" in out
    lines = list(csv.DictReader((tmp_path / "run-prompts" / "agreement.csv").read_text().splitlines()))
    assert len(lines) == 9  # three pairs; all, cat, dog
    assert {line["selection"] for line in lines if line["class"] == "dog"} == {"1.0"}  # it has one image only
    assert {line["places"] for line in lines} != {""}
    with Image.open(tmp_path / "run-prompts" / "heat.png") as picture:
        assert picture.width > 4 * 160
    code, out, _ = diffsel(*words, "-q")
    assert "U-Net forwards to compute: 0" in out
    code, _, err = diffsel("prompts", tmp_path / "data", "--prompt", PHOTO, "-q")
    assert code == 2
    assert "is not a run" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--student", "conv33"], "conv33"),
        ([], "needs a teacher (--teacher)"),
        (["--teacher", "/no/teacher"], "teacher /no/teacher: no such file"),
        (["--ipc", "0"], "--val measures distilled sets"),
        (["--ipc", "9", "--labels", "hard"], "class 'dog' has 1 patches"),
        (["--labels", "hard", "--teacher", "t"], "--teacher t, but protocol.labels = hard uses no teacher's labels"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_prompt_is_scored(diffsel, run: Session, words, message: str) -> None:
    code, _, err = diffsel("prompts", run.run.path, "--prompt", PHOTO, "--val", run.data.root, "-q", "--ipc", 1, *words)
    assert code == 2
    assert message in err
    assert not (run.run.path / "prompts").exists()


def test_accuracy_is_measured_on_all_validation_images_whatever_the_runs_cap(run: Session) -> None:
    capped = resolve({"data": {"images_per_class": 1}, "protocol": {"labels": "hard"}})
    assert len(open_validation(run.data.root, capped).rows) == N


def test_a_run_may_be_the_folder_one_is_in(diffsel, run: Session, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(run.run.path)
    code, out, err = diffsel("prompts", ".", "--prompt", PHOTO, "--estimator", "differential", "--ipc", 0, "-q")
    assert (code, err) == (0, "")
    assert str(tmp_path / "run-prompts" / "agreement.md") in out


def test_one_prompt_alone_has_no_empty_table(diffsel, run: Session, tmp_path: Path) -> None:
    own = run.run.settings.scoring.prompts[0]
    code, out, err = diffsel("prompts", run.run.path, "--prompt", own, "--ipc", 0, "-q", "--out", tmp_path / "one")
    assert (code, err) == (0, "")
    told = out + (tmp_path / "one" / "agreement.md").read_text()
    assert ("prompt 0: " in told, "places" in told) == (True, False)
