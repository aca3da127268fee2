"""Figure 7: how many real images a class are enough.

    accelerate launch pipelines/real_images.py --scale paper --out study

Cost at paper scale: nothing to score after high_resolution.py, since smaller numbers are read from the same pass and its
features; 20 students: about 6 hours of a large GPU.
Only the last point is printed in the paper (Tab. 1).
"""

from diffsel.study import Case, main

CLAIM = "300 random images a class are nearly on par with the full set; fewer cost little."
COUNTS = (50, 100, 200, 300)
EXPECTED = {("300", "IPC 10"): 46.1}


def cells() -> list[Case]:
    return [Case(str(count), "IPC 10", "imagenet-1k", 10, settings={"selection.images": count}) for count in COUNTS]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM, shape="lines")
