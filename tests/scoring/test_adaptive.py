"""Adaptive draws: who stays in the race, and that those who get all draws have the maps of a full pass."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from pictures import PROMPTS, picture, score

from diffsel.scoring import maps as maps_module
from diffsel.scoring.adaptive import Standing, in_race, standing
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.maps import Asked, score_adaptively
from diffsel.settings.sections import PatchSettings, ScoringSettings, SelectionSettings

WHOLE = PatchSettings(patch_size=0, estimator="gap")
SETTINGS = ScoringSettings(draws=2, bins=1, adaptive_draws=8, adaptive_keep=0.25)


def image(mean: float, spread: float, draws: int = 16, seed: int = 0) -> np.ndarray:
    """D, G and the null loss of an image whose whole-image scores scatter by ``spread`` around exactly ``mean``."""
    scatter = np.random.default_rng(seed).normal(size=draws)
    scatter = (scatter - scatter.mean()) / scatter.std(ddof=1) * spread
    gap = np.broadcast_to((mean + scatter)[:, None, None], (draws, 4, 4))
    return np.stack([np.zeros_like(gap), gap, np.ones_like(gap)], 1)


def asked(images: list[tuple[str, np.ndarray]], unit: str = "") -> list[Asked]:
    return [Asked(key, pixels, PROMPTS, unit) for key, pixels in images]


BY_SCORE, GUIDED = SelectionSettings(rank_by="estimator"), SelectionSettings(guidance=3)


def race(
    images: list[np.ndarray], keep: float, z: float = 2.0, selection: SelectionSettings = BY_SCORE, most: int = 64
) -> list[bool]:
    settings = ScoringSettings(draws=2, bins=1, adaptive_draws=most, adaptive_keep=keep, adaptive_z=z)
    return list(in_race([standing(each, (32, 32), WHOLE, settings, selection) for each in images], settings))


def test_the_bounds_are_means_and_standard_errors() -> None:
    """Of 64 draws 16 are made: error 0.4 sqrt(1/16 - 1/64) = 0.0866.  Student's t with 15 degrees of freedom lies below 1.0345
    as often as a normal variable below 1.  Best two of five: 3.83 reaches 4 by 2 x 0.0896 = 0.1792, 3.8 does not."""
    for third, on in ((3.83, True), (3.8, False)):
        images = [image(m, 0.4, seed=i) for i, m in enumerate((5.0, 4.0, third, 1.0, 0.9))]
        assert race(images, 0.4, z=1, most=64) == [True, True, on, False, False]
    assert race(images, 0.4, z=8, most=64) == [True] * 5
    assert race(images, 0.4, z=8, most=16) == [True, True, False, False, False]  # all draws are made: nothing is unsure


def test_without_scatter_the_best_alone_stay() -> None:
    assert race([image(m, 0.0) for m in (3, 2, 1)], 0.3) == [True, False, False]


def test_the_race_is_about_what_ranks() -> None:
    """The gap ranks upwards as the estimator, downwards as the guided loss, -D - 2 G."""
    images = [image(m, 0.1, seed=i) for i, m in enumerate((3.0, 2.0, 1.0))]
    assert race(images, 0.3) == [True, False, False]
    assert race(images, 0.3, selection=GUIDED) == [False, False, True]
    found = standing(images[0], (32, 32), WHOLE, SETTINGS, GUIDED)
    assert found == pytest.approx((-2 * 3.0, 2 * 0.1, 16))


def test_the_box_is_the_estimators_wherever_the_rank_is_better() -> None:
    """G is high above, -D below: the guided loss is taken in the box that G chose."""
    d, gap = np.zeros((2, 16, 8, 8))
    gap[:, :4], d[:, 4:] = 1, -5
    maps = np.stack([d, gap, np.ones_like(gap)], 1)
    patches = PatchSettings(patch_size=8, estimator="gap")
    assert standing(maps, (32, 32), patches, SETTINGS, GUIDED).mean == pytest.approx(-2.0)


@pytest.mark.parametrize("draws", [3, 12, 16])
def test_the_limit_must_be_reached_by_doubling(draws: int) -> None:
    with (
        pytest.raises(ValueError, match=rf"scoring.adaptive_draws \({draws}\) must be scoring.draws \(6, at least 2\)")
        if (draws != 12)
        else np.errstate()
    ):
        assert ScoringSettings(draws=6, adaptive_draws=draws).rounds() == [6, 12]


def test_adaptive_maps_are_those_of_a_pass_with_as_many_draws(tiny: Diffusion, monkeypatch) -> None:
    images = [(str(i), picture(i, 64, 64 + 24 * (i % 2))) for i in range(6)]
    rounds = [np.array([True, True, True, False, False, True]), np.array([True, False, True, False, False, False])]
    monkeypatch.setattr("diffsel.scoring.maps.in_race", lambda *_: rounds.pop(0))
    found = {images[i][0]: maps for i, maps in score_adaptively(Scorer(tiny, SETTINGS, 0, 8), asked(images), WHOLE, BY_SCORE)}
    assert {key: maps.draws for key, maps in found.items()} == {"0": 8, "1": 4, "2": 8, "3": 2, "4": 2, "5": 4}
    for draws in (2, 4, 8):
        fixed = score(tiny, images, settings=SETTINGS.model_copy(update={"draws": draws, "adaptive_draws": None}))
        for key in (key for key, maps in found.items() if maps.draws == draws):
            for name in ("differential", "gap", "null"):
                assert np.array_equal(getattr(found[key], name), getattr(fixed[key], name))


def test_adaptive_scoring_does_not_depend_on_the_order_of_images(tiny: Diffusion) -> None:
    images = [(str(i), picture(i)) for i in range(5)]
    patches = PatchSettings(patch_size=32)
    runs = []
    for order in (images, images[::-1]):
        found = {order[i][0]: maps for i, maps in score_adaptively(Scorer(tiny, SETTINGS, 0, 8), asked(order), patches, GUIDED)}
        runs.append({key: (maps.draws, maps.gap.tobytes()) for key, maps in found.items()})
    assert runs[0] == runs[1]


def test_bounds_are_found_beside_the_draws_and_once_for_each_count_of_them(tiny: Diffusion, monkeypatch) -> None:
    """Whoever launches draws ranks nothing, and images that are settled are not ranked again."""
    ranked, threads = Counter[int](), set[int]()
    original = maps_module.standing

    def noted(maps: np.ndarray, *rest: object) -> Standing:
        ranked.update([len(maps)])
        threads.add(threading.get_ident())
        return original(maps, *rest)

    monkeypatch.setattr(maps_module, "standing", noted)
    images = [(str(i), picture(i)) for i in range(6)]
    found = dict(score_adaptively(Scorer(tiny, SETTINGS, 0, 8), asked(images), WHOLE, BY_SCORE))
    again = sum(maps.draws > 2 for maps in found.values())
    assert 0 < again < 6
    assert ranked == {2: 6, 4: again}
    assert threading.get_ident() not in threads
