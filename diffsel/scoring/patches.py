"""Map -> patch scores -> boxes (paper 3.1), straight from latent cells.

Upsampling a map to pixels and averaging it over a patch are both linear, so the score of a patch is a weighted sum
of latent cells, and the weights split into one vector for its rows and one for its columns.  Nothing of image size
is ever built.  Boxes are (top, left, height, width) in pixels of the resized image.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ..settings.errors import ConfigError
from ..settings.sections import PatchSettings, ScoringSettings

Box = tuple[int, int, int, int]


def estimate(
    differential: Float[np.ndarray, "B h w"], gap: Float[np.ndarray, "B h w"], settings: PatchSettings, scoring: ScoringSettings
) -> Float[np.ndarray, "h w"]:
    """The map that scores patches, HIGHER = more class-relevant: the chosen estimator, averaged over the chosen bins.

    G says sharply where the words change anything, -D noisily whether they fit.  So ``combined`` blurs D, which keeps its
    mean (mirrored edges) and most of what it knows about a region, and loses most of its noise.
    """
    bins = chosen_bins(settings, scoring)
    d, g = (m[bins].astype(np.float64).mean(0) for m in (differential, gap))
    match settings.estimator:
        case "differential":
            return -d
        case "gap":
            return g
        case "combined":
            from scipy.ndimage import gaussian_filter  # a quarter of a second, which looking at a run can do without

            blurred = gaussian_filter(d, settings.blur * min(d.shape), mode="reflect")
            return (1 - settings.weight) * g - settings.weight * blurred


def chosen_bins(settings: PatchSettings, scoring: ScoringSettings) -> list[int]:
    """Stored bins inside ``t_range``.  Raises ConfigError where its ends are not edges of stored bins."""
    if settings.t_range is None:
        return list(range(scoring.bins))
    edges = np.round(scoring.bin_edges(), 6)
    low, high = np.round(settings.t_range, 6)
    if low not in edges or high not in edges or low >= high:
        stored = ", ".join(f"{edge:g}" for edge in edges)
        raise ConfigError(f"patches.t_range = {settings.t_range}: must start and end at two of the stored edges {stored}")
    return [i for i in range(scoring.bins) if edges[i] >= low and edges[i + 1] <= high]


def patch_scores(
    cells: Float[np.ndarray, "h w"], height: int, width: int, patch: int, stride: int = 1
) -> tuple[Float[np.ndarray, "rows cols"], NDArray[np.int64], NDArray[np.int64]]:
    """Mean of the upsampled map over every patch, with the top and left pixel of each row and column of scores.

    Equal to bilinear upsampling (align_corners False) to ``height`` x ``width`` and a ``patch`` x ``patch`` average
    pool.  ``patch`` 0 is the whole image.
    """
    tops, lefts = positions(height, patch or height, stride), positions(width, patch or width, stride)
    rows = _weights(cells.shape[0], height, patch or height, stride)
    cols = _weights(cells.shape[1], width, patch or width, stride)
    return rows @ cells.astype(np.float64) @ cols.T, tops, lefts


def positions(pixels: int, patch: int, stride: int) -> NDArray[np.int64]:
    """First pixels of the patches along one side; the last patch that fits is always among them."""
    last = pixels - patch
    if last < 0:
        raise ConfigError(f"patches.patch_size = {patch} does not fit into {pixels} pixels; 0 means the whole image")
    return np.unique(np.append(np.arange(0, last + 1, stride), last))


@lru_cache(maxsize=256)
def _weights(cells: int, pixels: int, patch: int, stride: int) -> Float[np.ndarray, "positions cells"]:
    """Row p: how much each latent cell counts in the mean over the pixels of patch p, along one side."""
    source = np.maximum((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0)
    low = np.minimum(source.astype(int), cells - 1)
    high = np.minimum(low + 1, cells - 1)
    upsample = np.zeros((pixels, cells))
    np.add.at(upsample, (np.arange(pixels), low), 1 - (source - low))
    np.add.at(upsample, (np.arange(pixels), high), source - low)
    sums = np.vstack([np.zeros(cells), upsample.cumsum(0)])
    starts = positions(pixels, patch, stride)
    return (sums[starts + patch] - sums[starts]) / patch


def best_boxes(
    cells: Float[np.ndarray, "h w"], height: int, width: int, settings: PatchSettings, gap: int = 0
) -> list[tuple[Box, float]]:
    """The ``per_image`` best boxes that do not overlap, with their scores, best first; fewer where no more fit.

    Greedy: the best patch, then the best of those at least ``gap`` pixels clear of it, and so on; equal scores: the
    upper, then the left one first.
    """
    size = settings.patch_size or 0
    scores, tops, lefts = patch_scores(cells, height, width, size, settings.stride)
    scores = scores.copy()
    found: list[tuple[Box, float]] = []
    while len(found) < settings.per_image and np.isfinite(scores).any():
        row, col = np.unravel_index(int(scores.argmax()), scores.shape)
        top, left = int(tops[row]), int(lefts[col])
        found.append(((top, left, size or height, size or width), float(scores[row, col])))
        near_rows = np.abs(tops - top) < (size or height) + gap
        near_cols = np.abs(lefts - left) < (size or width) + gap
        scores[np.ix_(near_rows, near_cols)] = -np.inf
    return found
