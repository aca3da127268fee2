"""Table 1: high-resolution data sets, ResNet-18.

    accelerate launch pipelines/high_resolution.py --scale paper --out study

Cost at paper scale: 10.8 million U-Net forwards (1.4 hours of a large GPU) and 180 students: about 76 hours in all (--dry-run).
Other methods' numbers are the paper's; RDED's and random crops are run here under the same protocol.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "selection by the diffusion model is ahead of every other method on all four data sets and at every IPC."
DATA = {"ImageNette": "imagenette", "ImageWoof": "imagewoof", "ImageNet-100": "imagenet-100", "ImageNet-1K": "imagenet-1k"}
METHODS = {"Random": "random", "RDED": "rded", "Ours": "diffsel"}
COLUMNS = ("SRe2L", "RDED", "Minimax", "IGD", "D3HR", "D4M", "MGD3", "Ours")
ROWS = {
    "ImageNette, IPC 10": "29.4 3.0 61.4 0.4 57.2 0.8 58.3 0.2 58.1 0.2 57.4 0.4 58.9 0.4 61.7 0.4",
    "ImageNette, IPC 50": "40.9 0.3 80.4 0.4 84.4 0.5 85.5 0.3 85.7 0.2 84.8 0.2 85.2 0.5 86.4 0.2",
    "ImageNette, IPC 100": "50.2 0.4 89.6 1.0 90.1 0.6 91.6 0.5 90.9 0.2 90.4 0.7 91.0 0.2 92.0 0.3",
    "ImageWoof, IPC 10": "20.2 0.2 38.5 2.1 38.1 0.6 39.8 0.1 39.3 0.3 36.8 1.2 38.2 0.4 44.5 0.4",
    "ImageWoof, IPC 50": "23.3 0.3 68.5 0.7 71.2 0.6 72.8 0.4 73.0 0.2 71.4 1.4 72.1 0.5 73.5 1.4",
    "ImageWoof, IPC 100": "37.6 0.3 77.2 0.6 77.4 0.2 78.3 0.4 78.7 0.3 78.5 0.3 77.9 0.2 79.6 0.2",
    "ImageNet-100, IPC 10": "9.5 0.4 36.0 0.3 31.6 0.7 33.2 0.3 34.0 0.2 33.4 0.2 34.2 0.5 36.8 0.2",
    "ImageNet-100, IPC 50": "27.0 0.4 61.6 0.1 64.0 0.5 64.2 0.3 65.3 0.2 62.7 0.6 64.1 0.3 67.5 0.3",
    "ImageNet-100, IPC 100": "39.4 0.1 75.2 0.3 76.4 0.3 77.8 0.3 77.2 0.2 76.8 0.5 76.7 0.3 78.6 0.2",
    "ImageNet-1K, IPC 10": "21.3 0.6 42.0 0.1 44.3 0.3 45.5 0.5 44.3 0.3 27.9 0.3 41.8 0.2 46.1 0.3",
    "ImageNet-1K, IPC 50": "46.8 0.2 56.5 0.1 58.6 0.3 60.3 0.4 59.4 0.1 55.2 0.3 57.2 0.4 61.0 0.3",
    "ImageNet-1K, IPC 100": "52.5 0.5 59.5 0.8 60.2 0.3 61.4 0.3 62.5 0.0 59.3 0.4 61.7 0.5 63.0 0.2",
}
EXPECTED = {
    (row, column): (float(text.split()[2 * k]), float(text.split()[2 * k + 1]))
    for row, text in ROWS.items()
    for k, column in enumerate(COLUMNS)
}


def cells() -> list[Case]:
    return [
        Case(f"{data}, IPC {ipc}", column, DATA[data], ipc, method)
        for data in DATA
        for ipc in (10, 50, 100)
        for column, method in METHODS.items()
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM)
