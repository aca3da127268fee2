"""Nats of a model whose posterior is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import DDPMScheduler
from scipy.integrate import trapezoid
from scipy.stats import mannwhitneyu

from diffsel.scoring.nats import auroc, cumulated_alphas, log_snr, nats_per_unit, unit_of


def test_the_integral_of_known_losses_is_the_log_ratio_of_two_gaussians() -> None:
    """x ~ N(0, 1) against N(1, 1): E over x of the second of log p1(x) - log p0(x) is 1/2, over the whole range of noise."""
    steps = np.linspace(-12, 12, 200_001)  # log SNR
    alphas = (1 / (1 + np.exp(steps)))[::1]  # falls as noise grows: lambda = -steps
    alpha, sigma = np.sqrt(alphas), np.sqrt(1 - alphas)
    # Optimal predictions of eps from z = alpha x + sigma eps differ by alpha sigma / (alpha^2 + sigma^2) * shift of the mean.
    difference = (alpha * sigma / (alpha**2 + sigma**2)) ** 2  # mean of (a - eps)^2 - (b - eps)^2 where b is right
    lam = log_snr(alphas)
    exact = 0.5 * float(trapezoid(difference, -lam))
    assert exact == pytest.approx(0.5, rel=1e-3)
    window = slice(100_000, 110_000)
    mean = float(difference[window].mean())
    unit = nats_per_unit((lam[100_000], lam[110_000]), 1)
    assert mean * unit == pytest.approx(0.5 * float(trapezoid(difference[window], -lam[window])), rel=1e-3)


def test_the_area_is_that_of_mann_and_whitney() -> None:
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 80).round(1)  # with ties
    area, error = auroc(right, wrong)
    assert area == pytest.approx(mannwhitneyu(right, wrong).statistic / (60 * 80))
    halves = [auroc(rng.normal(1, 1, 60), rng.normal(0, 1, 80))[0] for _ in range(300)]
    assert error == pytest.approx(np.std(halves), rel=0.25)


@pytest.mark.parametrize(
    "told",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "linear", "num_train_timesteps": 400},
        {"trained_betas": [0.1, 0.2, 0.3]},
        {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    ],
)
def test_the_noise_table_is_that_of_diffusers(told: dict) -> None:
    found = cumulated_alphas(told)
    expected = DDPMScheduler(**told).alphas_cumprod.numpy()
    assert found is not None
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-4)  # at zero SNR diffusers keeps a speck of signal


def test_a_table_that_is_not_known_and_a_window_without_end_have_no_unit() -> None:
    vae = {"latent_channels": 4, "block_out_channels": [1, 2, 3, 4]}
    stable = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    assert unit_of(stable, vae, [0.1, 0.7]) == {"elements": 4 / 64, "log_snr": pytest.approx([2.13, -2.41], abs=0.01)}
    flow = unit_of({"_class_name": "FlowMatchEulerDiscreteScheduler"}, vae, [0.25, 0.5])
    assert flow == {"elements": 4 / 64, "log_snr": pytest.approx([2 * np.log(3), 0])}
    assert unit_of({"beta_schedule": "squaredcos_cap_v2"}, vae, [0.1, 0.7]) is None
    assert unit_of(stable | {"rescale_betas_zero_snr": True}, vae, [0.1, 1.0]) is None
    assert unit_of(stable, {}, [0.1, 0.7]) is None
