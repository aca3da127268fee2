"""Copies of an image: one of them is taken, and it is told."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import small_values
from pictures import scene
from PIL import Image

from diffsel import method
from diffsel.data.images import ImageData, open_data
from diffsel.data.pool import LOOK, copies, copies_note, distinct, looks, near_copies
from diffsel.machine.tensors import read_unit, write_unit
from diffsel.report.page import write_report
from diffsel.runs.session import Session, start
from diffsel.sets.baselines import select_baseline
from diffsel.sets.candidates import check_set, most_patches, near_pairs, provenance
from diffsel.sets.scores import Scores
from diffsel.sets.usable import drawn
from diffsel.settings.errors import SelectionError, SettingsDiffer
from diffsel.settings.sections import SelectionSettings
from diffsel.settings.settings import Settings, resolve

ALIKE = SelectionSettings().alike


def settings(**selection: object) -> Settings:
    values = {**small_values(), "assembly": {"size": 32, "factor": 1}}
    return resolve({**values, "selection": {**values["selection"], **selection}})


@pytest.fixture
def source(folder: Callable[..., Path]) -> Path:
    """Three different cats, of six files, and three different dogs, one of which is a cat."""
    path = folder(cat=3, dog=3)
    for name in ("0-again", "1-again", "1-more"):
        shutil.copy(path / "cat" / f"{name[0]}.png", path / "cat" / f"{name}.png")
    shutil.copy(path / "cat" / "2.png", path / "dog" / "2.png")
    return path


@pytest.fixture
def data(source: Path) -> ImageData:
    return open_data(str(source), settings().data, 0)


@pytest.fixture
def session(source: Path, tmp_path: Path) -> Session:
    opened = start(str(source), tmp_path / "run", settings())
    method.score(opened)
    method.embed(opened)
    return opened


def sources(out: Path, label: str) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    return sorted((tile["source"], tile["digest"]) for line in lines if line["class"] == label for tile in line["tiles"])


def test_of_copies_the_lowest_row_stays(data: ImageData) -> None:
    kept = [row.path for row in distinct(data.of_class("cat"))]
    first = {row.digest: row.path for row in reversed(data.of_class("cat"))}
    assert kept == sorted(first.values())
    assert len(kept) == 3
    assert copies(data, ["cat", "dog"]) == {"copies_left_out": 3}
    assert copies(data, ["dog"]) == {}


def test_a_note_tells_copies_within_and_across_classes(data: ImageData) -> None:
    note = copies_note(data, ["cat", "dog"])
    assert note.startswith(
        "3 images have the same bytes as others of their class and are left out, such as cat/0.png and cat/0-"
    )
    assert "1 images have the same bytes as images of other classes, such as dog/2.png and cat/2.png" in note
    assert "left out" not in copies_note(data, ["dog"])
    assert copies_note(data, ["dog"]) == ""
    assert "other classes" not in copies_note(data, ["cat"])


def test_diffsel_fills_a_set_with_different_images_and_says_so(session: Session, tmp_path: Path) -> None:
    for name in ("diffsel", "diffsel-noclusters"):
        run = session.run.__class__(
            session.run.path, session.run.record, settings(method=name), session.run.classes, session.data
        )
        seen = session.seen(run)
        assert most_patches(run, ["cat", "dog"]) == {"cat": 3, "dog": 3}
        assert method.select(seen, 3, tmp_path / name)
        found = sources(tmp_path / name, "cat")
        assert [path for path, _ in found] == [row.path for row in distinct(session.data.of_class("cat"))]
        with pytest.raises(SelectionError, match="class 'cat' has 3 patches"):
            check_set(run, 4, tmp_path / "more")
    assert any("3 images have the same bytes" in note for note in session.notes)


def test_a_share_of_the_images_is_one_of_different_images(session: Session, tmp_path: Path) -> None:
    run = session.run.__class__(session.run.path, session.run.record, settings(images=3), session.run.classes, session.data)
    assert method.select(session.seen(run), 3, tmp_path / "set")
    assert len({digest for _, digest in sources(tmp_path / "set", "cat")}) == 3


def test_baselines_draw_each_image_once(data: ImageData, tmp_path: Path) -> None:
    assert len(drawn(data, "cat", 0)) == 3
    assert select_baseline(data, 3, tmp_path / "set", settings(method="random"))
    assert len({digest for _, digest in sources(tmp_path / "set", "cat")}) == 3
    with pytest.raises(SelectionError, match="class 'cat' has 3 patches"):
        select_baseline(data, 4, tmp_path / "more", settings(method="random"))


def test_a_set_that_holds_copies_is_not_taken_for_one_without(session: Session, tmp_path: Path) -> None:
    """Sets without copies have the record that they had before copies were looked at."""
    assert method.select(session, 2, tmp_path / "set")
    file = tmp_path / "set" / "set.yaml"
    record = yaml.safe_load(file.read_text())
    assert record.pop("copies_left_out") == 3
    file.write_text(yaml.safe_dump(record))
    with pytest.raises(SettingsDiffer, match="copies_left_out: stored None, asked 3"):
        method.select(session, 2, tmp_path / "set")
    assert "copies_left_out" not in provenance(session.run, 2, 1, ["dog"])


def test_the_command_says_it_for_both(diffsel, source: Path, tmp_path: Path, session: Session) -> None:
    for what, options in ((session.run.path, ()), (source, ("--method", "random", "--size", 32, "--factor", 1))):
        code, out, err = diffsel("select", what, *options, "--ipc", 1, "--out", tmp_path / f"set-{what.name}", "-q")
        assert code == 0, err
        assert "note: 3 images have the same bytes as others of their class and are left out" in out


# ---- near copies -----------------------------------------------------------------------------------------------------


def recompressed(picture: Image.Image, quality: int) -> Image.Image:
    blob = io.BytesIO()
    picture.save(blob, "JPEG", quality=quality)
    return Image.open(blob).convert("RGB")


def test_recompressed_and_rescaled_pictures_look_alike_and_others_do_not() -> None:
    pictures = [scene(seed) for seed in range(40)]
    changed = [
        recompressed(scene(3), 40),
        scene(7).resize((50, 50)),
        recompressed(scene(3), 70),
        scene(11).point(lambda v: v // 2 + 60),
    ]
    seen = looks(np.asarray(picture) for picture in pictures + changed)
    assert near_copies(seen, alike=ALIKE) == {40: 3, 41: 7, 42: 3, 43: 11}
    assert near_copies(seen, alike=1.0) == {}


def test_near_copies_are_those_of_the_definition() -> None:
    """The loop written out: each image against all kept ones before it, by numpy's own correlation; dark pictures of little
    contrast are not alike, nor are those of a single grey unless they are equal."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (20, LOOK**2))
    seen = np.clip(base[rng.integers(0, 20, 150)] + rng.normal(0, rng.uniform(0, 12, (150, 1)), (150, LOOK**2)), 0, 255).astype(
        np.uint8
    )
    seen[::17] = rng.integers(0, 4, (len(seen[::17]), LOOK**2))
    seen[5::29] = rng.integers(0, 3, (len(seen[5::29]), 1))
    expected: dict[int, int] = {}
    for i, own in enumerate(seen):
        for j in (j for j in range(i) if j not in expected):
            flat = min(own.std(), seen[j].std()) == 0
            if (own == seen[j]).all() or (not flat and np.corrcoef(own, seen[j])[0, 1] >= 0.99):
                expected[i] = j
                break
    assert near_copies(seen, alike=0.99) == expected
    assert 20 < len(expected) < 130


def test_equal_looks_are_alike_at_the_highest_correlation() -> None:
    seen = np.random.default_rng(0).integers(0, 256, (200, LOOK**2)).astype(np.uint8)
    assert near_copies(np.concatenate([seen, seen]), alike=1.0) == {200 + i: i for i in range(200)}


def test_near_copies_are_found_in_blocks_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = looks(np.asarray(scene(seed).point(lambda v: v + 1)) for seed in (*range(9), 3, 1, *range(20, 25), 8, 21))
    whole = near_copies(seen, alike=ALIKE)
    assert whole == {9: 3, 10: 1, 16: 8, 17: 12}
    monkeypatch.setattr("diffsel.data.pool.BLOCK", 3)
    assert near_copies(seen, alike=ALIKE) == whole
    assert near_copies(seen[[*range(9), *range(9, 18)]], 9, alike=ALIKE) == whole


def test_a_near_copy_fills_no_set_and_is_told(folder: Callable[..., Path], tmp_path: Path) -> None:
    path = folder(cat=1, dog=1)
    for seed in range(4):
        scene(seed).save(path / "cat" / f"a{seed}.png")
        scene(10 + seed).save(path / "dog" / f"a{seed}.png")
    for seed, quality in ((1, 50), (2, 80)):
        scene(seed).save(path / "cat" / f"b{seed}.jpg", quality=quality)
    opened = start(str(path), tmp_path / "run", settings())
    method.score(opened)
    method.embed(opened)
    assert most_patches(opened.run, ["cat", "dog"]) == {"cat": 5, "dog": 5}
    method.select(opened, 5, tmp_path / "set")
    assert [name for name, _ in sources(tmp_path / "set", "cat")] == ["cat/0.png", *(f"cat/a{seed}.png" for seed in range(4))]
    assert any(
        "2 images look nearly like others of their class and are left out, such as cat/b1.jpg (like cat/a1.png)" in note
        for note in opened.notes
    )
    page = write_report(opened.run.path, tmp_path / "report.html")[0].read_text()
    assert "<b>2</b>near copies" in page
    assert "<th>cat/b1.jpg</th><th>cat/a1.png</th>" in page
    for unit in opened.run.units:  # as the first versions stored their vectors
        tensors, extra = read_unit(opened.run.feature_file(unit), opened.run.feature_mark)
        write_unit(
            opened.run.feature_file(unit), opened.run.feature_mark, {k: v for k, v in tensors.items() if k != "look"}, extra
        )
    assert most_patches(opened.run, ["cat"]) == {"cat": 7}


def test_images_are_drawn_from_what_is_no_near_copy(folder: Callable[..., Path], tmp_path: Path, diffsel) -> None:
    path = folder(cat=1, dog=1)
    for seed in range(4):
        scene(seed).save(path / "cat" / f"a{seed}.png")
        for quality in (40, 60, 80):
            scene(seed).save(path / "cat" / f"b{seed}-{quality}.jpg", quality=quality)
    (path / "cat" / "c0.png").write_bytes((path / "cat" / "a0.png").read_bytes())
    opened = start(str(path), tmp_path / "run", settings(method="diffsel-noclusters"))
    method.score(opened)
    assert len(near_pairs(opened.run, ["cat"])) == 12  # of c0.png, whose bytes are those of a0.png, another note tells
    for images in (2, 3, 4, 5):
        told = ("--images", images, "--ipc", images, "--only", "cat", "--out", tmp_path / f"{images}")
        code, _, err = diffsel("select", opened.run.path, *told)
        assert code == 0, err
    for name, why in (("b2-60.jpg", "it looks nearly like cat/a2.png"), ("c0.png", "has the same bytes")):
        assert why in diffsel("trace", opened.run.path, f"cat/{name}")[1]
    like = {line["path"]: line["like"] for line in next(iter(Scores(opened.run, 4))).to_pylist()}
    assert {path for path, first in like.items() if first} == {path for path, _ in near_pairs(opened.run, ["cat"])}
    assert like["cat/b2-60.jpg"] == "cat/a2.png"


def test_too_few_patches_name_the_smallest_class_and_the_flag_that_helps(session: Session, tmp_path: Path, diffsel) -> None:
    for flags, way in (((), "raise --per-image"), (("--images", 2), "do without --images)")):
        code, _, err = diffsel("select", session.run.path, "--ipc", 9, *flags, "--out", tmp_path / "set")
        assert code == 2
        assert way in err
    fewest = min(["cat", "dog"], key=most_patches(session.run, ["cat", "dog"]).get)
    assert f"class {fewest!r} has" in err


def test_a_folder_of_sets_is_called_so(session: Session, tmp_path: Path, diffsel) -> None:
    made = ("select", session.data.root, "--method", "random", "--ipc", 1, "--size", 32, "--factor", 1, "--sets", 2)
    assert diffsel(*made, "--out", tmp_path / "sets")[0] == 0
    for words in (
        ("select", tmp_path / "sets", "--ipc", 1, "--out", tmp_path / "x"),
        ("export", tmp_path / "sets", "--to", "hf", "--out", tmp_path / "y"),
    ):
        code, _, err = diffsel(*words)
        assert (code, f"it holds sets, such as {tmp_path / 'sets' / 'set-0'}" in err) == (2, True), err


def test_a_near_copy_fills_no_set_of_a_run_without_vectors(folder: Callable[..., Path], tmp_path: Path, diffsel) -> None:
    path = folder(cat=1, dog=1)
    for seed in range(4):
        scene(seed).save(path / "cat" / f"a{seed}.png")
        scene(10 + seed).save(path / "dog" / f"a{seed}.png")
    scene(1).save(path / "cat" / "b1.jpg", quality=50)
    opened = start(str(path), tmp_path / "run", settings(method="diffsel-noclusters"))
    method.score(opened)
    assert most_patches(opened.run, ["cat"]) == {"cat": 5}
    method.select(opened, 5, tmp_path / "set")
    assert "cat/b1.jpg" not in dict(sources(tmp_path / "set", "cat"))
    assert any("1 images look nearly like others of their class" in note for note in opened.notes)
    code, out, err = diffsel(
        "select", path, "--method", "random", *("--ipc", 5, "--size", 32, "--factor", 1), "--out", tmp_path / "r"
    )
    assert code == 0, err
    assert "note: 1 images look nearly like others of their class and are left out, such as cat/" in out
