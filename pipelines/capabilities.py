"""Table 4 and Figure 5: what each method can do, and how long its sets take to make.

    accelerate launch pipelines/capabilities.py --scale paper --out study

Cost at paper scale: a scoring pass of its own over ImageNet-1K (9.6 million U-Net forwards, about an hour of a large GPU),
since shared work cannot be timed; no students.
"IPC" and "Class" are measured as what IPC 50 and a set of 5 classes cost after the first set (IPC 10);
what RDED's classifier took to train is not in its seconds.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "one pass serves every IPC and class combination, without a classifier; Fig. 5's seconds are only drawn, not printed."
METHODS = {"Random": "random", "RDED": "rded", "Ours": "diffsel"}
COLUMNS = ("Large-scale", "Zero-shot", "Class", "IPC")
EXPECTED = {
    (row, column): "yes" if mark == "+" else "no"
    for row, marks in {
        "DATM": "----",
        "SRe2L": "+--+",
        "Minimax": "+--+",
        "D4M": "+++-",
        "RDED": "+-++",
        "Ours": "++++",
    }.items()
    for column, mark in zip(COLUMNS, marks, strict=True)
}


def cells() -> list[Case]:
    return [
        Case(row, column, "imagenet-1k", ipc, method, classes=classes)
        for row, method in METHODS.items()
        for column, ipc, classes in (("first set", 10, None), ("then IPC 50", 50, None), ("then 5 classes", 10, 5))
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM, measure="time")
