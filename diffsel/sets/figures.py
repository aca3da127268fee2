"""Figures of a set itself: does it cover its classes, are its tiles different, would a classifier know them?

coverage   share of a class's images with a tile among their k nearest neighbours        Naeem et al., arXiv 2002.09797
diversity  how many different tiles there seem to be: the Vendi score                    Friedman & Dieng, arXiv 2210.02410
realism    minus a classifier's cross-entropy with the label, mean over tiles            Sun et al. (RDED), arXiv 2312.03526

Neighbours are sought in a space that no method selects by.  DIFT vectors are the prior's own, and herding, clusters and medoids
optimise distances between them, so they cannot judge.  Without a network at hand it is ``Hand``: gradients and colours, made
by hand, trained on nothing.  With a teacher it is that teacher's last features (evaluation/seeing.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from ..data.images import ImageData, Row, cap
from ..data.pixels import Pixels
from ..runs.run import Run
from ..settings.errors import DataError, Scarce
from ..settings.yamls import no_pipe
from .candidates import distinct
from .opening import DistilledSet

K = 5  # neighbours, as the paper on coverage has it
IMAGES = 5000  # real images looked at, of all classes together ...
AT_LEAST = 20  # ... but no fewer of a class
AT_ONCE = 64  # of these in memory
DRAWS = 8  # random sets whose diversity is averaged
SIDE, CELLS, ANGLES = 32, 4, 8

Vectors = Float[np.ndarray, "n channels"]


class Eye(Protocol):
    """Who looks at pictures: where they lie in a space, and (a classifier) how easy each is to name."""

    @property
    def name(self) -> str: ...

    def vectors(self, pictures: Sequence[Pixels]) -> Vectors: ...

    def realism(self, tiles: Sequence[Pixels], label: str, factor: int) -> Float[np.ndarray, " n"] | None: ...


@dataclass(frozen=True)
class Figures:
    """Of one set and class, or means over classes.  ``random``: what as many random images would have; None: not known."""

    tiles: float
    coverage: float | None = None
    coverage_random: float | None = None
    diversity: float | None = None
    diversity_random: float | None = None
    realism: float | None = None


# ---- definitions -----------------------------------------------------------------------------------------------------


def coverage(real: Vectors, tiles: Vectors, k: int = K) -> float:
    """Share of real points that have a tile no farther away than their k-th nearest other real point."""
    apart = distances(real, real)
    np.fill_diagonal(apart, np.inf)
    radius = np.partition(apart, k - 1, axis=1)[:, k - 1]
    return float((distances(real, tiles) <= radius[:, None]).any(1).mean())


def coverage_of_random(real: int, tiles: int, k: int = K) -> float:
    """What ``coverage`` is on average where the tiles are of the real points' own distribution (the paper's Lemma 2).

    >>> coverage_of_random(2, 1, 1)
    0.5
    """
    steps = np.arange(1, k + 1)
    return 1 - float(np.prod((real - steps) / (real + tiles - steps)))


def vendi(vectors: Vectors) -> float:
    """exp of the entropy of the eigenvalues of K / n, K the cosines between n vectors: 1 (all alike) to n (at right angles).

    >>> vendi(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]]))  # two different ones, one of them twice
    1.8898815748423097
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    shares = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def distances(a: Vectors, b: Vectors) -> Float[np.ndarray, "n m"]:
    """Squared Euclidean, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


# ---- a space of no network ---------------------------------------------------------------------------------------------


class Hand:
    """Histograms of oriented gradients (Dalal & Triggs, CVPR 2005) and mean colours of 4 x 4 cells, equal in weight."""

    name = "gradients and colours"

    def vectors(self, pictures: Sequence[Pixels]) -> Vectors:
        return np.stack([_by_hand(picture) for picture in pictures])

    def realism(self, tiles: Sequence[Pixels], label: str, factor: int) -> None:
        return None


def _by_hand(picture: Pixels) -> Float[np.ndarray, " channels"]:
    small = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64) / 255
    down, across = np.gradient(small.mean(2))
    size, angle = np.hypot(down, across), np.arctan2(down, across) % np.pi
    kinds = np.minimum((angle / np.pi * ANGLES).astype(int), ANGLES - 1)
    bins = np.where(kinds[..., None] == np.arange(ANGLES), size[..., None], 0)
    gradients, colours = _cells(bins).ravel(), (_cells(small) / (SIDE // CELLS) ** 2 - 0.5).ravel()
    return np.concatenate([part / max(float(np.linalg.norm(part)), 1e-9) for part in (gradients, colours)])


def _cells(values: Float[np.ndarray, "side side c"]) -> Float[np.ndarray, "cells cells c"]:
    width = SIDE // CELLS
    return values.reshape(CELLS, width, CELLS, width, -1).sum((1, 3))


# ---- a set -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reals:
    """Images of a class, where they lie in a space."""

    rows: Sequence[Row]
    vectors: Vectors

    def without(self, digests: frozenset[str]) -> Vectors:
        kept: Bool[np.ndarray, " n"] = np.array([row.digest not in digests for row in self.rows], bool)
        return self.vectors[kept]


def look_at(data: ImageData, label: str, eye: Eye, seed: int) -> Reals | None:
    """Images of a class, drawn by the seed; None where too few can be read, or they are gone."""
    rows = distinct(data.of_class(label))
    kept = set(cap([row.path for row in rows], max(AT_LEAST, IMAGES // len(data.classes)), seed, label))
    found, vectors = list[Row](), list[Vectors]()
    rows = [row for row in rows if row.path in kept]
    for start in range(0, len(rows), AT_ONCE):
        read = list[tuple[Row, Pixels]]()
        for row in rows[start : start + AT_ONCE]:
            try:
                read.append((row, data.pixels(row)))
            except Scarce:
                raise
            except DataError:
                continue
        if read:
            found += [row for row, _ in read]
            vectors.append(eye.vectors([pixels for _, pixels in read]))
    return Reals(found, np.concatenate(vectors)) if len(found) > K + 1 else None


def figures(shown: DistilledSet, label: str, real: Reals | None, eye: Eye, seed: int = 0) -> Figures | None:
    """Of one class of a set: its tiles against the class's images that it was not made from; None where it has none."""
    tiles = tiles_of(shown, label)
    if not tiles:
        return None
    vectors, realism = eye.vectors(tiles), eye.realism(tiles, label, shown.factor)
    told = Figures(len(tiles), realism=None if realism is None else float(realism.mean()))
    others = real.without(shown.sources) if real else np.zeros((0, 0))
    if len(others) <= K:
        return told
    middle, rng = others.mean(0), np.random.default_rng(seed)
    draws = [rng.permutation(len(others))[: len(tiles)] for _ in range(DRAWS if len(others) >= len(tiles) else 0)]
    return Figures(
        told.tiles,
        coverage(others, vectors),
        coverage_of_random(len(others), len(tiles)),
        vendi(vectors - middle),
        float(np.mean([vendi(others[draw] - middle) for draw in draws])) if draws else None,
        told.realism,
    )


def judge(run: Run, sets: Sequence[DistilledSet], label: str, eye: Eye) -> dict[Path, Figures | None]:
    """One class of sets that were made from the images of a run."""
    real = look_at(run.data, label, eye, run.settings.seed) if sets else None
    return {shown.path: figures(shown, label, real, eye, run.settings.seed) for shown in sets}


def tiles_of(shown: DistilledSet, label: str) -> list[Pixels]:
    """The tiles of a class as students see them, cut out of the set's pictures; a picture that is lost is passed over."""
    found: list[Pixels] = []
    for picture in shown.images.get(label, ()):
        try:
            with Image.open(no_pipe(shown.path / picture.file)) as opened:
                found += _cut(np.asarray(opened.convert("RGB")), shown.factor)
        except OSError as error:
            Scarce.check(error, shown.path / picture.file)
    return found


def _cut(picture: Pixels, factor: int) -> list[Pixels]:
    return [tile for row in np.array_split(picture, factor, 0) for tile in np.array_split(row, factor, 1)]


def mean_of(found: Sequence[Figures | None]) -> Figures | None:
    """Over classes, each figure over those that have it."""
    there = [each for each in found if each]

    def mean(name: str) -> float | None:
        known = [value for each in there if (value := getattr(each, name)) is not None]
        return float(np.mean(known)) if known else None

    return Figures(**{name: mean(name) for name in Figures.__dataclass_fields__}) if there else None  # type: ignore[arg-type]
