"""Figure 7: how many real images a class are enough.

    accelerate launch pipelines/real_images.py --scale paper --out study

Cost at paper scale: smaller numbers are read from high_resolution.py's pass and its features; the full set takes a pass of its
own, 41 million U-Net forwards; 25 students: about 13 hours of a large GPU.
Only the point at 300 is printed in the paper (Tab. 1).
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "300 random images a class are nearly on par with the full set; fewer cost little."
COUNTS = (50, 100, 200, 300)
EXPECTED = {("300", "IPC 10"): 46.1}


def cells() -> list[Case]:
    fewer = [Case(str(count), "IPC 10", "imagenet-1k", 10, settings={"selection.images": count}) for count in COUNTS]
    return [*fewer, Case("full set", "IPC 10", "imagenet-1k", 10, settings={"data.images_per_class": None})]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM, shape="lines")
