"""Table 5: no clusters, clusters of CLIP features, clusters of DIFT features.

    accelerate launch pipelines/clustering.py --scale paper --out study

Cost at paper scale: the passes of high_resolution.py, CLIP and DIFT of every patch, 90 students: about 70 hours of a GPU.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "DIFT clusters help everywhere (+1.0 to +3.3 points), CLIP clusters in three cells of six, and by less (-2.0 to +0.9)."
DATA = {"ImageWoof": "imagewoof", "ImageNet-1K": "imagenet-1k"}
KINDS = {
    "without clusters": ("diffsel-noclusters", {}),
    "CLIP clusters": ("diffsel", {"features.kind": "clip"}),
    "DIFT clusters": ("diffsel", {}),
}
NUMBERS = {
    "ImageWoof": ((41.8, 39.8, 44.5), (70.4, 69.5, 73.7), (79.1, 79.5, 80.1)),
    "ImageNet-1K": ((43.6, 42.1, 46.1), (58.1, 59.0, 61.0), (62.0, 62.7, 63.4)),
}
EXPECTED = {
    (f"{data}, IPC {ipc}", kind): number
    for data, rows in NUMBERS.items()
    for ipc, row in zip((10, 50, 100), rows, strict=True)
    for kind, number in zip(KINDS, row, strict=True)
}


def cells() -> list[Case]:
    return [
        Case(f"{data}, IPC {ipc}", kind, DATA[data], ipc, method, settings=settings)
        for data in DATA
        for ipc in (10, 50, 100)
        for kind, (method, settings) in KINDS.items()
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM)
