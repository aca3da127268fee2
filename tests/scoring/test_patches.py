"""Patch scores equal upsampling and average pooling; boxes are the best ones that do not overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ndtri

from diffsel.scoring.nats import nats_per_unit
from diffsel.scoring.patches import best_boxes, box_mean, certainty, chosen_bins, estimate, guided, patch_scores, share
from diffsel.settings.errors import ConfigError
from diffsel.settings.sections import PatchSettings, ScoringSettings

SHAPES = [(32, 32, 256, 256), (32, 42, 256, 341), (40, 32, 320, 256), (16, 16, 64, 64), (4, 5, 33, 47), (1, 3, 8, 24)]


@pytest.mark.parametrize(("h", "w", "height", "width"), SHAPES)
@pytest.mark.parametrize("patch", [1, 5, 0.5, 0.875, "short"])
def test_scores_equal_upsample_and_average_pool(h: int, w: int, height: int, width: int, patch) -> None:
    size = min(height, width) if patch == "short" else patch if patch >= 1 else int(patch * min(height, width))
    cells = np.random.default_rng(0).normal(size=(h, w))
    full = F.interpolate(torch.from_numpy(cells)[None, None], (height, width), mode="bilinear", align_corners=False)
    expected = F.avg_pool2d(full, size, 1)[0, 0].numpy()
    scores, tops, lefts = patch_scores(cells, height, width, size)
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    strided, tops, lefts = patch_scores(cells, height, width, size, stride=3)
    np.testing.assert_allclose(strided, expected[np.ix_(tops, lefts)], atol=1e-12)
    assert (tops[-1], lefts[-1]) == (height - size, width - size)


def test_patch_zero_is_the_whole_image() -> None:
    cells = np.random.default_rng(1).normal(size=(4, 6))
    full = F.interpolate(torch.from_numpy(cells)[None, None], (32, 48), mode="bilinear", align_corners=False)
    (box, score), *more = best_boxes(cells, 32, 48, PatchSettings(patch_size=0, per_image=3))
    assert box == (0, 0, 32, 48)
    assert not more
    assert score == pytest.approx(full.mean().item())


def test_the_best_box_lies_on_the_bump() -> None:
    cells = np.zeros((16, 16))
    cells[10, 4] = 1.0
    ((top, left, *_), _), *_ = best_boxes(cells, 64, 64, PatchSettings(patch_size=16))
    assert top <= 42 <= top + 16
    assert left <= 18 <= left + 16


@pytest.mark.parametrize("stride", [1, 4, 7])
def test_k_boxes_do_not_overlap_and_come_best_first(stride: int) -> None:
    cells = np.random.default_rng(2).normal(size=(16, 20))
    found = best_boxes(cells, 64, 80, PatchSettings(patch_size=20, per_image=5, stride=stride))
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == patch_scores(cells, 64, 80, 20, stride)[0].max()
    for i, ((top, left, *_), _) in enumerate(found):
        for (other_top, other_left, *_), _ in found[:i]:
            assert abs(top - other_top) >= 20 or abs(left - other_left) >= 20


def test_fewer_boxes_where_no_more_fit() -> None:
    found = best_boxes(np.ones((8, 8)), 64, 64, PatchSettings(patch_size=32, per_image=9))
    assert [box for box, _ in found] == [
        (0, 0, 32, 32),
        (0, 32, 32, 32),
        (32, 0, 32, 32),
        (32, 32, 32, 32),
    ]  # ties: upper left first


def test_estimators_are_the_formulas_of_the_method() -> None:
    rng = np.random.default_rng(3)
    d, g = rng.normal(size=(3, 4, 5)).astype(np.float16), rng.random((3, 4, 5)).astype(np.float16)
    scoring = ScoringSettings(bins=3, draws=3)
    mean_d, mean_g = d.astype(float).mean(0), g.astype(float).mean(0)
    for settings, expected in (
        (PatchSettings(estimator="differential"), -mean_d),
        (PatchSettings(estimator="gap"), mean_g),
        (PatchSettings(estimator="combined", weight=0.25, blur=0), 0.75 * mean_g - 0.25 * mean_d),
        (PatchSettings(estimator="differential", t_range=(0.1, 0.5)), -d[:2].astype(float).mean(0)),
    ):
        np.testing.assert_allclose(estimate(d, g, settings, scoring), expected)


def test_the_blur_of_the_combined_estimator_is_a_gaussian_that_keeps_the_mean() -> None:
    """An impulse far from the edges becomes a sampled normal density; anywhere, nothing is lost."""
    scoring, settings = ScoringSettings(bins=1, draws=1), PatchSettings(estimator="combined", weight=1.0, blur=0.1)
    d = np.zeros((1, 20, 24))
    d[0, 10, 12] = 1
    y, x = np.mgrid[:20, :24]
    bell = np.exp(-((y - 10) ** 2 + (x - 12) ** 2) / (2 * 2.0**2))  # 0.1 of the shorter side
    np.testing.assert_allclose(-estimate(d, d, settings, scoring), bell / bell.sum(), atol=2e-4)
    noise = np.random.default_rng(0).normal(size=(1, 20, 24))
    np.testing.assert_allclose(-estimate(noise, noise, settings, scoring).mean(), noise.mean(), atol=1e-12)


def test_the_gated_estimator_is_the_gap_where_the_differential_is_surely_negative() -> None:
    """On even maps no blur matters: G Phi(c z), z = -D / sqrt(V / (4 pi sigma^2)), V = mean of G times null over the draws."""
    scoring, settings = ScoringSettings(bins=3, draws=6), PatchSettings(estimator="gated", gate=0.5, blur=0.125)
    gap, null = np.array([0.2, 0.4, 0.6]), np.array([0.9, 0.5, 0.1])
    even = np.ones((1, 16, 16))
    for d, draws in ((-0.003, 6), (0.003, 6), (-0.003, 24)):
        z = -d / math.sqrt((gap * null).mean() / draws / (4 * math.pi * 2.0**2))
        expected = gap.mean() * (1 + math.erf(0.5 * z / math.sqrt(2))) / 2
        maps = [(np.full(3, d)[:, None, None] * even), gap[:, None, None] * even, settings, scoring, null[:, None, None] * even]
        np.testing.assert_allclose(estimate(*maps, draws), expected, rtol=1e-12)  # type: ignore[arg-type]
    two = settings.model_copy(update={"t_range": (0.1, 0.5)})  # two of three bins have two thirds of the draws
    z = 0.003 / math.sqrt((gap[:2] * null[:2]).mean() / 4 / (4 * math.pi * 2.0**2))
    expected = gap[:2].mean() * (1 + math.erf(0.5 * z / math.sqrt(2))) / 2
    found = estimate(-0.003 * np.ones((3, 16, 16)), gap[:, None, None] * even, two, scoring, null[:, None, None] * even)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_noise_after_the_blur_has_the_variance_that_the_gate_assumes() -> None:
    """White noise of a uniform deviation: z is then standard normal, far from the edges."""
    rng, sigma = np.random.default_rng(0), 2.0
    noise = rng.normal(0, 0.3, (400, 32, 32))
    z = np.stack([ndtri(certainty(d, np.full(d.shape, 0.09), sigma, 1.0)) for d in noise])[:, 12:20, 12:20]
    assert z.std() == pytest.approx(1, abs=0.05)


def test_the_guided_difference_is_that_of_the_guided_prediction() -> None:
    """From the losses themselves: |a - eps|^2 - |a + s (b - a) - eps|^2, over s."""
    rng = np.random.default_rng(5)
    eps, a, b = rng.normal(size=(3, 50, 4, 6, 5))  # three predictions: draws, channels, cells
    for s in (1.0, 3.0, 7.5):
        expected = (((a - eps) ** 2 - (a + s * (b - a) - eps) ** 2) / s).mean(1)
        d, g = ((b - eps) ** 2 - (a - eps) ** 2).mean(1), ((a - b) ** 2).mean(1)
        np.testing.assert_allclose(guided(d, g, s), expected, atol=1e-10)


@pytest.mark.parametrize("x", [-1.5, 0.2, 2.0])
def test_the_share_among_rivals_is_the_posterior_of_gaussian_classes(x: float) -> None:
    """Three classes N(m, s^2) of one number x.  Each denoiser is the posterior mean of the noise, the null's that of their
    mixture; losses are integrated over log-SNR and noise.  The null counts as one label more, with p(x): a third of the sum."""
    means, s, window = np.array([-1.0, 0.5, 2.0]), 0.6, (16.0, -16.0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)  # of standard normal noise
    losses = []
    for level in np.linspace(*window, 1500):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))
        z, v = alpha * x + sigma * nodes, alpha**2 * s**2 + sigma**2
        each = sigma * (z - alpha * means[:, None]) / v
        fits = np.exp(-((z - alpha * means[:, None]) ** 2) / (2 * v))
        null = (fits * each).sum(0) / np.maximum(fits.sum(0), 1e-300)
        losses.append([((told - nodes) ** 2 @ weights) / weights.sum() for told in (*each, null)])
    *labels, null = np.mean(losses, 0)
    maps = [np.full((4, 4), loss - null) for loss in labels]
    densities = np.exp(-((x - means) ** 2) / (2 * s**2))
    for own in range(3):
        others = np.array(maps[:own] + maps[own + 1 :])
        found = share(maps[own], others, sigma=1.0, scale=nats_per_unit(window, 1))
        np.testing.assert_allclose(found, densities[own] / (densities.sum() * 4 / 3), rtol=0.01, atol=1e-4)


def test_the_gate_of_rivals_is_a_softmax_of_blurred_losses() -> None:
    """On even maps no blur matters; only chosen bins count, and fewer rivals leave more to the label."""
    scoring, settings = ScoringSettings(bins=3, draws=6), PatchSettings(rivals=2, t_range=(0.1, 0.5), gate=0.25)
    even, gap = np.ones((3, 8, 8)), np.array([0.2, 0.4, 0.6])[:, None, None]
    d, one, two = -0.01 * even, -0.03 * even, 0.02 * even
    d[2], one[2] = 7, -7  # a bin that is not chosen
    for rivals in ([one, two], [two], []):
        nats = [0.25 * 100 * value for value in [0.01, *([0.03] if len(rivals) == 2 else []), *([-0.02] if rivals else []), 0]]
        expected = 0.3 * math.exp(nats[0]) / sum(map(math.exp, nats))
        stacked = np.array(rivals).reshape(-1, 3, 8, 8)
        found = estimate(d, gap * even, settings, scoring, rivals=stacked, nats=100.0)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_gated_estimator_needs_the_null_loss() -> None:
    with pytest.raises(ConfigError, match="null prompt"):
        estimate(np.zeros((3, 4, 4)), np.ones((3, 4, 4)), PatchSettings(estimator="gated"), ScoringSettings())


def test_the_mean_over_a_box_is_that_of_the_upsampled_map() -> None:
    cells = np.random.default_rng(4).normal(size=(5, 7))
    full = F.interpolate(torch.from_numpy(cells)[None, None], (40, 56), mode="bilinear", align_corners=False)[0, 0]
    assert box_mean(cells, 40, 56, (3, 10, 21, 17)) == pytest.approx(full[3:24, 10:27].mean().item())


def test_a_timestep_range_must_end_on_stored_edges() -> None:
    scoring = ScoringSettings(t_min=0.1, t_max=0.9, bins=4, draws=4)
    assert chosen_bins(PatchSettings(t_range=(0.3, 0.7)), scoring) == [1, 2]
    with pytest.raises(ConfigError, match=r"0\.1, 0\.3, 0\.5, 0\.7, 0\.9"):
        chosen_bins(PatchSettings(t_range=(0.2, 0.7)), scoring)
