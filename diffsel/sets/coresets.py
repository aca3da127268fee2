"""Coresets: which patches of a class stand for the others?  Each function gives ``count`` of n vectors, best first.

herding    the mean of those taken stays nearest to the mean of all     Welling, ICML 2009; Rebuffi et al., arXiv 1611.07725
kcenter    the one farthest from those taken comes next                 Gonzalez 1985; Sener & Savarese, arXiv 1708.00489
medoids    K-means with ``count`` clusters, the nearest to each centre  Sorscher et al., arXiv 2206.14486 (prototypes)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

Vectors = Float[np.ndarray, "n channels"]
Coreset = Callable[[Vectors, int, int, int], Int[np.ndarray, " count"]]  # vectors, count, seed, restarts


def herding(vectors: Vectors, count: int, _seed: int = 0, _restarts: int = 1) -> Int[np.ndarray, " count"]:
    """Greedily, each vector once: the next one brings the mean of all taken nearest to the mean of the class.

    >>> herding(np.array([[0.0], [1.0], [5.0], [6.0]]), 2).tolist()  # the mean is 3
    [1, 2]
    """
    mean, taken, total = vectors.mean(0), np.zeros(len(vectors), bool), np.zeros(vectors.shape[1])
    squares, chosen = (vectors**2).sum(1), list[int]()
    for k in range(1, count + 1):
        aim = k * mean - total  # |mean - (total + x) / k| is least where |aim - x| is
        far = squares - 2 * vectors @ aim
        far[taken] = np.inf
        chosen.append(int(far.argmin()))
        taken[chosen[-1]] = True
        total += vectors[chosen[-1]]
    return np.array(chosen, np.int64)


def kcenter(vectors: Vectors, count: int, _seed: int = 0, _restarts: int = 1) -> Int[np.ndarray, " count"]:
    """Greedy k-centre: first the vector nearest to the mean, then always the one farthest from those taken.

    >>> kcenter(np.array([[0.0], [1.0], [5.0], [6.0]]), 3).tolist()  # 1 and 5 are as near to the mean
    [1, 3, 0]
    """
    chosen = [int(((vectors - vectors.mean(0)) ** 2).sum(1).argmin())]
    far = np.full(len(vectors), np.inf)
    for _ in range(count - 1):
        far = np.minimum(far, ((vectors - vectors[chosen[-1]]) ** 2).sum(1))
        far[chosen] = -1
        chosen.append(int(far.argmax()))
    return np.array(chosen, np.int64)


def medoids(vectors: Vectors, count: int, seed: int = 0, restarts: int = 1) -> Int[np.ndarray, " count"]:
    """The vector nearest to the centre of each of ``count`` K-means clusters, those of large clusters first.

    Where there are fewer different vectors than ``count``, the second nearest of each cluster follow, and so on.

    >>> medoids(np.array([[0.0], [1.0], [2.0], [9.0]]), 2).tolist()
    [1, 3]
    """
    labels, distance = kmeans(vectors, count, seed, restarts)
    sizes = np.bincount(labels)
    place = np.empty(len(labels), np.int64)
    for cluster in range(len(sizes)):
        members = np.flatnonzero(labels == cluster)
        place[members[np.argsort(distance[members], kind="stable")]] = np.arange(len(members))
    first = np.array([np.flatnonzero(labels == cluster)[0] for cluster in range(len(sizes))])
    return np.lexsort((first[labels], -sizes[labels], place))[:count]


def kmeans(vectors: Vectors, k: int, seed: int, restarts: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The cluster of each vector and its distance to the centroid; fewer clusters where there are fewer different vectors.

    Always on one thread: the order of its sums depends on their number.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    points = np.ascontiguousarray(vectors, dtype=np.float64)
    with threadpool_limits(1):
        k = min(k, len(np.unique(points, axis=0)))
        fit = KMeans(k, n_init=restarts, random_state=seed % 2**32).fit(points)
    return fit.labels_, np.linalg.norm(points - fit.cluster_centers_[fit.labels_], axis=1)


CORESETS: Mapping[str, Coreset] = {"herding": herding, "kcenter": kcenter, "medoids": medoids}
