"""Coresets against brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from diffsel.sets.coresets import CORESETS, herding, kcenter, medoids
from diffsel.sets.selection import Candidates, select_class
from diffsel.settings.sections import SelectionSettings

POINTS = np.random.default_rng(0).normal(size=(40, 5))


def test_herding_brings_the_mean_nearest_to_the_class_mean_step_by_step() -> None:
    chosen: list[int] = []
    for _ in range(12):
        left = [i for i in range(40) if i not in chosen]
        far = [np.linalg.norm(POINTS[[*chosen, i]].mean(0) - POINTS.mean(0)) for i in left]
        chosen.append(left[int(np.argmin(far))])
    assert herding(POINTS, 12).tolist() == chosen


def test_kcenter_takes_the_farthest_and_is_within_twice_the_best_radius() -> None:
    chosen = kcenter(POINTS, 6).tolist()
    for k in range(1, 6):
        far = np.linalg.norm(POINTS[:, None] - POINTS[chosen[:k]][None], axis=2).min(1)
        assert far[chosen[k]] == pytest.approx(far.max())
    line = np.arange(9.0)[:, None]  # the best three centres cover it within 1
    radius = np.abs(line - line[kcenter(line, 3)].T).min(1).max()
    assert radius <= 2


def test_medoids_are_the_real_vectors_nearest_to_well_separated_centres() -> None:
    rng = np.random.default_rng(1)
    centres = 10 * np.eye(4)
    points = np.concatenate([centres[g] + 0.1 * rng.normal(size=(5 + g, 4)) for g in range(4)])
    groups = np.repeat(np.arange(4), [5, 6, 7, 8])
    expected = []
    for g in (3, 2, 1, 0):  # the largest first
        own = np.flatnonzero(groups == g)
        expected.append(int(own[np.linalg.norm(points[own] - points[own].mean(0), axis=1).argmin()]))
    assert medoids(points, 4).tolist() == expected


@pytest.mark.parametrize("name", CORESETS)
def test_each_gives_as_many_different_vectors_as_asked(name: str) -> None:
    for points in (POINTS, np.zeros((6, 3)), np.repeat(POINTS[:2], 3, 0)):
        for count in (1, 4, len(points)):
            found = CORESETS[name](points, count, 0, 1)
            assert len(found) == len(set(found.tolist())) == count


@pytest.mark.parametrize("name", CORESETS)
def test_a_class_is_covered_and_says_so(name: str) -> None:
    pool = Candidates("cat", np.arange(40) * 2, np.zeros((40, 4), int), np.arange(40.0), POINTS)
    picks = select_class(pool, 2, 2, SelectionSettings(method=name), seed=0)  # type: ignore[arg-type]
    assert [p.row // 2 for p in picks] == CORESETS[name](POINTS, 8, 0, 4).tolist()
    assert {p.reason for p in picks} == {"coverage"}
    assert min(p.row // 2 for p in picks) < 20  # no shortlist by score: a coreset is of the whole class
