"""Figure 7: how many real images a class are enough.

    accelerate launch pipelines/real_images.py --scale paper --out study

Cost at paper scale: nothing beyond high_resolution.py's pass of ImageNet-1K and its features, since smaller numbers are read
from the same pass; 25 students; demo: about two minutes.  Only the last point is printed in the paper (Tab. 1).
"""

from diffsel.study import Case, main

CLAIM = "300 random images a class are nearly on par with the full set; fewer cost little."
COUNTS = (50, 100, 200, 300)
EXPECTED = {("300", "IPC 10"): 46.1}


def cells() -> list[Case]:
    return [Case(str(count), "IPC 10", "imagenet-1k", 10, settings={"selection.images": count}) for count in COUNTS]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM, shape="lines")
