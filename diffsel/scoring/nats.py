"""Scores with a unit: log p(x | label) - log p(x), in nats, within the window of timesteps (Kong et al., arXiv 2310.07972).

    log p(x|c) - log p(x) = 1/2 * integral of E[ |a - eps|^2 - |b - eps|^2 ] d(lambda),   lambda = log SNR

with sums over latent elements.  SD's timesteps are nearly uniform in lambda, so a mean of -D over t, times elements times half
of the window's width in lambda, is that integral.  Over K balanced labels its mean over images is at most ln K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float


def log_snr(alphas: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """lambda of each timestep, from the noise table's cumulated alphas.

    >>> log_snr(np.array([0.5])).tolist()
    [0.0]
    """
    return np.log(alphas / (1 - alphas))


@cache
def _table() -> Float[np.ndarray, " steps"]:
    alphas = cumulated_alphas({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
    assert alphas is not None
    return log_snr(alphas)


def stable_diffusion(share: float) -> float:
    """lambda at this share of Stable Diffusion's 1000 steps: the scale on which windows are told to every prior.

    >>> [round(stable_diffusion(share), 2) for share in (0.1, 0.7)]
    [2.13, -2.41]
    """
    return float(_table()[min(round(share * 1000), 999)])


def nats_per_unit(window: tuple[float, float], elements: int) -> float:
    """What a mean of -D over a ``window`` of log-SNR (its two ends) is multiplied with to be nats.

    ``elements``: of a latent, channels times height times width.

    >>> nats_per_unit((3.0, 0.0), 100)
    150.0
    """
    return elements * abs(window[0] - window[1]) / 2


def cumulated_alphas(scheduler: Mapping[str, Any]) -> Float[np.ndarray, " steps"] | None:
    """The noise table that a scheduler's configuration tells, as diffusers makes it; None for a schedule not known here.

    >>> cumulated_alphas({"trained_betas": [0.5, 0.5]}).tolist()
    [0.5, 0.25]
    """
    steps, kind = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule", "linear")
    low, high = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    tables = {"linear": np.linspace(low, high, steps), "scaled_linear": np.linspace(low**0.5, high**0.5, steps) ** 2}
    betas = scheduler.get("trained_betas") or tables.get(kind)
    if betas is None:
        return None
    alphas = np.cumprod(1 - np.asarray(betas, np.float64))
    if scheduler.get("rescale_betas_zero_snr"):  # Lin et al., arXiv 2305.08891
        first, last = np.sqrt(alphas[[0, -1]])
        alphas = ((np.sqrt(alphas) - last) * first / (first - last)) ** 2
    return alphas


def unit_of(
    scheduler: Mapping[str, Any], vae: Mapping[str, Any], edges: Sequence[float], in_log_snr: bool = False
) -> dict[str, float | list[float]] | None:
    """What a run keeps so that its scores have a unit: latent ``elements`` a pixel, and ``log_snr`` at the ``edges`` of its
    bins (shares of the steps, or themselves ``in_log_snr``); None where the model's configuration does not tell."""
    shares, alphas = np.asarray(edges, np.float64), cumulated_alphas(scheduler)
    with np.errstate(divide="ignore"):
        if in_log_snr:
            lam = shares
        elif "Flow" in scheduler.get("_class_name", ""):  # a straight path from image to noise
            lam = 2 * np.log((1 - shares) / shares)
        elif alphas is not None:
            lam = log_snr(alphas)[np.minimum((shares * len(alphas)).round().astype(int), len(alphas) - 1)]
        else:
            return None
    if not ({"latent_channels", "block_out_channels"} <= vae.keys() and np.isfinite(lam).all()):  # pure noise ends no window
        return None
    elements = vae["latent_channels"] / 4 ** (len(vae["block_out_channels"]) - 1)
    return {"elements": float(elements), "log_snr": [round(float(value), 6) for value in lam]}


def auroc(right: Sequence[float], wrong: Sequence[float]) -> tuple[float, float]:
    """How often a right label's score is above a wrong one's (ties half), and its standard error (Hanley & McNeil 1982).

    >>> auroc([3, 4, 5], [1, 2, 3])[0]
    0.9444444444444444
    """
    from scipy.stats import rankdata

    n, m = len(right), len(wrong)
    ranks = rankdata([*right, *wrong])[:n].sum()
    area = float((ranks - n * (n + 1) / 2) / (n * m))
    above, below = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n - 1) * (above - area**2) + (m - 1) * (below - area**2)
    return area, math.sqrt(max(0.0, variance) / (n * m))
