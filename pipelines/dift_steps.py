"""Figure 6: the time step of the DIFT features.

    accelerate launch pipelines/dift_steps.py --scale paper --out study

Cost at paper scale: high_resolution.py's pass of ImageNet-1K, half a forward an image for each step, 50 students: about 43
hours of a large GPU.
Only the point of the default step is printed in the paper (Tab. 5); the curve is drawn.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "earlier time steps give better features; 0.16 is taken everywhere."
STEPS = (0.04, 0.16, 0.32, 0.48, 0.64)
EXPECTED = {("0.16", "IPC 10"): 46.1, ("0.16", "IPC 50"): 61.0}


def cells() -> list[Case]:
    return [
        Case(str(step), f"IPC {ipc}", "imagenet-1k", ipc, settings={"features.timestep": step})
        for step in STEPS
        for ipc in (10, 50)
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM, shape="lines")
