"""Table 9: image sizes before scoring, and patch sizes.

    accelerate launch pipelines/sizes.py --scale paper --out study

Cost at paper scale: ImageWoof scored at 128, 256 and 512 px, 90 students: about 1.5 hours of a large GPU.
The text that we have names only 256 and 224 px; the others follow from the numbers of rows, each 7/8 of an image size.
"""

from diffsel.studies.cases import Case
from diffsel.studies.study import main

CLAIM = "larger images and patches near the image's size are better; 256 and 224 are the best trade."
NUMBERS = {
    (128, 112): (42.6, 70.2, 77.8),
    (256, 112): (40.4, 67.4, 76.8),
    (256, 224): (44.5, 73.7, 80.1),
    (512, 112): (38.6, 65.3, 71.4),
    (512, 224): (43.1, 69.5, 78.4),
    (512, 448): (45.1, 73.2, 81.0),
}
EXPECTED = {
    (f"image {image}, patch {patch}", f"IPC {ipc}"): number
    for (image, patch), row in NUMBERS.items()
    for ipc, number in zip((10, 50, 100), row, strict=True)
}


def cells() -> list[Case]:
    return [
        Case(
            f"image {image}, patch {patch}",
            f"IPC {ipc}",
            "imagewoof",
            ipc,
            settings={"data.image_size": image, "patches.patch_size": patch},
        )
        for image, patch in NUMBERS
        for ipc in (10, 50, 100)
    ]


if __name__ == "__main__":
    main(__file__, __doc__, cells(), EXPECTED, CLAIM)
