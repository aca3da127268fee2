"""Figures of sets, against brute force and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from diffsel.sets.baselines import select_baseline
from diffsel.sets.figures import Figures, Hand, coverage, coverage_of_random, figures, look_at, mean_of, tiles_of, vendi
from diffsel.sets.opening import read_set


def test_coverage_counts_real_points_with_a_tile_inside_their_ball() -> None:
    rng = np.random.default_rng(0)
    real, tiles = rng.normal(size=(40, 3)), rng.normal(size=(6, 3))
    covered = 0
    for i, point in enumerate(real):
        others = sorted(math.dist(point, other) for j, other in enumerate(real) if j != i)
        covered += any(math.dist(point, tile) <= others[4] for tile in tiles)
    assert coverage(real, tiles, 5) == covered / 40
    assert coverage(real, real[:1] + 1e-9, 3) >= 1 / 40  # a tile on a point lies in that point's ball
    assert coverage(real, np.full((3, 3), 100.0)) == 0


def test_random_tiles_cover_what_the_closed_form_says() -> None:
    rng = np.random.default_rng(1)
    found = [coverage(points[:60], points[60:], 5) for points in rng.normal(size=(400, 68, 4))]
    assert coverage_of_random(60, 8) == pytest.approx(np.mean(found), abs=3 * np.std(found) / math.sqrt(400))
    assert coverage_of_random(100, 1, 5) == pytest.approx(5 / 100)


def test_the_vendi_score_is_the_exponential_of_the_entropy_of_eigenvalues() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(7, 4))
    cosines = np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in vectors] for a in vectors])
    values = np.linalg.eigvals(cosines / 7).real
    assert vendi(vectors) == pytest.approx(math.exp(-sum(v * math.log(v) for v in values if v > 1e-12)))
    assert vendi(np.eye(5)) == pytest.approx(5)
    assert vendi(np.ones((5, 3))) == pytest.approx(1)
    assert vendi(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3)  # copies add nothing


def test_the_hand_made_space_tells_edges_and_colours_and_not_sizes() -> None:
    upright, across = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    upright[:, ::8], across[::8] = 255, 255
    grey, red = np.full((64, 64, 3), 90, np.uint8), np.full((64, 64, 3), (200, 10, 10), np.uint8)
    large = np.asarray(Image.fromarray(upright).resize((128, 128), Image.Resampling.BICUBIC))
    a, b, c, d, e = Hand().vectors([upright, across, grey, red, large])
    assert np.linalg.norm(a - b) > 0.8
    assert np.linalg.norm(c - d) > 0.8
    assert np.linalg.norm(a - e) < 0.2
    assert np.isfinite([a, b, c, d, e]).all()


def test_a_set_is_judged_by_the_images_that_it_is_not_made_from(tmp_path: Path, folder, small) -> None:
    from diffsel.data.images import open_data

    data = open_data(str(folder(cat=20, dog=20)), small.data, 0)
    plain = small.model_copy(update={"selection": small.selection.model_copy(update={"method": "random"})})
    select_baseline(data, 1, tmp_path / "set", plain)
    shown, eye = read_set(tmp_path / "set"), Hand()
    real = look_at(data, "cat", eye, 0)
    assert real
    assert len(real.vectors) == 20
    others = real.without(shown.sources)
    assert len(others) == 16  # one mosaic of four
    found = figures(shown, "cat", real, eye)
    assert found
    tiles = tiles_of(shown, "cat")
    assert [tile.shape for tile in tiles] == [(16, 16, 3)] * 4
    whole = np.asarray(Image.open(tmp_path / "set/cat/00000.png"))
    assert np.array_equal(tiles[1], whole[:16, 16:])
    assert (found.tiles, found.coverage) == (4, coverage(others, eye.vectors(tiles)))
    assert found.coverage_random == coverage_of_random(16, 4)
    assert found.diversity == vendi(eye.vectors(tiles) - others.mean(0))
    assert found.realism is None
    assert figures(shown, "cow", real, eye) is None
    assert figures(shown, "cat", None, eye) == Figures(4)
    assert mean_of([found, None, Figures(8)]) == Figures(6, *list(vars(found).values())[1:])


def test_images_that_are_gone_are_not_looked_at(tmp_path: Path, folder, small) -> None:
    from diffsel.data.images import open_data

    data = open_data(str(folder(cat=9)), small.data, 0)
    for i in range(3):
        (tmp_path / f"data/cat/{i}.png").unlink()
    assert look_at(data, "cat", Hand(), 0) is None  # six are left: no five neighbours among the others
    draw(tmp_path / "data/cat/0.png", 0)
    found = look_at(data, "cat", Hand(), 0)
    assert found
    assert len(found.rows) == 7
