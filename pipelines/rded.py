"""RDED's own experiments: the settings of its scripts, as cells, beside random crops under the same protocol.

    accelerate launch pipelines/rded.py --scale paper --out study

Cost at paper scale: no U-Net forward, 160 students: about 8 hours of a large GPU.
Expected are RDED's numbers as the paper quotes them (Tab. 1 and 2); the other settings are in no text that we have.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "RDED's crops, chosen by a classifier."
SETTINGS = {
    "CIFAR-10, ConvNet-3": ("cifar10", "conv3", 10, 5, 32),
    "CIFAR-10, ResNet-18": ("cifar10", "resnet18_modified", 10, 5, 32),
    "CIFAR-100, ConvNet-3": ("cifar100", "conv3", 10, 5, 32),
    "CIFAR-100, ResNet-18": ("cifar100", "resnet18_modified", 10, 5, 32),
    "Tiny-ImageNet, ConvNet-4": ("tiny-imagenet", "conv4", 10, 5, 64),
    "Tiny-ImageNet, ResNet-18": ("tiny-imagenet", "resnet18_modified", 10, 5, 64),
    "Tiny-ImageNet, ResNet-18, IPC 50": ("tiny-imagenet", "resnet18_modified", 50, 5, 64),
    "ImageNet-10, ResNet-18": ("imagenet-10", "resnet18", 10, 5, 224),
    "ImageNette, ConvNet-5": ("imagenette", "conv5", 10, 5, 128),
    "ImageNette, ResNet-18": ("imagenette", "resnet18", 10, 5, 224),
    "ImageWoof, ConvNet-5": ("imagewoof", "conv5", 10, 5, 128),
    "ImageWoof, ResNet-18": ("imagewoof", "resnet18", 10, 5, 224),
    "ImageNet-100, ConvNet-6": ("imagenet-100", "conv6", 10, 5, 128),
    "ImageNet-100, ResNet-18": ("imagenet-100", "resnet18", 10, 5, 224),
    "ImageNet-1K, ResNet-18": ("imagenet-1k", "resnet18", 10, 5, 224),
    "ImageNet-1K, ResNet-18, 1 crop": ("imagenet-1k", "resnet18", 10, 1, 224),
}
EXPECTED = {
    ("CIFAR-10, ConvNet-3", "RDED"): (50.2, 0.3),
    ("CIFAR-100, ConvNet-3", "RDED"): (48.1, 0.3),
    ("Tiny-ImageNet, ConvNet-4", "RDED"): (39.6, 0.1),
    ("ImageNette, ResNet-18", "RDED"): (61.4, 0.4),
    ("ImageWoof, ResNet-18", "RDED"): (38.5, 2.1),
    ("ImageNet-100, ResNet-18", "RDED"): (36.0, 0.3),
    ("ImageNet-1K, ResNet-18", "RDED"): (42.0, 0.1),
}


def cells() -> list[Case]:
    return [
        Case(row, column, data, ipc, method, network, network, settings={"baseline.crops": crops, "assembly.size": size})
        for row, (data, network, ipc, crops, size) in SETTINGS.items()
        for column, method in (("Random", "random"), ("RDED", "rded"))
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM)
