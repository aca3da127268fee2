"""Random pictures, as files and as maps by the tiny pipeline."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from diffsel.scoring.draws import Scorer
from diffsel.scoring.maps import Maps, score_images
from diffsel.settings.sections import ScoringSettings

SETTINGS = ScoringSettings(draws=4, bins=2)
PROMPTS = ["An image of cat."]


def picture(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def score(model, images, prompts=PROMPTS, settings=SETTINGS, batch_size=8) -> dict[str, Maps]:
    return {images[i][0]: maps for i, maps in score_images(Scorer(model, settings, 0, batch_size), images, prompts)}


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(seed: int, side: int = 64) -> Image.Image:
    """A smooth picture, as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
