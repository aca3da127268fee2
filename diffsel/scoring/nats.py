"""Scores with a unit: log p(x | label) - log p(x), in nats, within the window of timesteps (Kong et al., arXiv 2310.07972).

    log p(x|c) - log p(x) = 1/2 * integral of E[ |a - eps|^2 - |b - eps|^2 ] d(lambda),   lambda = log SNR

with sums over latent elements.  SD's timesteps are nearly uniform in lambda, so a mean of -D over t, times elements times half
of the window's width in lambda, is that integral.  Over K balanced labels its mean over images is at most ln K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def log_snr(alphas: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """lambda of each timestep, from the noise table's cumulated alphas.

    >>> log_snr(np.array([0.5])).tolist()
    [0.0]
    """
    return np.log(alphas / (1 - alphas))


def nats_per_unit(window: tuple[float, float], elements: int) -> float:
    """What a mean of -D over a ``window`` of log-SNR (its two ends) is multiplied with to be nats.

    ``elements``: of a latent, channels times height times width.

    >>> nats_per_unit((3.0, 0.0), 100)
    150.0
    """
    return elements * abs(window[0] - window[1]) / 2


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
