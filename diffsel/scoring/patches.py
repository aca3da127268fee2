"""Map -> patch scores -> boxes (paper 3.1), straight from latent cells.

Upsampling a map to pixels and averaging it over a patch are both linear, so the score of a patch is a weighted sum
of latent cells, and the weights split into one vector for its rows and one for its columns.  Nothing of image size
is ever built.  Boxes are (top, left, height, width) in pixels of the resized image.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ..settings.errors import ConfigError
from ..settings.sections import PatchSettings, ScoringSettings

Box = tuple[int, int, int, int]


def estimate(
    differential: Float[np.ndarray, "*n B h w"],
    gap: Float[np.ndarray, "*n B h w"],
    settings: PatchSettings,
    scoring: ScoringSettings,
    null: Float[np.ndarray, "*n B h w"] | None = None,
    draws: int | None = None,
    rivals: Float[np.ndarray, "K B h w"] | None = None,
    nats: float = 0.0,
) -> Float[np.ndarray, "*n h w"]:
    """The map that scores patches, HIGHER = more class-relevant: the chosen estimator, averaged over the chosen bins.

    G says sharply where the words change anything, -D noisily whether they fit.  So ``combined`` blurs D, which keeps its
    mean (mirrored edges) and most of what it knows about a region, and loses most of its noise.  ``gated`` multiplies G with
    how sure blurred -D is to be positive; it needs the ``null`` prompt's loss, and how many ``draws`` the image had.  With the
    differential maps of ``rivals``, it multiplies G with the label's ``share`` among them, at a scale of c ``nats``: what turns
    a mean of -D over a square of the image's shorter side into nats.
    """
    bins = chosen_bins(settings, scoring)
    d, g = (m[..., bins, :, :].astype(np.float64).mean(-3) for m in (differential, gap))
    sigma = settings.blur * min(d.shape[-2:])
    match settings.estimator:
        case "differential":
            return -d
        case "gap":
            return g
        case "combined":
            return (1 - settings.weight) * g - settings.weight * _blur(d, sigma)
        case "gated":
            if rivals is not None:
                return g * share(d, rivals[:, bins].astype(np.float64).mean(1), sigma, settings.gate * nats)
            if null is None:
                raise ConfigError("patches.estimator = gated needs the null prompt's loss map")
            count = (draws or scoring.draws) * len(bins) / scoring.bins
            noise = (gap[..., bins, :, :].astype(np.float64) * null[..., bins, :, :]).mean(-3) / count
            return g * certainty(d, noise, sigma, settings.gate)


def certainty(
    d: Float[np.ndarray, "*n h w"], variance: Float[np.ndarray, "*n h w"], sigma: float, gate: float
) -> Float[np.ndarray, "*n h w"]:
    """Phi(c z) with z = -blur(D) over the deviation of its noise: near 1 where the label surely lowers the loss.

    ``variance`` of D in each cell, up to a factor; a Gaussian of ``sigma`` cells divides that of white noise by 4 pi sigma^2
    (by less for a narrow one: never by less than 1).
    """
    from scipy.special import ndtr

    blurred = _blur(variance, sigma / math.sqrt(2)) / max(1.0, 4 * math.pi * sigma**2)
    return ndtr(-gate * _blur(d, sigma) / np.sqrt(np.maximum(blurred, np.finfo(np.float64).tiny)))


def share(
    d: Float[np.ndarray, "h w"], rivals: Float[np.ndarray, "K h w"], sigma: float, scale: float
) -> Float[np.ndarray, "h w"]:
    """The label's share among itself, its ``rivals`` and the null prompt: softmax of -``scale`` blur(D).

    With a ``scale`` that turns a mean of -D into nats, and without the null prompt, it is the label's posterior.  The null
    prompt, whose D is 0, costs nothing and stands for all labels that were not asked.
    """
    from scipy.special import softmax

    return softmax([-scale * _blur(each, sigma) for each in (d, *rivals, np.zeros_like(d))], axis=0)[0]


def guided(differential: Float[np.ndarray, " n"], gap: Float[np.ndarray, " n"], guidance: float) -> Float[np.ndarray, " n"]:
    """How much less loss the *guided* prediction a + s (b - a) has than the null prediction a, over s.

    |a - eps|^2 - |a + s (b - a) - eps|^2 = s (-D - (s - 1) |a - b|^2): no further forward is needed for any scale s.  At
    s = 1 it is -D, the paper's.  At the scales that people sample with (Ho & Salimans, arXiv 2207.12598: classifier-free
    guidance; 7.5 in Stable Diffusion) it is high only where even the exaggerated class explains the noise and the label
    has little to add: in typical pictures of the class.
    """
    return -differential - (guidance - 1) * gap


def _blur(cells: Float[np.ndarray, "*n h w"], sigma: float) -> Float[np.ndarray, "*n h w"]:
    from scipy.ndimage import gaussian_filter  # a quarter of a second, which looking at a run can do without

    return gaussian_filter(cells, (*[0] * (cells.ndim - 2), sigma, sigma), mode="reflect")


def chosen_bins(settings: PatchSettings, scoring: ScoringSettings) -> list[int]:
    """Stored bins inside ``t_range``.  Raises ConfigError where its ends are not edges of stored bins."""
    if settings.t_range is None:
        return list(range(scoring.bins))
    digits, way = (2, -1) if scoring.log_snr else (6, 1)  # log-SNR falls
    edges = np.round(scoring.bin_edges(), digits)
    first, last = np.round(settings.t_range, digits)
    if first not in edges or last not in edges or way * first >= way * last:
        stored = ", ".join(f"{edge:g}" for edge in edges)
        raise ConfigError(f"patches.t_range = {settings.t_range}: must start and end at two of the stored edges {stored}")
    return [i for i in range(scoring.bins) if way * edges[i] >= way * first and way * edges[i + 1] <= way * last]


def patch_scores(
    cells: Float[np.ndarray, "*n h w"], height: int, width: int, patch: int, stride: int = 1
) -> tuple[Float[np.ndarray, "*n rows cols"], NDArray[np.int64], NDArray[np.int64]]:
    """Mean of the upsampled map over every patch, with the top and left pixel of each row and column of scores.

    >>> patch_scores(np.array([[0.0, 0.0], [0.0, 1.0]]), 16, 16, patch=8, stride=8)[0].tolist()
    [[0.015625, 0.109375], [0.109375, 0.765625]]

    Equal to bilinear upsampling (align_corners False) to ``height`` x ``width`` and a ``patch`` x ``patch`` average
    pool.  ``patch`` 0 is the whole image.
    """
    tops, lefts = positions(height, patch or height, stride), positions(width, patch or width, stride)
    rows = _weights(cells.shape[-2], height, patch or height, stride)
    cols = _weights(cells.shape[-1], width, patch or width, stride)
    return rows @ cells.astype(np.float64) @ cols.T, tops, lefts


def box_mean(cells: Float[np.ndarray, "h w"], height: int, width: int, box: Box) -> float:
    """Mean of the upsampled map over one box, as ``patch_scores`` has it."""
    top, left, tall, wide = box
    rows, cols = _weights(cells.shape[0], height, tall, 1), _weights(cells.shape[1], width, wide, 1)
    return float(rows[top] @ cells.astype(np.float64) @ cols[left])


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

    >>> best_boxes(np.array([[0.0, 0.0], [0.0, 1.0]]), 16, 16, PatchSettings(patch_size=8))
    [((8, 8, 8, 8), 0.765625)]

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
