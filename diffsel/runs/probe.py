"""Does this prior know my classes?  A few images, every label: zero-shot accuracy, right against wrong, nats, calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.classes import ClassInfo
from ..data.images import ImageData
from ..data.pixels import Pixels
from ..machine.progress import Progress, quiet
from ..scoring.draws import Scorer, differential_and_gap, latent_shape
from ..scoring.nats import auroc, nats_per_unit
from ..settings.errors import ConfigError, UnreadableImage

LABELS = 10  # that an image is tried with, at most: its own, and others drawn by the seed


@dataclass(frozen=True)
class Answer:
    """One image: how far each label tried (its own first) raises the loss above the null prompt's, and its own label's gap."""

    label: str
    differences: Float[np.ndarray, " labels"]  # mean of D over the image
    gap: float  # mean of G of its own label
    unit: float  # what turns a mean of -D into nats

    @property
    def right(self) -> bool:
        """Whether its own label has the least loss (the diffusion classifier; paper Eq. 4)."""
        return int(self.differences.argmin()) == 0

    @property
    def nats(self) -> float:
        return -self.unit * float(self.differences[0])


@dataclass(frozen=True)
class Knowledge:
    """What a prior knows of some images: each figure with half of its 95 % interval."""

    images: int
    top1: tuple[float, float]  # percent
    auroc: tuple[float, float]
    nats: tuple[float, float]
    calibration: float  # r = E[-D] / E[G]: 1 where the label prediction is the posterior mean


def knowledge(answers: Sequence[Answer]) -> Knowledge:
    """The figures of these images (one or more)."""
    n = len(answers)
    hits, nats = np.array([each.right for each in answers], float), np.array([each.nats for each in answers])
    share = (hits.sum() + 2) / (n + 4)  # Agresti & Coull: an interval that does not vanish where all are right
    right = [-each.differences[0] for each in answers]
    wrong = [-value for each in answers for value in each.differences[1:]]
    area, error = auroc(right, wrong) if wrong else (math.nan, math.nan)
    spread = 1.96 * float(nats.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    gap = sum(each.gap for each in answers)
    ratio = -sum(float(each.differences[0]) for each in answers) / gap if gap else math.nan
    top1 = 100 * float(hits.mean()), 196 * math.sqrt(share * (1 - share) / (n + 4))
    return Knowledge(n, top1, (area, 1.96 * error), (float(nats.mean()), spread), ratio)


def unknown(by_class: Mapping[str, Knowledge]) -> list[str]:
    """Classes of which the prior knows nothing: their words do not lower the loss beyond the interval."""
    return [label for label, known in by_class.items() if not known.nats[0] > known.nats[1]]


@torch.inference_mode()
def probe(data: ImageData, scorer: Scorer, template: str, images: int, progress: Progress = quiet) -> dict[str, list[Answer]]:
    """The first readable ``images`` of each class, by class.  Raises ConfigError where there is only one class."""
    if len(data.classes) < 2:
        raise ConfigError(f"{data.root} has one class; a probe compares labels and needs two or more")
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
    latents, shape, s = scorer.encode([(key, pixels)]), latent_shape(scorer.model, pixels), scorer.settings
    items, chosen = [(0, draw) for draw in range(s.draws)], words[[0, *(1 + labels)]]
    rows = [row for _, row in scorer.losses(latents, [key], items, chosen, _differences)]
    mean = np.stack(rows).mean((0, 2, 3), dtype=np.float64)
    window = scorer.model.levels.log_snr(s.t_min), scorer.model.levels.log_snr(s.t_max)
    return Answer(label, mean[:-1], float(mean[-1]), nats_per_unit(window, math.prod(shape)))


def _differences(noise: Tensor, predicted: Sequence[Tensor]) -> list[Tensor]:
    """D of each label, then G of the first; the null prompt's prediction comes first."""
    null, *labels = predicted
    maps = [differential_and_gap(noise, null, label) for label in labels]
    return [*(d for d, _ in maps), maps[0][1]]
