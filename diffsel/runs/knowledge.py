"""What a prior knows of some images: nats, calibration, right labels against wrong; asked (probe.py), or as a pass tells."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..machine.terminal import shown
from ..scoring.nats import auroc
from .run import Run
from .units import Means

CALIBRATED = (0.7, 1.4)  # r is near enough to 1
NAMED = 10  # classes in a note, at most


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
    gap: float  # mean of G, in nats too

    @property
    def calibration(self) -> float:
        """r = E[-D] / E[G]: 1 where the label prediction is the posterior mean."""
        return self.nats[0] / self.gap if self.gap else math.nan


def knowledge(answers: Sequence[Answer]) -> Knowledge:
    """The figures of these images (one or more)."""
    n = len(answers)
    hits, nats = np.array([each.right for each in answers], float), np.array([each.nats for each in answers])
    share = (hits.sum() + 2) / (n + 4)  # Agresti & Coull: an interval that does not vanish where all are right
    right = [-each.differences[0] for each in answers]
    wrong = [-value for each in answers for value in each.differences[1:]]
    area, error = auroc(right, wrong) if wrong else (math.nan, math.nan)
    spread = 1.96 * float(nats.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    gap = float(np.mean([each.unit * each.gap for each in answers]))
    top1 = 100 * float(hits.mean()), 196 * math.sqrt(share * (1 - share) / (n + 4))
    return Knowledge(n, top1, (area, 1.96 * error), (float(nats.mean()), spread), gap)


def unknown(by_class: Mapping[str, Knowledge]) -> list[str]:
    """Classes of which the prior does not surely know anything: their words do not lower the loss beyond the interval."""
    return [label for label, known in by_class.items() if known.nats[0] <= known.nats[1]]


def overall(known: Collection[Knowledge]) -> tuple[float, float]:
    """Mean nats and calibration r over all images of these classes (one or more)."""
    images = sum(each.images for each in known)
    nats, gap = (
        sum(each.images * value for each, value in zip(known, values, strict=True)) / images
        for values in ([each.nats[0] for each in known], [each.gap for each in known])
    )
    return nats, nats / gap if gap else math.nan


def bound(classes: int) -> str:
    """ln K, which the mean over images cannot pass where the null prompt stands for K balanced classes and no other images."""
    return f"at most ln {classes} = {math.log(classes):.2f} nats an image, for a prior of these classes alone"


def verdict(by_class: Mapping[str, Knowledge], of: str = "this prior") -> list[str]:
    """What a user should know: classes that the prior does not know, and a calibration far from 1; in words."""
    notes, strange = [], [f"'{shown(label)}'" for label in unknown(by_class)]
    if strange:
        named = ", ".join(strange[:NAMED]) + (f" and {len(strange) - NAMED} more" if len(strange) > NAMED else "")
        notes.append(f"{of} does not surely know: {named} (the loss is not lower with the words, beyond chance)")
    r = overall(by_class.values())[1] if by_class else math.nan
    if not CALIBRATED[0] <= r <= CALIBRATED[1] and not math.isnan(r):
        notes.append(
            f"r = {r:.2f} is far from 1: the label predictions are no posterior means "
            "(a distilled or little trained model, or words that it does not know); scores are no log-likelihoods"
        )
    return notes


# ---- of a stored pass ------------------------------------------------------------------------------------------------


def stored(run: Run, label: str, means: Sequence[Means] | None = None) -> Knowledge | None:
    """What the maps of a class tell of its own label (of no other); None: no image.

    ``means``: of its images, by default of its first unit.  Where nats are not known, these are in units of the loss.
    """
    found = [each for unit in run.of_class(label)[:1] for each in run.image_means(unit)] if means is None else means
    pixels = {row.row: math.prod(run.data.size(row)) for row, _, _ in found}
    told = [Answer(label, np.array([d]), g, (run.nats or 1) * pixels[row.row]) for row, d, g in found]
    return knowledge(told) if told else None


def what_it_knows(run: Run, by_class: Mapping[str, Knowledge] | None = None) -> list[str]:
    """A pass in words: mean nats and r, and the verdict; ``by_class``: by default, what the
    first unit of each class tells."""
    if by_class is None:
        found = {label: stored(run, label) for label in run.infos}
        by_class = {label: known for label, known in found.items() if known}
    if not by_class:
        return []
    nats, r = overall(by_class.values())
    mean = f"an image's label tells {nats:.2f} nats on average ({bound(len(by_class))}); " if run.nats else ""
    calibration = "" if math.isnan(r) else f"r = {r:.2f} (1: the label predictions are posterior means)"
    return [mean + calibration, *verdict(by_class)]
