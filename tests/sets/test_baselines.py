"""Random and RDED: fair draws, the teacher's favourite crops, and the same sets with provenance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from pictures import encoded, scene
from PIL import Image
from torch import nn

from diffsel.data.images import ImageData, open_data
from diffsel.data.rows import lost_note
from diffsel.evaluation.teachers import Teacher
from diffsel.sets import baselines
from diffsel.sets.baselines import (
    boxes_of,
    select_baseline,
    select_coreset,
    select_hard,
    select_random,
    select_rded,
)
from diffsel.sets.difficulty import Records
from diffsel.sets.selection import Pick
from diffsel.sets.usable import Seen, Usable, drawn
from diffsel.settings.errors import SelectionError, StoreError
from diffsel.settings.sections import AssemblySettings, BaselineSettings, DataSettings, SelectionSettings
from diffsel.settings.settings import resolve

RULES = BaselineSettings(pool=6, crops=4)


@pytest.fixture
def data(folder) -> ImageData:
    return open_data(str(folder(cat=8, dog=8, size=(48, 40))), DataSettings(image_size=32, side_multiple=1), 0)


class Brightness(nn.Module):
    """A teacher whose first class is 'bright': the more light in the picture, the surer."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        light = images.mean((1, 2, 3))
        return torch.stack([light, -light], dim=1)


def teacher() -> Teacher:
    return Teacher("brightness", "made here", Brightness(), torch.tensor([0, 1]), None, "0")


def test_random_draws_one_box_of_each_image(data: ImageData) -> None:
    picks = select_random(Usable(data), "dog", 2, 2, RULES, 0)
    assert len({pick.row for pick in picks}) == len(picks) == 8
    assert [pick.rank for pick in picks] == list(range(8))
    for pick in picks:
        top, left, height, width = pick.box
        assert height == width
        assert min(top, left) >= 0
        full = data.size(data.rows[pick.row])
        assert (left + width <= full[0]) & (top + height <= full[1])
        assert pick.reason == "random"
    assert select_random(Usable(data), "dog", 2, 2, RULES, 0) == picks
    assert [p.row for p in select_random(Usable(data), "dog", 2, 2, RULES, 1)] != [p.row for p in picks]
    with pytest.raises(SelectionError, match="class 'dog' has 8 patches, but ipc 3 with 2 x 2 patches an image needs 12"):
        select_random(Usable(data), "dog", 3, 2, RULES, 0)


def test_every_image_is_drawn_equally_often(data: ImageData) -> None:
    first = [drawn(data, "cat", seed)[0].row for seed in range(400)]
    counts = np.bincount(first, minlength=8)[:8]
    assert counts.min() > 25  # expected: 50 each, standard deviation 6.6
    assert counts.sum() == 400


def test_whole_images_are_their_middle_square(data: ImageData) -> None:
    (box,) = boxes_of(data, data.rows[0], RULES.model_copy(update={"whole": True}), 0, 1)
    width, height = data.size(data.rows[0])
    assert (width, height) == (38, 32)
    assert box.tolist() == [0, 3, 32, 32]


def test_boxes_do_not_depend_on_other_images_or_order(data: ImageData, folder, tmp_path: Path) -> None:
    again = open_data(data.root, DataSettings(image_size=32, side_multiple=1, classes=("dog",)), 0)
    mine = {row.path: boxes_of(data, row, RULES, 3, 4).tolist() for row in data.of_class("dog")}
    assert {row.path: boxes_of(again, row, RULES, 3, 4).tolist() for row in again.rows} == mine


def test_rded_keeps_the_crops_that_the_teacher_is_surest_of(tmp_path: Path) -> None:
    """The classes are 'bright' and 'dark': of a half-white image, bright keeps the whitest crop and dark the blackest."""
    for label in ("bright", "dark"):
        for i in range(6):
            pixels = np.zeros((32, 32, 3), np.uint8)
            pixels[:, : 4 * (i + 1)] = 255
            (tmp_path / label).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    data = open_data(str(tmp_path), DataSettings(image_size=32, side_multiple=1), 0)
    for target, label in enumerate(("bright", "dark")):
        picks = select_rded(Usable(data), label, target, 3, 1, RULES, 0, teacher(), 32)
        whites = {}
        for row in data.of_class(label):
            image = data.pixels(row).astype(float)
            whites[row.row] = [image[t : t + h, left : left + w].mean() for t, left, h, w in boxes_of(data, row, RULES, 0, 4)]
        best = max if target == 0 else min
        for pick in picks:
            chosen = data.pixels(data.rows[pick.row]).astype(float)
            t, left, h, w = pick.box
            assert chosen[t : t + h, left : left + w].mean() == pytest.approx(best(whites[pick.row]))
        ranked = sorted(whites, key=lambda row: best(whites[row]), reverse=target == 0)
        kept = {best(whites[pick.row]) for pick in picks}
        assert kept == {best(whites[row]) for row in ranked[:3]}
        assert [pick.score for pick in picks] == sorted((pick.score for pick in picks), reverse=True)


def test_a_judge_is_asked_once_for_all_sets(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second set of the same judge, and none of another judge or seed; the same files as without memory."""
    values = {"data": {"image_size": 32}, "patches": {"patch_size": 16}, "assembly": {"size": 32}}
    s = resolve({**values, "selection": {"method": "rded"}, "baseline": {"pool": 8}})
    asked, seen, judge, ask = list[int](), Seen(), teacher(), Brightness.forward

    def asking(self: Brightness, images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return ask(self, images)

    monkeypatch.setattr(Brightness, "forward", asking)
    for ipc in (1, 2):
        select_baseline(data, ipc, tmp_path / f"with-{ipc}", s, None, judge, seen=seen)
    assert len(asked) == 2  # classes
    select_baseline(data, 2, tmp_path / "without", s, None, judge)
    assert len(asked) == 4
    other = s.model_copy(update={"seed": 1})
    select_baseline(data, 2, tmp_path / "other", other, None, judge, seen=seen)
    assert len(asked) == 6
    select_baseline(data, 2, tmp_path / "another", s, None, replace(judge, digest="1"), seen=seen)
    assert len(seen.judged) == 6
    files = {file.relative_to(tmp_path / "without"): file.read_bytes() for file in (tmp_path / "without").rglob("*.*")}
    assert files == {file.relative_to(tmp_path / "with-2"): file.read_bytes() for file in (tmp_path / "with-2").rglob("*.*")}


def test_crops_are_padded_with_the_mean_colour(data: ImageData) -> None:
    padded = baselines.pad(torch.ones(2, 3, 5, 5), 8)
    assert padded[:, :, 1:6, 1:6].eq(1).all()
    assert padded.sum() == 2 * 3 * 25


def test_rded_sets_have_provenance_and_are_not_overwritten(data: ImageData, tmp_path: Path) -> None:
    values = {"data": {"image_size": 32}, "patches": {"patch_size": 16}, "assembly": {"size": 32}, "baseline": {"pool": 8}}
    s = resolve({**values, "selection": {"method": "rded"}})
    assert select_baseline(data, 2, tmp_path / "set", s, None, teacher())
    lines = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert all(len(line["tiles"]) == 4 for line in lines)
    assert {tile["reason"] for line in lines for tile in line["tiles"]} == {"loss"}
    assert not select_baseline(data, 2, tmp_path / "set", s, None, teacher())
    other = resolve({**values, "seed": 1, "selection": {"method": "rded"}})
    with pytest.raises(StoreError, match="seed: stored 0, asked 1"):
        select_baseline(data, 2, tmp_path / "set", other, None, teacher())
    with pytest.raises(SelectionError, match="ipc 8 is the most it can give"):
        select_baseline(data, 9, tmp_path / "more", s, None, teacher())


class Light:
    """Who sees how bright a picture is, and nothing else."""

    def __init__(self, digest: str) -> None:
        self.identity = {"network": "light", "digest": digest, "size": 32}

    def vectors(self, pictures: list[np.ndarray]) -> np.ndarray:
        return np.array([[picture.mean()] for picture in pictures])


def test_a_coreset_of_what_a_teacher_sees_needs_no_pass(data: ImageData, tmp_path: Path) -> None:
    """Herding on brightness, written out: the next image brings the mean of those taken nearest to the mean of all."""
    values = {"data": {"image_size": 32}, "patches": {"patch_size": 0}, "assembly": {"size": 32, "factor": 1}}
    s = resolve({**values, "selection": {"method": "herding"}})
    assert select_baseline(data, 3, tmp_path / "set", s, eye=Light("a"))
    lines = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    for label in ("cat", "dog"):
        light = {row.path: data.pixels(row).mean() for row in data.of_class(label)}
        aim, taken = np.mean(list(light.values())), list[str]()
        for _ in range(3):
            left = sorted(light.keys() - taken)
            taken.append(min(left, key=lambda path: abs(np.mean([light[each] for each in [*taken, path]]) - aim)))
        assert [line["tiles"][0]["source"] for line in lines if line["class"] == label] == taken
    tiles = [tile for line in lines for tile in line["tiles"]]
    assert {(tile["reason"], *tile["box"][2:]) for tile in tiles} == {("coverage", 32, 32)}
    with pytest.raises(StoreError, match=r"eye\.digest: stored 'a', asked 'b'"):
        select_baseline(data, 3, tmp_path / "set", s, eye=Light("b"))
    with pytest.raises(SelectionError, match="class 'cat' has 8 patches, but ipc 9"):
        select_baseline(data, 9, tmp_path / "more", s, eye=Light("a"))


def test_rded_makes_mosaics_at_any_ipc_where_a_class_has_enough_crops() -> None:
    assert [AssemblySettings().factor_at(ipc, "rded") for ipc in (1, 10, 50, 100)] == [2, 2, 2, 2]
    assert [AssemblySettings().factor_at(ipc, "diffsel") for ipc in (1, 10, 50, 100)] == [2, 2, 1, 1]
    assert AssemblySettings(factor=1).factor_at(1, "rded") == 1


def test_rdeds_own_bytes_lose_what_rounding_keeps(tmp_path: Path) -> None:
    """The default keeps a flat colour exactly; RDED's way of writing may lose a step, and never gains one."""
    draw(tmp_path / "d" / "cat" / "0.png", 1, 32, 32)
    data = open_data(str(tmp_path / "d"), DataSettings(image_size=32, side_multiple=1), 0)
    written = {}
    for resample in ("bicubic", "rded"):
        s = resolve(
            {
                "data": {"image_size": 32},
                "patches": {"patch_size": 0},
                "selection": {"method": "random"},
                "baseline": {"whole": True},
                "assembly": {"size": 32, "factor": 1, "resample": resample},
            }
        )
        select_baseline(data, 1, tmp_path / resample, s)
        with Image.open(tmp_path / resample / "cat" / "00000.png") as picture:
            written[resample] = np.asarray(picture).astype(int)
    assert (written["bicubic"] == data.pixels(data.rows[0])).all()
    lost = written["bicubic"] - written["rded"]
    assert set(np.unique(lost)) <= {0, 1}
    assert lost.any()


METHODS = ["random", "rded", "el2n-hard", "kcenter"]


def chosen(method_: str, usable: Usable, ipc: int) -> list[Pick]:
    """Whole images of class cat by any of the ways a baseline has."""
    s = resolve({"selection": {"method": method_, "restarts": 1}, "baseline": {"crops": 2, "pool": 100}})
    if method_ == "random":
        return select_random(usable, "cat", ipc, 1, s.baseline, 0)
    if method_ == "kcenter":
        return select_coreset(usable, "cat", ipc, 1, s, Light("a"))
    if method_ == "el2n-hard":
        rows = usable.data.rows
        noted = Records([row.digest for row in rows], np.arange(float(len(rows)))[None], np.ones((1, len(rows)), bool))
        return select_hard(usable, "cat", ipc, 1, s, noted)
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    judge = Teacher("flat", "made here", flat, torch.tensor([0, 1]), None, "0")
    return select_rded(usable, "cat", 0, ipc, 1, s.baseline, 0, judge, 32)


@pytest.mark.parametrize("method_", METHODS)
def test_images_that_do_not_decode_are_passed_over_and_told(method_: str, tmp_path: Path) -> None:
    for i in range(6):
        file = draw(tmp_path / "data" / "cat" / f"{i}.jpg", i)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    clean = open_data(str(tmp_path / "data"), DataSettings(image_size=64), 0)
    cut = drawn(clean, "cat", 0)[0].path
    file = tmp_path / "data" / cut
    file.write_bytes(file.read_bytes()[:2000])  # its head can still be read
    data = open_data(str(tmp_path / "data"), DataSettings(image_size=64), 0)
    assert len(data.rows) == 6
    picks = chosen(method_, usable := Usable(data), 5)
    assert {data.rows[pick.row].path for pick in picks} == {row.path for row in data.rows} - {cut}
    assert [(each.path, each.label) for each in usable.seen.lost] == [(cut, "cat")]
    told = lost_note(data.root, data.rows, data.skipped, ["cat"], list(usable.seen.lost))
    assert f"1 of 6 images cannot be read and are left out; the first: {cut}: " in told


@pytest.mark.parametrize("method_", METHODS)
def test_images_that_look_nearly_like_others_are_passed_over_and_told(method_: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for seed in range(60):
        scene(seed).save(tmp_path / "cat" / f"a{seed:02}.png")
    for seed in (3, 7, 55):
        scene(seed).save(tmp_path / "cat" / f"b{seed:02}.jpg", quality=60)
    data = open_data(str(tmp_path), DataSettings(image_size=64), 0)
    picks = chosen(method_, usable := Usable(data, alike=SelectionSettings().alike), 60)
    assert {data.rows[pick.row].path[5:7] for pick in picks} == {f"{seed:02}" for seed in range(60)}
    assert {frozenset(pair) for pair in usable.seen.near.items()} == {
        frozenset({f"cat/a{seed}.png", f"cat/b{seed}.jpg"}) for seed in ("03", "07", "55")
    }
    with pytest.raises(SelectionError, match="60 patches"):
        chosen(method_, Usable(data, alike=SelectionSettings().alike), 61)


@pytest.mark.parametrize("workers", [1, 3])
def test_rded_decodes_each_picture_once_with_any_number_of_threads(folder, monkeypatch, workers: int) -> None:
    (folder(cat=7) / "cat" / "6.png").write_bytes(
        encoded(Image.effect_noise((64, 64), 50), "PNG")[:-200]
    )  # its head can be read
    data = open_data(str(folder(cat=6)), DataSettings(image_size=48), 0)
    alone = select_rded(Usable(data), "cat", 0, 2, 1, RULES, 0, teacher(), 32)
    decoded: list[str] = []
    image = type(data).image
    monkeypatch.setattr(type(data), "image", lambda self, row: decoded.append(row.path) or image(self, row))
    assert select_rded(Usable(data, workers=workers), "cat", 0, 2, 1, RULES, 0, teacher(), 32) == alone
    assert len(decoded) == len(set(decoded)) <= 7
