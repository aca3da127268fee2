"""Which images need more draws: those that may still be among the best of their class.

A pass may give every image a few draws and then, round by round, double those of the images that are still in the race (as
in best-arm identification).  It is about what ranks (``selection.rank_by``), at each image's best box.  An image that is in
the race to its end has the maps of a pass with all draws: its rank, its box and its vector are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ..settings.sections import PatchSettings, ScoringSettings, SelectionSettings
from .patches import estimate, guided, patch_scores

DrawMaps = Float[np.ndarray, "n 3 h w"]  # D, G and the null prompt's loss of each draw of an image


class Standing(NamedTuple):
    """Mean over an image's draws of what ranks it, their deviation, and how many they are."""

    mean: float
    deviation: float
    draws: int


def in_race(standings: Sequence[Standing], scoring: ScoringSettings) -> NDArray[np.bool_]:
    """Which images of one class may be among its best.

    Let k = ``adaptive_keep`` x images.  An image is out if its upper bound lies below the k-th largest lower bound.  Bounds are
    ``adaptive_z`` standard errors from the mean, or what of Student's t is as rare where draws are few; errors are those
    against the mean of all draws, of which these are a part (Cochran, Sampling Techniques, 1977, eq. 2.20).
    """
    from scipy.special import ndtr, stdtrit

    mean, deviation, draws = np.array(standings).T
    error = deviation * np.sqrt(np.maximum(0, 1 / draws - 1 / scoring.rounds()[-1]))
    reach = stdtrit(draws - 1, ndtr(scoring.adaptive_z)) * error
    k = max(1, math.ceil(scoring.adaptive_keep * len(mean) - 1e-9))
    return mean + reach >= np.sort(mean - reach)[-k]


def standing(
    maps: DrawMaps, size: tuple[int, int], patches: PatchSettings, scoring: ScoringSettings, selection: SelectionSettings
) -> Standing:
    """Of an image of (height, width) pixels; a function of its own draws alone, two at least.

    The guided loss is linear in the maps, so each draw has its own.  Where the estimator ranks, a draw's value is
    n T - (n - 1) T', with T the score of all n draws and T' of the others: these pseudo-values (Tukey's jackknife) are the
    draw's own score where an estimator is linear in the maps, and tell the scatter of T where it is not, as the gated one.
    """
    single = scoring.model_copy(update={"bins": 1})
    every, n = patches.model_copy(update={"t_range": None}), len(maps)
    place = (*size, patches.patch_size or 0, max(patches.stride, min(size) // 32))  # its neighbours differ little

    def scores(mean: Float[np.ndarray, "*n 3 h w"], draws: int) -> Float[np.ndarray, "*n rows cols"]:
        d, g, null = np.moveaxis(mean[..., None, :, :], -4, 0)
        return patch_scores(estimate(d, g, every, single, null, draws), *place)[0]

    total = maps.sum(0, dtype=np.float64)
    whole = scores(total / n, n)
    row, col = np.unravel_index(int(whole.argmax()), whole.shape)
    if selection.rank_by == "guided":
        each = patch_scores(guided(maps[:, 0], maps[:, 1], selection.guidance), *place)[0][:, row, col]
    else:
        each = n * whole[row, col] - (n - 1) * scores((total - maps) / (n - 1), n - 1)[:, row, col]
    return Standing(float(each.mean()), float(each.std(ddof=1)), n)
