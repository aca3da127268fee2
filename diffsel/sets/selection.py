"""Patches -> Selection (paper 3.2 and B.1): cluster each class, rank clusters and patches, pick.

Clusters are ranked by the median score of their patches, best first; patches inside one by distance to its centroid,
nearest first.  The top N clusters give q = factor^2 * IPC // N patches each; what is still missing is filled with
unused patches by score.  Ties go to the lower row.  A shortlist leaves only the best patches to be clustered.  Or a coreset
of all the class's vectors (coresets.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from joblib import Parallel, delayed

from ..scoring.patches import Box
from ..settings.errors import SelectionError
from ..settings.sections import SelectionSettings
from ..settings.settings import Settings
from .coresets import CORESETS, kmeans


@dataclass(frozen=True)
class Candidates:
    """The patches of one class: n of them, in order of row (and of score within an image)."""

    label: str
    rows: Int[np.ndarray, " n"]
    boxes: Int[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n channels"]

    @cached_property
    def by_score(self) -> Int[np.ndarray, " n"]:
        """Places of the patches, best first (ties: the lower row)."""
        return np.argsort(-self.scores, kind="stable")

    def at(self, where: Bool[np.ndarray, " n"]) -> Candidates:
        """Those of them."""
        return Candidates(self.label, self.rows[where], self.boxes[where], self.scores[where], self.vectors[where])


@dataclass(frozen=True)
class Pick:
    """One selected patch.  ``rank`` is its place in the class's selection, from 0."""

    label: str
    rank: int
    row: int
    box: Box
    score: float
    cluster: int | None  # 0 is the best cluster; None: no clustering took place
    place: int | None  # rank inside the cluster, 0 is nearest to the centroid
    distance: float | None
    reason: Literal["cluster", "score", "coverage", "random", "loss"]  # for its place in a top cluster, or to fill up; others


@dataclass(frozen=True)
class Clustering:
    """``cluster`` and ``place`` of each patch (n,), its ``distance`` to the centroid, and each cluster's ``median`` score."""

    cluster: Int[np.ndarray, " n"]
    place: Int[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    median: Float[np.ndarray, " k"]


def clustered(pool: Candidates, need: int, settings: SelectionSettings, seed: int) -> Clustering | None:
    """The clusters of a class's shortlist, where ``need`` patches are to be picked; None where the method has none."""
    if settings.method != "diffsel" or not len(pool.rows):
        return None
    best = shortlist(pool, need, settings)
    found = cluster(pool.vectors[best], pool.scores[best], settings.clusters or need, settings, seed)
    return _spread(found, best, len(pool.rows))


def patches_needed(settings: Settings, sets: Iterable[tuple[int, int]]) -> int:
    """Patches a class of the largest of these sets (ipc, factor); without any, of one of ten images."""
    usual = 10 * settings.assembly.factor_at(10, settings.selection.method) ** 2
    return max((ipc * factor**2 for ipc, factor in sets), default=usual)


def shortlist(pool: Candidates, need: int, settings: SelectionSettings) -> Int[np.ndarray, " m"]:
    """The patches that are clustered, in order of row: all, or the best by rank.

    At least a tenth of the class: at one image a class, the middle of the five best would be hardly more than chance.  At
    most a quarter: as many clusters as most of a class has patches are its odd ones, one by one (RESULTS.md).
    """
    if settings.shortlist is None:
        return np.arange(len(pool.scores))
    least, most = (math.ceil(share * len(pool.scores) - 1e-9) for share in (0.1, settings.shortlist_share))
    count = max(need, least, min(math.ceil(settings.shortlist * need - 1e-9), most))
    return np.sort(pool.by_score[:count])


def cluster(
    vectors: Float[np.ndarray, "n channels"], scores: Float[np.ndarray, " n"], k: int, settings: SelectionSettings, seed: int
) -> Clustering:
    """K-means, then both rankings.  Fewer clusters where there are fewer different vectors than ``k``."""
    labels, distance = kmeans(vectors, k, seed, settings.restarts)
    return rank_clusters(labels, distance, scores, settings.inside)


def rank_clusters(
    labels: Int[np.ndarray, " n"], distance: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"], inside: str = "centroid"
) -> Clustering:
    """Number clusters by descending median score (ties: the one with the lowest row first), patches by distance or score."""
    names = np.unique(labels)
    medians = np.array([np.median(scores[labels == name]) for name in names])
    first = np.array([np.flatnonzero(labels == name)[0] for name in names])
    order = np.lexsort((first, -medians))
    ranked = np.empty(len(labels), np.int64)
    place = np.empty(len(labels), np.int64)
    for rank, name in enumerate(names[order]):
        members = np.flatnonzero(labels == name)
        ranked[members] = rank
        key = distance if inside == "centroid" else -scores
        place[members[np.argsort(key[members], kind="stable")]] = np.arange(len(members))
    return Clustering(ranked, place, distance, medians[order])


def select_class(candidates: Candidates, ipc: int, factor: int, settings: SelectionSettings, seed: int) -> list[Pick]:
    """The ``ipc * factor^2`` patches of one class, best first.  Raises SelectionError if the class has fewer."""
    need = ipc * factor**2
    n = len(candidates.rows)
    if n < need:
        raise too_few(candidates.label, n, ipc, factor)
    clustering, chosen = clustered(candidates, need, settings, seed), []
    if clustering:
        count = settings.top_clusters or min(len(clustering.median), need)
        top = np.flatnonzero((clustering.cluster >= 0) & (clustering.cluster < count) & (clustering.place < need // count))
        chosen = list(top[np.lexsort((clustering.place[top], clustering.cluster[top]))])
    elif settings.method in CORESETS:
        chosen = list(CORESETS[settings.method](candidates.vectors, need, seed, settings.restarts))
    fill = candidates.by_score[~np.isin(candidates.by_score, chosen)][: need - len(chosen)]
    return [
        Pick(
            label=candidates.label,
            rank=rank,
            row=int(candidates.rows[i]),
            box=tuple(int(v) for v in candidates.boxes[i]),  # type: ignore[arg-type]
            score=float(candidates.scores[i]),
            cluster=None if clustering is None else int(clustering.cluster[i]),
            place=None if clustering is None else int(clustering.place[i]),
            distance=None if clustering is None else float(clustering.distance[i]),
            reason="score" if rank >= len(chosen) else "cluster" if clustering else "coverage",
        )
        for rank, i in enumerate([*chosen, *fill])
    ]


def _spread(found: Clustering, where: Int[np.ndarray, " m"], n: int) -> Clustering:
    """A clustering of some patches as one of all n; the others lie in no cluster (-1)."""
    cluster, place, distance = np.full(n, -1), np.full(n, -1), np.full(n, np.nan)
    cluster[where], place[where], distance[where] = found.cluster, found.place, found.distance
    return Clustering(cluster, place, distance, found.median)


def too_few(label: str, have: int, ipc: int, factor: int, hint: str = "") -> SelectionError:
    """``hint``: what could be done, beside fewer images or smaller mosaics."""
    tiles = f"{factor} x {factor} patches" if factor > 1 else "one patch"
    most = f"ipc {have // factor**2} is the most it can give" if have >= factor**2 else "it cannot give a single image"
    other = f"lower --factor: with 1, ipc {have} is" if factor > 1 and have else ""
    hints = ", or ".join(filter(None, (hint, other)))
    return SelectionError(
        f"class {label!r} has {have} patches, but ipc {ipc} with {tiles} an image needs {ipc * factor**2}; "
        f"{most}{f' (or {hints})' if hints else ''}"
    )


def select_all(
    classes: Iterable[Candidates], ipc: int, factor: int, settings: SelectionSettings, seed: int, jobs: int = 1
) -> Mapping[str, list[Pick]]:
    """Picks of every class.  Each class runs on one thread, ``jobs`` classes at a time; the picks do not depend on it.

    ``classes`` is asked for a few classes at a time, so that it may read them one by one.
    """
    tasks = (delayed(_named)(c, ipc, factor, settings, seed) for c in classes)
    return dict(Parallel(n_jobs=jobs, pre_dispatch="2*n_jobs", max_nbytes=None)(tasks))


def _named(candidates: Candidates, ipc: int, factor: int, settings: SelectionSettings, seed: int) -> tuple[str, list[Pick]]:
    return candidates.label, select_class(candidates, ipc, factor, settings, seed)


def tile_rank(image: int, tile: int, ipc: int) -> int:
    """Rank of the patch in tile ``tile`` of distilled image ``image``: dealt as RDED does, so a mosaic mixes clusters."""
    return tile * ipc + image
