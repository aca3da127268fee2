"""Figures 2, 3 and 9 to 14: sheets of pictures.

    accelerate launch pipelines/sheets.py --scale paper --out study

Cost at paper scale: high_resolution.py's passes, and features of smaller patches; no students: minutes after it.
EXPECTED says what each sheet shows: the stages of an image, a set's first pictures, or all of one class.
Figure 3's caption is not in the text that we have: sets of three methods side by side stand for it.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

EXPECTED = {
    ("Figure 2", "from image to patch"): "stages",
    ("Figure 3", "random"): "set",
    ("Figure 3", "RDED"): "set",
    ("Figure 3", "ours"): "set",
    ("Figure 9", "patch 112"): "set",
    ("Figure 9", "patch 224"): "set",
    ("Figure 10", "ImageWoof, IPC 10"): "set",
    ("Figure 11", "ImageNette, IPC 10"): "set",
    ("Figure 12", "ImageWoof, IPC 50"): "set",
    ("Figure 13", "ImageNette, IPC 50"): "set",
    ("Figure 14", "one class, IPC 100"): "class",
}
SMALL = {"patches.patch_size": 112}


def cells() -> list[Case]:
    return [
        Case("Figure 2", "from image to patch", "imagewoof", 10),
        Case("Figure 3", "random", "imagewoof", 10, "random"),
        Case("Figure 3", "RDED", "imagewoof", 10, "rded"),
        Case("Figure 3", "ours", "imagewoof", 10),
        Case("Figure 9", "patch 112", "imagewoof", 10, settings=SMALL),
        Case("Figure 9", "patch 224", "imagewoof", 10),
        Case("Figure 10", "ImageWoof, IPC 10", "imagewoof", 10),
        Case("Figure 11", "ImageNette, IPC 10", "imagenette", 10),
        Case("Figure 12", "ImageWoof, IPC 50", "imagewoof", 50),
        Case("Figure 13", "ImageNette, IPC 50", "imagenette", 50),
        Case("Figure 14", "one class, IPC 100", "imagenet-1k", 100, shown="n02099601"),  # golden retriever
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, measure="sheet")
