"""Clusters, ranks and picks, as section 3.2 and B.1 of the paper have them."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from diffsel.sets.coresets import kmeans
from diffsel.sets.selection import Candidates, cluster, rank_clusters, select_all, select_class, shortlist, tile_rank
from diffsel.settings.errors import SelectionError
from diffsel.settings.sections import SelectionSettings


def blobs(groups: int, each: int, seed: int = 0, label: str = "cat") -> Candidates:
    """Well separated groups of different size around the corners of a simplex."""
    rng = np.random.default_rng(seed)
    vectors = np.concatenate([10 * np.eye(groups)[g] + 0.1 * rng.normal(size=(each, groups)) for g in range(groups)])
    scores = rng.normal(size=groups * each) + np.repeat(rng.permutation(groups), each)
    boxes = np.tile([0, 0, 32, 32], (groups * each, 1))
    return Candidates(label, np.arange(groups * each) * 3, boxes, scores, vectors)


def test_clusters_by_median_score_and_patches_by_distance() -> None:
    labels = np.array([7, 7, 7, 2, 2, 5])
    distance = np.array([0.3, 0.1, 0.2, 0.5, 0.5, 0.0])
    scores = np.array([0.0, 1.0, 9.0, 5.0, 4.0, 1.0])
    found = rank_clusters(labels, distance, scores)
    assert found.cluster.tolist() == [1, 1, 1, 0, 0, 2]  # medians 1, 4.5, 1: the tie goes to the lower row
    assert found.place.tolist() == [2, 0, 1, 0, 1, 0]
    assert found.median.tolist() == [4.5, 1.0, 1.0]


@pytest.mark.parametrize(("ipc", "factor", "share"), [(10, 2, 4), (7, 2, 2), (1, 2, 0), (50, 1, 5), (12, 1, 1)])
def test_top_clusters_give_q_patches_and_the_rest_is_filled_by_score(ipc: int, factor: int, share: int) -> None:
    """q = 4 * IPC // N at IPC <= 10, else IPC // N."""
    pool = blobs(groups=16, each=10)
    settings = SelectionSettings(clusters=16, top_clusters=10, shortlist=None)
    picks = select_class(pool, ipc, factor, settings, seed=0)
    assert len(picks) == ipc * factor**2
    assert [p.rank for p in picks] == list(range(len(picks)))
    groups = cluster(pool.vectors, pool.scores, 16, settings, 0)
    taken = {p.row for p in picks}
    assert len(taken) == len(picks)
    by_cluster = [p for p in picks if p.reason == "cluster"]
    assert len(by_cluster) == share * 10
    expected = [(c, q) for c in range(10) for q in range(share)]
    assert [(p.cluster, p.place) for p in by_cluster] == expected
    for p in picks:
        i = p.row // 3
        assert (p.score, p.cluster, p.place) == (pool.scores[i], groups.cluster[i], groups.place[i])
    filled = [p.score for p in picks if p.reason == "score"]
    left = sorted((s for i, s in enumerate(pool.scores) if 3 * i not in {p.row for p in by_cluster}), reverse=True)
    assert filled == left[: len(filled)]


def test_picks_do_not_depend_on_the_number_of_threads() -> None:
    """To the last bit, in the selection's own path; K-means itself adds up otherwise with two."""
    rng = np.random.default_rng(0)
    pool = Candidates("cat", np.arange(600), np.zeros((600, 4), int), rng.normal(size=600), rng.normal(size=(600, 64)))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(select_all([pool], 10, 1, SelectionSettings(clusters=8, top_clusters=4), 0))
    assert found[0] == found[1]


def test_a_short_cluster_gives_what_it_has() -> None:
    pool = blobs(groups=4, each=3)
    picks = select_class(pool, 3, 2, SelectionSettings(clusters=4, top_clusters=2), seed=0)  # q = 6, but 3 in each
    assert [p.reason for p in picks] == ["cluster"] * 6 + ["score"] * 6


def test_fewer_patches_or_different_vectors_than_clusters() -> None:
    pool = blobs(groups=2, each=3)
    picks = select_class(pool, 1, 2, SelectionSettings(clusters=32, top_clusters=10), seed=0)
    assert len(picks) == 4
    same = Candidates("cat", pool.rows, pool.boxes, pool.scores, np.ones_like(pool.vectors))
    assert cluster(same.vectors, same.scores, 32, SelectionSettings(), 0).median.shape == (1,)
    assert len(select_class(same, 1, 2, SelectionSettings(), seed=0)) == 4


def test_without_clusters_the_best_scores_win_and_ties_go_to_the_lower_row() -> None:
    scores = np.array([1.0, 3.0, 2.0, 3.0, 0.0])
    pool = Candidates("cat", np.arange(5), np.zeros((5, 4), int), scores, np.zeros((5, 0)))
    picks = select_class(pool, 4, 1, SelectionSettings(method="diffsel-noclusters"), seed=0)
    assert [p.row for p in picks] == [1, 3, 2, 0]
    assert picks[0].cluster is None


def test_only_the_shortlist_is_clustered() -> None:
    pool = blobs(groups=8, each=10)
    best = set(np.argsort(-pool.scores)[:20])
    picks = select_class(pool, 4, 1, SelectionSettings(clusters=4, top_clusters=4, shortlist=5), seed=0)
    assert {p.row // 3 for p in picks} <= best
    whole = select_class(pool, 20, 2, SelectionSettings(clusters=4, top_clusters=4, shortlist=5), seed=0)  # all are needed
    assert len({p.row for p in whole}) == 80


@pytest.mark.parametrize(("ipc", "factor"), [(1, 1), (1, 2), (5, 1), (10, 2)])
def test_as_many_clusters_as_patches_give_one_each_the_nearest_to_its_centroid(ipc: int, factor: int) -> None:
    pool, need = blobs(groups=16, each=10), ipc * factor**2
    settings = SelectionSettings(clusters=None, top_clusters=None, shortlist=2, shortlist_share=1)
    picks = select_class(pool, ipc, factor, settings, seed=0)
    best = np.sort(np.argsort(-pool.scores, kind="stable")[: max(2 * need, 16)])
    labels, distance = kmeans(pool.vectors[best], need, 0, settings.restarts)
    nearest = {int(best[np.flatnonzero(labels == c)[distance[labels == c].argmin()]]) for c in range(need)}
    assert {p.row // 3 for p in picks} == nearest
    assert {(p.place, p.reason) for p in picks} == {(0, "cluster")}
    assert [p.cluster for p in picks] == list(range(need))


@pytest.mark.parametrize(
    ("share", "counts"), [(0.25, (20, 20, 50, 60, 200)), (0.1, (20, 20, 20, 60, 200)), (1, (20, 20, 50, 200, 200))]
)
def test_a_shortlist_is_a_tenth_to_a_quarter_of_the_class_unless_more_are_needed(share: float, counts: tuple[int, ...]) -> None:
    scores = np.random.default_rng(0).permutation(200).astype(float)
    pool = Candidates("cat", np.arange(200), np.zeros((200, 4), int), scores, np.zeros((200, 1)))
    for need, count in zip((1, 4, 10, 60, 200), counts, strict=True):
        found = shortlist(pool, need, SelectionSettings(shortlist=5, shortlist_share=share))
        assert sorted(scores[found]) == list(range(200 - count, 200))
        assert found.tolist() == sorted(found)


def test_inside_a_cluster_the_best_by_rank_may_come_first() -> None:
    labels, distance = np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.3, 0.0])
    found = rank_clusters(labels, distance, np.array([1.0, 5.0, 3.0, 0.0]), "rank")
    assert found.place.tolist() == [2, 0, 1, 0]


def test_too_few_patches_names_the_class_and_its_limit() -> None:
    with pytest.raises(SelectionError, match=r"class 'cat' has 6 patches.*ipc 2 .* needs 8; ipc 1 is the most"):
        select_class(blobs(2, 3), 2, 2, SelectionSettings(), seed=0)


def test_picks_depend_neither_on_jobs_nor_on_other_classes() -> None:
    pools = [blobs(8, 12, seed, f"class {seed}") for seed in range(4)]
    settings = SelectionSettings(clusters=8, top_clusters=5)
    alone = {p.label: select_class(p, 5, 2, settings, 0) for p in pools}
    assert select_all(pools, 5, 2, settings, 0, jobs=1) == alone
    assert select_all(pools[::-1], 5, 2, settings, 0, jobs=2) == alone


def test_mosaics_are_dealt_as_rded_does() -> None:
    ipc, factor = 10, 2
    dealt = [[tile_rank(i, j, ipc) for j in range(factor**2)] for i in range(ipc)]
    assert dealt[0] == [0, 10, 20, 30]
    assert sorted(rank for image in dealt for rank in image) == list(range(40))
