"""Tables 3 and 8: every teacher with every student on ImageNet-1K, IPC 50 and IPC 10.

    accelerate launch pipelines/cross_architecture.py --scale paper --out study

Cost at paper scale: nothing to score after high_resolution.py; 490 students: about 900 hours of a large GPU.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "small CNNs teach best, larger students learn more at IPC 50; transformers teach badly and need many images."
NETWORKS = {
    "ResNet-18": "resnet18",
    "ResNet-50": "resnet50",
    "ResNet-101": "resnet101",
    "MobileNet-V2": "mobilenet_v2",
    "EfficientNet-B0": "efficientnet_b0",
    "Swin-T": "swin_t",
    "ViT-B": "vit_b_16",
}
TABLES = {
    50: """61.0 63.1 65.7 53.6 60.4 61.8 63.7
           52.2 64.8 66.7 48.9 56.2 51.3 60.1
           50.1 63.7 66.5 46.1 55.5 42.8 50.5
           55.2 62.5 65.0 55.3 60.5 57.2 62.3
           45.8 59.1 61.1 45.0 58.4 51.7 60.3
           34.4 51.2 52.7 35.1 44.1 51.1 50.2
           31.2 46.9 49.3 32.7 40.0 41.3 46.2""",
    10: """46.1 50.1 51.2 36.1 46.1 31.2 22.3
           34.6 44.0 42.2 27.8 38.1 27.4 19.8
           33.2 41.4 42.5 28.2 37.0 26.1 17.0
           40.1 48.3 46.7 37.5 46.0 30.1 20.5
           29.8 38.4 38.7 27.4 38.9 30.3 21.3
           18.9 30.2 31.4 21.6 31.7 26.7 16.0
           16.8 27.8 28.9 19.2 28.9 23.6 15.0""",
}
EXPECTED = {
    (f"IPC {ipc}, {teacher}", student): float(number)
    for ipc, text in TABLES.items()
    for teacher, line in zip(NETWORKS, text.splitlines(), strict=True)
    for student, number in zip(NETWORKS, line.split(), strict=True)
}


def cells() -> list[Case]:
    return [
        Case(f"IPC {ipc}, {teacher}", student, "imagenet-1k", ipc, teacher=NETWORKS[teacher], student=NETWORKS[student])
        for ipc in TABLES
        for teacher in NETWORKS
        for student in NETWORKS
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM, shape="grid")
