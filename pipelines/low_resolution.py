"""Table 2: low-resolution data sets, whole images (RDED: one crop of each); ConvNet and ResNet-18, the teacher of their kind.

    accelerate launch pipelines/low_resolution.py --scale paper --out study

Cost at paper scale: 6.4 million U-Net forwards at 256 px and 180 students: about 5 hours of a large GPU.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "on CIFAR-10 comparable to the best; on CIFAR-100 and Tiny-ImageNet ahead of all methods that optimise pixels."
DATA = {"CIFAR-10": ("cifar10", "conv3"), "CIFAR-100": ("cifar100", "conv3"), "Tiny-ImageNet": ("tiny-imagenet", "conv4")}
METHODS = {"Random": "random", "RDED": "rded", "Ours": "diffsel"}
COLUMNS = ("DSA", "IDM", "TESLA", "DATM", "RDED", "Ours", "SRe2L, ResNet-18", "D4M, ResNet-18", "Ours, ResNet-18")
ROWS = {
    "CIFAR-10, IPC 10": "52.1 0.5 58.6 0.1 66.4 0.8 66.8 0.2 50.2 0.3 48.8 0.4 29.3 0.5 34.2 0.3 36.4 0.2",
    "CIFAR-10, IPC 50": "60.6 0.5 67.5 0.1 72.6 0.7 76.1 0.3 68.4 0.1 66.2 0.3 45.0 0.7 60.9 0.1 61.0 0.6",
    "CIFAR-100, IPC 10": "32.3 0.3 45.1 0.1 41.7 0.3 47.2 0.4 48.1 0.3 47.3 0.4 27.0 0.4 40.8 0.5 41.5 0.4",
    "CIFAR-100, IPC 50": "42.8 0.4 50.0 0.2 47.9 0.3 55.0 0.2 57.0 0.1 57.6 0.2 50.2 0.4 62.3 0.4 63.8 0.3",
    "Tiny-ImageNet, IPC 10": "- - 21.9 0.3 - - 31.1 0.3 39.6 0.1 40.3 0.2 16.1 0.2 35.1 0.4 40.2 0.5",
    "Tiny-ImageNet, IPC 50": "- - 27.7 0.3 - - 39.7 0.3 47.6 0.2 49.2 0.7 41.1 0.4 52.7 0.4 58.5 0.2",
}
EXPECTED = {
    (row, column): (float(text.split()[2 * k]), float(text.split()[2 * k + 1]))
    for row, text in ROWS.items()
    for k, column in enumerate(COLUMNS)
    if text.split()[2 * k] != "-"
}


def cells() -> list[Case]:
    return [
        Case(f"{data}, IPC {ipc}", column + suffix, dataset, ipc, method, network, network)
        for data, (dataset, convnet) in DATA.items()
        for ipc in (10, 50)
        for suffix, network in (("", convnet), (", ResNet-18", "resnet18_modified"))
        for column, method in METHODS.items()
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM)
