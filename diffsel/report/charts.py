"""Numbers -> places on paper: a histogram's bars, points in two dimensions, numbers as text.  The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """Scores are means of tiny numbers: shown in nats of a patch where their unit is known (``factor``), and as multiples of
    10^exponent, the same one all over a report."""

    exponent: int = 0
    decimals: int = 2
    factor: float = 1.0
    name: str = ""

    @classmethod
    def of(cls, scores: Float[np.ndarray, " n"], nats: float | None = None) -> Scale:
        """Three digits of the large ones among these scores (their 95th percentile in size); ``nats``: of a score of 1."""
        factor, name = (nats, "nats") if nats else (1.0, "")
        size = factor * float(np.quantile(np.abs(scores), 0.95)) if len(scores) else 0.0
        exponent = int(np.floor(np.log10(size))) if size > 0 else 0
        return cls(0, max(0, 2 - exponent), factor, name) if -1 <= exponent <= 2 else cls(exponent, 2, factor, name)

    @property
    def unit(self) -> str:
        """What multiplies the numbers shown, and their unit; empty for 1."""
        power = f"× 10{str(self.exponent).translate(SUPERSCRIPTS)}" if self.exponent else ""
        return f"{power} {self.name}".strip()

    def shown(self, score: float | Float[np.ndarray, " n"]) -> Any:
        """The number that stands for a score, or for each of many."""
        return score * self.factor / 10.0**self.exponent

    def text(self, score: float) -> str:
        return f"{self.shown(score):+.{self.decimals}f}".replace("-", "−")


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, with round numbers between them."""

    low: float
    high: float
    ticks: tuple[float, ...]
    decimals: int

    @classmethod
    def of(cls, low: float, high: float, most: int = 6) -> Axis:
        """At most ``most`` + 1 ticks, a multiple of 1, 2 or 5 apart: no two are written alike.

        >>> Axis.of(5, 95, 4).ticks, Axis.of(0, 100, 4).ticks
        ((20.0, 40.0, 60.0, 80.0), (0.0, 50.0, 100.0))
        """
        for step in (nice_step((high - low) / (most + 2)), nice_step((high - low) / most)):
            ticks = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
            if len(ticks) <= most + 1:
                break
        return cls(low, high, tuple(float(tick) for tick in ticks), max(0, -math.floor(math.log10(step))))

    def place(self, value: float) -> float:
        """Percent of the way along; of what lies beyond an end, that end."""
        return 100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)

    @property
    def marks(self) -> list[tuple[float, str]]:
        """Place and text of each tick."""
        return [(self.place(tick), f"{tick:,.{self.decimals}f}".replace("-", "−")) for tick in self.ticks]


def nice_step(least: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is no smaller (1 for a step of nothing).

    >>> [nice_step(value) for value in (0.03, 1.0, 1.2, 60.0)]
    [0.05, 1.0, 2.0, 100.0]
    """
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return float(next(times * power for times in (1, 2, 5, 10) if times * power >= least * (1 - 1e-9)))


@dataclass(frozen=True)
class Histogram:
    """Counts in steps of a round number along ``axis``: of all values, and of the picked ones among them.

    The first and last step hold the few values beyond the axis too, ``beyond`` of them.
    """

    axis: Axis
    all: tuple[int, ...]
    picked: tuple[int, ...]
    beyond: tuple[int, int] = (0, 0)

    @property
    def counts(self) -> Axis:
        return Axis.of(0, max(self.all), 5)

    @property
    def chosen(self) -> Axis:
        top = max(1, *self.picked)
        return Axis(0, top, (0, top), 0)


def histogram(values: Float[np.ndarray, " n"], picked: Bool[np.ndarray, " n"], bins: int) -> Histogram:
    """Counts of ``values`` (n > 0) in about ``bins`` steps over all but the outermost half percent at each end."""
    low, high = (float(np.quantile(values, q, method=how)) for q, how in ((0.005, "lower"), (0.995, "higher")))  # type: ignore[call-overload]
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 100, low + (abs(low) or 1.0) / 100
    step = nice_step((high - low) / bins)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    edges = np.arange(first, last + 1) * step
    inside = np.clip(values, edges[0], edges[-1])
    counts, chosen = (tuple(np.histogram(each, edges)[0].tolist()) for each in (inside, inside[picked]))
    beyond = int((values < edges[0]).sum()), int((values > edges[-1]).sum())
    return Histogram(Axis.of(float(edges[0]), float(edges[-1])), counts, chosen, beyond)


def tsne(vectors: Float[np.ndarray, "n channels"], seed: int) -> Float[np.ndarray, "n 2"] | None:
    """t-SNE (van der Maaten & Hinton 2008; paper Fig. 4), PCA start, each axis scaled to [0, 1].

    None for fewer than sixteen different vectors: there is nothing to lay out.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    points = np.ascontiguousarray(vectors, dtype=np.float32)
    if not _can_be_laid_out(points):
        return None
    with threadpool_limits(1):  # its sums depend on the number of threads
        fit = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", max_iter=500, random_state=seed % 2**32, n_jobs=1)
        places = fit.fit_transform(points).astype(np.float64)
    span = np.ptp(places, axis=0)
    return (places - places.min(0)) / np.where(span > 0, span, 1)


def principal(vectors: Float[np.ndarray, "n channels"], seed: int) -> tuple[Float[np.ndarray, "n 2"], float] | None:
    """The two directions in which vectors differ most (PCA), in one scale, the longer one from 0 to 1; and their share of the
    variance.  A hundred times as fast as ``tsne``.  None where there is nothing to lay out, as there."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    points = np.ascontiguousarray(vectors, dtype=np.float64)
    if not _can_be_laid_out(points):
        return None
    with threadpool_limits(1):
        fit = PCA(2, random_state=seed % 2**32)
        places = fit.fit_transform(points)
    middle, span = (places.min(0) + places.max(0)) / 2, float(np.ptp(places, axis=0).max())
    return (places - middle) / span + 0.5, float(fit.explained_variance_ratio_.sum())


@contextmanager
def one_thread_each() -> Iterator[None]:
    """K-means and PCA in several threads at once, each on one thread: a limit holds for the process, so that the one that ends
    first would lift it for the others (their sums depend on it)."""
    import sklearn.cluster
    import sklearn.decomposition  # noqa: F401  # only libraries that are loaded are limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def _can_be_laid_out(points: Float[np.ndarray, "n channels"]) -> bool:
    return points.shape[1] > 1 and len(np.unique(points, axis=0)) >= 16


def evenly(count: int, limit: int, always: Sequence[int] = ()) -> Int[np.ndarray, " m"]:
    """At most about ``limit`` of the numbers below ``count``, evenly spread, and those that must be ``always`` among them."""
    spread = np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64) if count else np.zeros(0, np.int64)
    return np.union1d(spread, np.asarray(always, np.int64))
