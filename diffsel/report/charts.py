"""Numbers -> places on paper: a histogram's bars, points in two dimensions, numbers as text.  The templates draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """Scores are tiny numbers: shown as multiples of 10^exponent, the same one all over a report."""

    exponent: int = 0
    decimals: int = 2

    @classmethod
    def of(cls, scores: Float[np.ndarray, " n"]) -> Scale:
        """Three digits of the large ones among these scores (their 95th percentile in size)."""
        size = float(np.quantile(np.abs(scores), 0.95)) if len(scores) else 0.0
        exponent = int(np.floor(np.log10(size))) if size > 0 else 0
        return cls(0, max(0, 2 - exponent)) if -1 <= exponent <= 2 else cls(exponent)

    @property
    def unit(self) -> str:
        """What multiplies the numbers shown; empty for 1."""
        return f"× 10{str(self.exponent).translate(SUPERSCRIPTS)}" if self.exponent else ""

    def text(self, score: float) -> str:
        return f"{score / 10.0**self.exponent:+.{self.decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class Histogram:
    """Counts in equal steps from ``low`` to ``high``: of all scores, and of the picked ones among them."""

    low: float
    high: float
    all: tuple[int, ...]
    picked: tuple[int, ...]

    @property
    def top(self) -> int:
        return max(self.all)


def histogram(scores: Float[np.ndarray, " n"], picked: Bool[np.ndarray, " n"], bins: int) -> Histogram:
    """Counts of ``scores`` (n > 0).  The last step includes its upper end."""
    low, high = float(scores.min()), float(scores.max())
    edges = np.linspace(low, high if high > low else low + (abs(low) or 1.0) * 1e-6, bins + 1)
    counts = [np.histogram(values, edges)[0] for values in (scores, scores[picked])]
    return Histogram(low, high, *(tuple(int(c) for c in each) for each in counts))


def tsne(vectors: Float[np.ndarray, "n channels"], seed: int) -> Float[np.ndarray, "n 2"] | None:
    """t-SNE (van der Maaten & Hinton 2008; paper Fig. 4), PCA start, each axis scaled to [0, 1].

    None for fewer than sixteen different vectors: there is nothing to lay out.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    points = np.ascontiguousarray(vectors, dtype=np.float32)
    if points.shape[1] < 2 or len(np.unique(points, axis=0)) < 16:
        return None
    with threadpool_limits(1):  # its sums depend on the number of threads
        fit = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", max_iter=500, random_state=seed % 2**32, n_jobs=1)
        places = fit.fit_transform(points).astype(np.float64)
    span = np.ptp(places, axis=0)
    return (places - places.min(0)) / np.where(span > 0, span, 1)


def evenly(count: int, limit: int, always: Sequence[int] = ()) -> Int[np.ndarray, " m"]:
    """At most about ``limit`` of the numbers below ``count``, evenly spread, and those that must be ``always`` among them."""
    spread = np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64) if count else np.zeros(0, np.int64)
    return np.union1d(spread, np.asarray(always, np.int64))
