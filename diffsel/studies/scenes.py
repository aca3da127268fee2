"""The embedded data set: handwritten digits on cluttered colour scenes, with the true box of every object.

The digits are scikit-learn's bundled UCI set (real handwriting, 8 x 8, no download).  Each scene is a
64 x 64 colour gradient with a few distractors (fragments of other digits, blurred ellipses) and one digit,
or two of different classes, at random places.  A scene depends on nothing but its seed and its index.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 64  # side of a scene, pixels
GLYPH_SIZES = (24, 31)  # side of an upscaled digit, pixels (upper end excluded)
Split = Literal["train", "test"]
Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Alpha = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """One picture: ``pixels`` uint8 (64, 64, 3) and the class and true box of each object, the labelled one first."""

    pixels: NDArray[np.uint8]
    labels: tuple[int, ...]
    boxes: tuple[Box, ...]


@cache
def digits(split: Split) -> tuple[NDArray[np.float32], ...]:
    """The 8 x 8 digits of a split, in [0, 1], one array (n, 8, 8) per class; train (70%) and test are disjoint."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    groups = []
    for label in range(10):
        images = bundle.images[bundle.target == label].astype(np.float32) / 16
        order = np.random.default_rng(label).permutation(len(images))
        cut = int(0.7 * len(images))
        groups.append(images[order[:cut] if split == "train" else order[cut:]])
    return tuple(groups)


def compose(split: Split, label: int, index: int, objects: int = 1, seed: int = 0) -> Scene:
    """Draw scene number ``index`` of a class.

    ``objects`` is 1, or 2 for a scene with a second digit of another class that does not touch the first.
    """
    stream = {"train": 0, "test": 1}[split]
    rng = np.random.default_rng([seed, stream, objects, label, index])
    canvas, inks = _background(rng)
    for _ in range(rng.integers(4, 8)):
        _paste(canvas, _distractor(rng, split), rng.integers(-2, SIZE - 6, 2), inks(rng))
    labels = [label] if objects == 1 else [label, int((label + rng.integers(1, 10)) % 10)]
    while True:  # redraw sizes and places until the objects keep apart; a few tries at most
        glyphs = [_glyph(rng, split, each) for each in labels]
        spots = [rng.integers(0, SIZE - np.array(glyph.shape) + 1) for glyph in glyphs]
        boxes = [_ink_box(glyph, spot) for glyph, spot in zip(glyphs, spots, strict=True)]
        if objects == 1 or not _overlap(boxes[0], boxes[1]):
            break
    for glyph, spot in zip(glyphs, spots, strict=True):
        _paste(canvas, glyph, spot, inks(rng))
    pixels = np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)
    return Scene(pixels, tuple(labels), tuple(boxes))


def _background(rng: np.random.Generator):
    """A two-colour gradient and the colours of what is drawn on it: light on dark, dark on light, or vivid on grey."""
    mode = rng.integers(3)
    low, high = [(0.0, 0.35), (0.65, 1.0), (0.35, 0.65)][mode]
    ends = rng.uniform(low, high, (2, 3)) if mode < 2 else np.repeat(rng.uniform(low, high, (2, 1)), 3, axis=1)
    angle = rng.uniform(0, 2 * np.pi)
    rows, cols = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    ramp = np.clip(rows * np.sin(angle) + cols * np.cos(angle) + 0.5, 0, 1)[..., None]
    canvas = (ends[0] * (1 - ramp) + ends[1] * ramp).astype(np.float32)

    def inks(rng: np.random.Generator) -> NDArray[np.float32]:
        if mode == 0:
            return rng.uniform(0.7, 1.0, 3).astype(np.float32)
        if mode == 1:
            return rng.uniform(0.0, 0.3, 3).astype(np.float32)
        colour = rng.permutation([rng.uniform(0.9, 1.0), rng.uniform(0.0, 0.1), rng.choice([0.0, 1.0])])
        return colour.astype(np.float32)

    return canvas, inks


def _glyph(rng: np.random.Generator, split: Split, label: int) -> Alpha:
    """One digit as opacity in [0, 1]: upscaled bicubically, turned by up to 10 degrees, contrast-stretched."""
    pool = digits(split)[label]
    side = int(rng.integers(*GLYPH_SIZES))
    small = Image.fromarray(pool[rng.integers(len(pool))])
    large = small.resize((side, side), Image.Resampling.BICUBIC)
    turned = large.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    return np.clip((np.asarray(turned, np.float32) - 0.25) / 0.5, 0, 1).astype(np.float32)


def _distractor(rng: np.random.Generator, split: Split) -> Alpha:
    """A fragment (8 to 11 pixels) of some digit, or a blurred ellipse."""
    if rng.random() < 0.5:
        side = int(rng.integers(8, 12))
        glyph = _glyph(rng, split, int(rng.integers(10)))
        top, left = rng.integers(0, np.array(glyph.shape) - side + 1)
        return glyph[top : top + side, left : left + side]
    height, width = rng.integers(4, 9, 2)
    picture = Image.new("L", (int(width) + 6, int(height) + 6))
    ImageDraw.Draw(picture).ellipse((3, 3, 2 + int(width), 2 + int(height)), fill=int(rng.integers(120, 230)))
    return (np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2)), np.float32) / 255).astype(np.float32)


def _paste(canvas: NDArray[np.float32], alpha: Alpha, spot: NDArray[np.int64], ink: NDArray[np.float32]) -> None:
    """Blend ``ink`` into ``canvas`` in place, ``alpha``'s corner at ``spot``; what hangs over the edge is cut."""
    top, left = max(0, int(spot[0])), max(0, int(spot[1]))
    alpha = alpha[top - int(spot[0]) :, left - int(spot[1]) :][: SIZE - top, : SIZE - left, None]
    region = canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    region += alpha * (ink - region)


def _ink_box(alpha: Alpha, spot: NDArray[np.int64]) -> Box:
    """The tight box of a glyph's ink, where it is at least half opaque."""
    rows, cols = np.flatnonzero((alpha > 0.5).any(1)), np.flatnonzero((alpha > 0.5).any(0))
    top, left = int(rows[0]), int(cols[0])
    return int(spot[0]) + top, int(spot[1]) + left, int(rows[-1]) - top + 1, int(cols[-1]) - left + 1


def _overlap(a: Box, b: Box) -> bool:
    return abs((2 * a[0] + a[2]) - (2 * b[0] + b[2])) < a[2] + b[2] and abs((2 * a[1] + a[3]) - (2 * b[1] + b[3])) < a[3] + b[3]
