"""Table 6: timestep ranges of the loss maps, all read from one stored pass.

    accelerate launch pipelines/timestep_ranges.py --scale paper --out study

Cost at paper scale: high_resolution.py's pass of ImageNet-1K, features and students of ten ranges: about 70 hours of a
large GPU.
The paper also gives 58.1 for the range from 0.5 to 0.5; a range of no width holds no stored timestep and is not run.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "middle timesteps matter most, and the small ones are needed: 0.1 to 0.7 is best."
ENDS = (0.3, 0.5, 0.7, 0.9)
EXPECTED = {
    ("from 0.1", "to 0.3"): 58.9,
    ("from 0.1", "to 0.5"): 59.3,
    ("from 0.1", "to 0.7"): 61.0,
    ("from 0.1", "to 0.9"): 59.7,
    ("from 0.3", "to 0.5"): 58.8,
    ("from 0.3", "to 0.7"): 58.9,
    ("from 0.3", "to 0.9"): 59.6,
    ("from 0.5", "to 0.7"): 58.6,
    ("from 0.5", "to 0.9"): 59.0,
    ("from 0.7", "to 0.9"): 57.9,
}


def cells() -> list[Case]:
    return [
        Case(f"from {start}", f"to {end}", "imagenet-1k", 50, settings={"patches.t_range": (start, end)})
        for start in (0.1, 0.3, 0.5, 0.7)
        for end in ENDS
        if start < end
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM, shape="grid")
