"""Does this prior know my classes?  A few images, every label (knowledge.py says what the answers are worth)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..data.classes import ClassInfo
from ..data.images import ImageData
from ..data.pixels import Pixels
from ..machine.progress import Progress, quiet
from ..scoring.answers import check_answers
from ..scoring.draws import Bucket, Scorer, differential_and_gap, latent_shape
from ..scoring.nats import nats_per_unit
from ..settings.errors import ConfigError, UnreadableImage
from .knowledge import Answer

LABELS = 10  # that an image is tried with, at most: its own, and others drawn by the seed


@torch.inference_mode()
def probe(data: ImageData, scorer: Scorer, template: str, images: int, progress: Progress = quiet) -> dict[str, list[Answer]]:
    """The first readable ``images`` of each class, by class.  Raises ConfigError where there is only one class, and as
    ``check_answers``."""
    if len(data.classes) < 2:
        raise ConfigError(f"{data.root} has one class; a probe compares labels and needs two or more")
    check_answers(scorer.model, data.classes[0].prompt(template), scorer.settings.null_prompt, data.settings.image_size)
    words = scorer.model.embed_prompts([scorer.settings.null_prompt, *(info.prompt(template) for info in data.classes)])
    answers: dict[str, list[Answer]] = {}
    with progress(total=images * len(data.classes), desc="probing", unit="image") as bar:
        for number, info in enumerate(data.classes):
            pictures = _readable(data, info, images)
            labels = _labels(number, len(data.classes), scorer.seed)
            answers[info.folder] = []
            for key, pixels in pictures:
                answers[info.folder].append(_ask(scorer, key, pixels, words, labels, info.folder))
                bar.update()
    return {label: found for label, found in answers.items() if found}


def _readable(data: ImageData, info: ClassInfo, count: int) -> list[tuple[str, Pixels]]:
    found: list[tuple[str, Pixels]] = []
    for row in data.of_class(info.folder):
        if len(found) == count:
            break
        try:
            found.append((row.digest, data.pixels(row)))
        except UnreadableImage:
            continue
    return found


def _labels(own: int, classes: int, seed: int) -> Int[np.ndarray, " labels"]:
    """Numbers of the labels that images of class ``own`` are tried with, their own first."""
    others = np.random.default_rng([seed, own]).permutation([k for k in range(classes) if k != own])
    return np.array([own, *others[: LABELS - 1]])


def _ask(scorer: Scorer, key: str, pixels: Pixels, words: Tensor, labels: np.ndarray, label: str) -> Answer:
    shape, s = latent_shape(scorer.model, pixels), scorer.settings
    bucket = Bucket(scorer.encode([(key, pixels)]), [key], words[[0, *(1 + labels)]][None], [0], {0: 0})
    rows = [row for _, row in scorer.losses([(bucket, [(0, draw) for draw in range(s.draws)])], _differences)]
    mean = np.stack(rows).mean((0, 2, 3), dtype=np.float64)
    window = s.log_snr or (scorer.model.levels.log_snr(s.t_min), scorer.model.levels.log_snr(s.t_max))
    return Answer(label, mean[:-1], float(mean[-1]), nats_per_unit(window, math.prod(shape)))


def _differences(noise: Tensor, predicted: Sequence[Tensor]) -> list[Tensor]:
    """D of each label, then G of the first; the null prompt's prediction comes first."""
    null, *labels = predicted
    maps = [differential_and_gap(noise, null, label) for label in labels]
    return [*(d for d, _ in maps), maps[0][1]]
