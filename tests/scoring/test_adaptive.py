"""Adaptive draws: who is undecided, and that those who get all draws have the maps of a full pass."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from pictures import PROMPTS, picture, score

from diffsel.scoring import maps as maps_module
from diffsel.scoring.adaptive import Leader, leader, undecided
from diffsel.scoring.diffusion import Diffusion
from diffsel.scoring.draws import Scorer
from diffsel.scoring.maps import Asked, score_adaptively
from diffsel.settings.sections import PatchSettings, ScoringSettings

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


def race(images: list[np.ndarray], keep: float, z: float = 2.0, patches: PatchSettings = WHOLE) -> list[bool]:
    settings = ScoringSettings(draws=2, bins=1, adaptive_draws=4, adaptive_keep=keep, adaptive_z=z)
    return list(undecided([leader(each, (32, 32), patches, settings) for each in images], settings))


def test_the_bounds_are_means_and_standard_errors() -> None:
    """Error 0.4 / sqrt(16) = 0.1.  Best two of five: 5 and 4 are in, 1 is out; 3.7 overlaps 4 only at z > 1.5."""
    images = [image(m, 0.4, seed=i) for i, m in enumerate((5.0, 4.0, 3.7, 1.0, 0.9))]
    assert race(images, 0.4, z=1.4) == [False] * 5
    assert race(images, 0.4, z=1.6) == [False, True, True, False, False]
    assert race(images, 0.4, z=7.0) == [True, True, True, False, False]


def test_without_scatter_all_is_decided() -> None:
    assert race([image(m, 0.0) for m in (3, 2, 1)], 0.3) == [False] * 3


def test_one_that_all_want_is_raced_for_its_box_alone() -> None:
    """Two places of an image compete: the box is undecided although the image is surely in."""
    rng, patches = np.random.default_rng(1), PatchSettings(patch_size=16, estimator="gap")

    def places(lead: float) -> np.ndarray:
        gap = np.zeros((16, 8, 8))
        gap[:, 1:3, 1:3] = 1 + lead + rng.normal(size=(16, 1, 1)) * 0.1
        gap[:, 5:7, 5:7] = 1 + rng.normal(size=(16, 1, 1)) * 0.1
        return np.stack([np.zeros_like(gap), gap, np.ones_like(gap)], 1)

    assert race([places(0.0), places(1.0)], 1.0, patches=patches) == [True, False]


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
    monkeypatch.setattr("diffsel.scoring.maps.undecided", lambda *_: rounds.pop(0))
    found = {images[i][0]: maps for i, maps in score_adaptively(Scorer(tiny, SETTINGS, 0, 8), asked(images), WHOLE)}
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
        found = {order[i][0]: maps for i, maps in score_adaptively(Scorer(tiny, SETTINGS, 0, 8), asked(order), patches)}
        runs.append({key: (maps.draws, maps.gap.tobytes()) for key, maps in found.items()})
    assert runs[0] == runs[1]


def test_bounds_are_found_beside_the_draws_and_once_for_each_count_of_them(tiny: Diffusion, monkeypatch) -> None:
    """Whoever launches draws ranks nothing, and images that are settled are not ranked again."""
    ranked, threads = Counter[int](), set[int]()
    original = maps_module.leader

    def noted(maps: np.ndarray, *rest: object) -> Leader:
        ranked.update([len(maps)])
        threads.add(threading.get_ident())
        return original(maps, *rest)

    monkeypatch.setattr(maps_module, "leader", noted)
    images = [(str(i), picture(i)) for i in range(6)]
    found = dict(score_adaptively(Scorer(tiny, SETTINGS, 0, 8), asked(images), WHOLE))
    again = sum(maps.draws > 2 for maps in found.values())
    assert 0 < again < 6
    assert ranked == {2: 6, 4: again}
    assert threading.get_ident() not in threads
