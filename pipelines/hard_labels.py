"""Table 7: hard labels, no teacher.

    accelerate launch pipelines/hard_labels.py --scale paper --out study

Cost at paper scale: nothing to score after high_resolution.py; 60 students: about 70 hours of a large GPU.
The paper does not name the data set; the numbers are of ImageNet-1K's size.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "ours is ahead of random images at every IPC; RDED, near class centres, falls behind random at IPC 50 and 100."
METHODS = {
    "Random": ("random", {"baseline.whole": True, "assembly.factor": 1}),
    "RDED": ("rded", {}),
    "Ours": ("diffsel", {}),
}
COLUMNS = ("Random", "SRe2L", "Minimax", "D4M", "RDED", "Ours")
ROWS = {
    1: ((1.1, 0.3), (0.2, 0.1), (1.3, 0.7), (0.7, 0.4), (1.1, 0.3), (1.7, 0.3)),
    10: ((7.3, 0.2), (1.4, 0.2), (8.2, 0.4), (4.6, 0.5), (11.4, 0.4), (10.5, 0.3)),
    50: ((30.9, 0.1), (3.2, 0.3), (31.3, 0.4), (17.6, 0.2), (30.1, 0.3), (33.2, 0.1)),
    100: ((41.0, 0.3), (4.1, 0.3), (40.5, 0.2), (27.3, 0.5), (38.4, 0.2), (42.1, 0.2)),
}
EXPECTED = {(f"IPC {ipc}", column): pair for ipc, row in ROWS.items() for column, pair in zip(COLUMNS, row, strict=True)}


def cells() -> list[Case]:
    return [
        Case(f"IPC {ipc}", column, "imagenet-1k", ipc, method, protocol="hard", settings=settings)
        for ipc in ROWS
        for column, (method, settings) in METHODS.items()
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM)
