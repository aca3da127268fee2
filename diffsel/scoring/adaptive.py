"""Which images need more draws: those that can still be selected, and whose score or box is not settled yet.

A pass may give every image a few draws and then, round by round, double the draws of the undecided ones alone (a race, as
in best-arm identification).  What is compared are an image's best patch scores, draw by draw, so that every bound comes
from the image's own scatter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ..settings.sections import PatchSettings, ScoringSettings
from .patches import estimate, patch_scores

DrawMaps = Float[np.ndarray, "n 3 h w"]  # D, G and the null prompt's loss of each draw of an image


class Leader(NamedTuple):
    """An image's best patch: mean and standard error of its score, and its lead over the best patch that is half a patch away
    or more, in standard errors (infinite where there is none)."""

    mean: float
    error: float
    lead: float


def undecided(leaders: Sequence[Leader], scoring: ScoringSettings) -> NDArray[np.bool_]:
    """Images of one class that deserve more draws.

    Let k = ``adaptive_keep`` x images.  An image is out if its upper bound lies below the k-th largest lower bound, and in
    if its lower bound lies above all upper bounds but k - 1.  In between it is undecided; so is an image that is not out
    and whose best patch does not lead the best one elsewhere by ``adaptive_z`` standard errors of their difference.
    """
    mean, error, clear = np.array(leaders).T
    z, k = scoring.adaptive_z, min(len(leaders), max(1, math.ceil(scoring.adaptive_keep * len(leaders))))
    low, high = mean - z * error, mean + z * error
    out = high < np.sort(low)[-k]
    surely_in = low > np.sort(high)[-k - 1] if k < len(leaders) else np.ones(len(leaders), bool)
    return ~out & (~surely_in | (clear < z))


def _draw_scores(
    maps: DrawMaps, size: tuple[int, int], patches: PatchSettings, scoring: ScoringSettings
) -> Float[np.ndarray, "n rows cols"]:
    """What each draw gives to the patch scores: n T - (n - 1) T', with T the scores of all n draws and T' of the others.

    These pseudo-values (Tukey's jackknife) are the draw's own scores where an estimator is linear in the maps, and tell the
    scatter of T where it is not, as the gated one.  Neighbouring patches differ little: a coarse stride is enough to see
    whether another place competes.
    """
    single = scoring.model_copy(update={"bins": 1})
    every, stride, n = patches.model_copy(update={"t_range": None}), max(patches.stride, min(size) // 32), len(maps)

    def scores(mean: Float[np.ndarray, "*n 3 h w"], draws: int) -> Float[np.ndarray, "*n rows cols"]:
        d, g, null = np.moveaxis(mean[..., None, :, :], -4, 0)
        return patch_scores(estimate(d, g, every, single, null, draws), *size, patches.patch_size or 0, stride)[0]

    total = maps.sum(0, dtype=np.float64)
    whole = scores(total / n, n)
    return n * whole - (n - 1) * scores((total - maps) / (n - 1), n - 1) if n > 1 else whole[None]


def leader(maps: DrawMaps, size: tuple[int, int], patches: PatchSettings, scoring: ScoringSettings) -> Leader:
    """Of an image of (height, width) pixels; a function of its own draws alone."""
    scores = _draw_scores(maps, size, patches, scoring)
    n, total = len(scores), scores.mean(0)
    row, col = np.unravel_index(int(total.argmax()), total.shape)
    best = scores[:, row, col]
    error = float(best.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    step = max(patches.stride, min(size) // 32)
    away = (patches.patch_size or max(size)) / 2 / step
    rows, cols = np.ogrid[: total.shape[0], : total.shape[1]]
    far = (abs(rows - row) >= away) | (abs(cols - col) >= away)
    if not far.any():
        return Leader(float(total[row, col]), error, math.inf)
    far_row, far_col = np.unravel_index(int(np.where(far, total, -np.inf).argmax()), total.shape)
    lead = best - scores[:, far_row, far_col]
    spread = lead.std(ddof=1) / math.sqrt(n) if n > 1 else math.inf
    return Leader(float(total[row, col]), error, float(lead.mean() / spread) if spread > 0 else math.inf)
