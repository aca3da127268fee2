"""Figure 4: where the patches of each set lie among those of the real data (t-SNE).

    accelerate launch pipelines/tsne.py --scale paper --out study

Cost at paper scale: high_resolution.py's ImageWoof pass, its features, and half a forward a tile; no students: minutes.
The paper shows pictures only; the figures of spread and gap, explained in diffsel/studies/figures.py, are ours.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "RDED and Minimax crowd around class centres, D4M scatters outliers, ours balances diversity and representativeness."
METHODS = {"Random": "random", "RDED": "rded", "Without clusters": "diffsel-noclusters", "Ours": "diffsel"}
EXPECTED = {("RDED", "spread"): "crowded", ("Ours", "spread"): "balanced"}


def cells() -> list[Case]:
    return [Case(row, "spread", "imagewoof", 10, method) for row, method in METHODS.items()]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM, measure="spread")
