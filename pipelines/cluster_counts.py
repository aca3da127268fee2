"""Figure 8: the number of clusters K, and of top clusters N that give patches.

    accelerate launch pipelines/cluster_counts.py --scale paper --out study

Cost at paper scale: high_resolution.py's ImageWoof pass, K-means, 80 students: about an hour of a large GPU.
Only the point of the defaults, K = 32 and N = 10, is printed in the paper (Tab. 5).
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "with N fixed, too few and too many clusters are both worse; so it is for N with K fixed."
CLUSTERS, TOP = (8, 16, 32, 64), (1, 5, 10, 20, 32)
EXPECTED = {("K = 32, N = 10", "IPC 10"): 44.5, ("K = 32, N = 10", "IPC 50"): 73.7}


def cells() -> list[Case]:
    pairs = [(k, 10) for k in CLUSTERS if k != 8] + [(8, 5)] + [(32, n) for n in TOP]
    return [
        Case(
            f"K = {k}, N = {n}",
            f"IPC {ipc}",
            "imagewoof",
            ipc,
            settings={"selection.clusters": k, "selection.top_clusters": n},
        )
        for k, n in sorted(set(pairs))
        for ipc in (10, 50)
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM)
