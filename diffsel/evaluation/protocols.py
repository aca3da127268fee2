"""A protocol made definite for one student on one set: RDED's tables and formulas, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..settings.errors import ConfigError
from ..settings.training import ProtocolSettings

RATES = {"efficientnet_b0": 2e-3, "mobilenet_v2": 2.5e-3, "vgg11": 5e-4, "alexnet": 1e-4}  # of AdamW; others: below
BATCHES = {1: 10, 10: 50, 50: 100}  # ipc -> batch size with fewer than 100 classes
NAMED: dict[str, dict[str, Any]] = {  # what these names promise: configs/protocols/NAME.yaml, apart from the defaults
    "rded-fixed": {},
    "rded": {"double_forward": True, "drop_remainder": True, "report": "best"},
    "hard": {"labels": "hard"},
    "fixed": {"labels": "fixed"},
    "plain": {"mix": "none", "crop": False, "flip": False, "shuffle": False},
}


def changes(p: ProtocolSettings) -> str:
    """In which settings a protocol is not what its name promises, as "labels = hard, epochs = 3"; empty for own names too."""
    if p.name not in NAMED:
        return ""
    promised = ProtocolSettings(name=p.name, **NAMED[p.name])
    names = [name for name in type(p).model_fields if getattr(p, name) != getattr(promised, name)]
    return ", ".join(f"{name} = {getattr(p, name)}" for name in names)


def whole_name(p: ProtocolSettings) -> str:
    """A protocol's name, and what differs from it."""
    return f"{p.name} with {found}" if (found := changes(p)) else p.name


def starred(p: ProtocolSettings) -> str:
    """A protocol's name, with a star where something differs from it."""
    return p.name + "*" * bool(changes(p))


@dataclass(frozen=True)
class Recipe:
    """Every number that one student is trained with (RDED's argument.py; golden `rded_config`)."""

    size: int  # side of the input, pixels
    val_resize: int  # shortest side of a validation image before its middle is cut out, pixels
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float  # of weights with more than one dimension; 0 for the rest
    temperature: float
    crop_scale: tuple[float, float]  # of RandomResizedCrop, share of the area
    factor: int  # tiles per mosaic side, for ShufflePatches
    evaluated: tuple[int, ...]  # epochs, from 0, after which the student is measured


def resolve_recipe(
    p: ProtocolSettings, *, classes: int, ipc: int, factor: int, size: int, student: str, teacher: str | None = None
) -> Recipe:
    """The recipe for ``student`` on a set of ``ipc`` images in each of ``classes`` classes, ``factor`` tiles a side.

    RDED trains ConvNet-3 on CIFAR-100 in its own way (batches of 25, twice the rate), told here by classes and size.
    """
    special = classes == 100 and size == 32 and student == "conv3" and teacher in ("conv3", None)
    batch = p.batch_size or (25 if special else _batch_size(classes, ipc) // p.accumulate)
    rate = p.learning_rate or (0.1 if p.optimizer == "sgd" else 2e-3 if special else learning_rate(student))
    decay = p.weight_decay if p.weight_decay is not None else {"sgd": 1e-4, "adamw": 1e-2}[p.optimizer]
    return Recipe(
        size=size,
        val_resize=validation_resize(size),
        batch_size=max(1, min(batch, ipc * classes)),
        optimizer=p.optimizer,
        learning_rate=rate,
        weight_decay=decay,
        temperature=p.temperature or (4.0 if p.mix == "mixup" else 20.0),
        crop_scale=(1 / factor, 1.0),
        factor=factor,
        evaluated=evaluated_epochs(p),
    )


def validation_resize(size: int) -> int:
    """The shorter side that validation images get before their middle ``size`` pixels are cut out (RDED: 224 -> 256)."""
    return max(size, size // 7 * 8)


def batch_starts(images: int, batch: int) -> list[int]:
    """Where the batches of an epoch begin.  A last one of one image joins the one before: BatchNorm cannot take it."""
    starts = list(range(0, images, batch))
    return starts[:-1] if len(starts) > 1 and images - starts[-1] == 1 else starts


def check_batches(p: ProtocolSettings, batch: int, images: int) -> None:
    """Refuse batches that BatchNorm cannot take, or too few of them for one step.  Raises ConfigError."""
    if batch < 2:
        raise ConfigError(
            f"{images} images with protocol.accumulate = {p.accumulate} make batches of {batch} image; a student needs 2"
        )
    if (count := len(batch_starts(images, batch))) < p.accumulate:
        raise ConfigError(
            f"protocol.accumulate = {p.accumulate}, but an epoch of {images} images has only {count} batches of {batch}, so "
            "that no step would ever be made; lower protocol.accumulate or protocol.batch_size"
        )


def _batch_size(classes: int, ipc: int) -> int:
    """RDED's table; an ipc that is not in it takes the next smaller one's (100 takes that of 50)."""
    if classes == 200:  # Tiny-ImageNet
        return min(100, ipc * classes)
    base = BATCHES[max(known for known in BATCHES if known <= ipc)]
    return min(base * (2 if classes >= 100 else 1), ipc * classes)


def learning_rate(student: str) -> float:
    """AdamW's rate by architecture: 1e-3 for ConvNets and ResNets, 1e-4 for transformers."""
    return RATES.get(student, 1e-4 if student.startswith(("vit", "swin")) else 1e-3)


def rate_factor(p: ProtocolSettings, epoch: int) -> float:
    """What the learning rate is multiplied with in ``epoch`` (from 0); the half cosine ends at one half."""
    if epoch > p.epochs:
        return 0.0
    if p.schedule == "linear":
        return 1 - epoch / p.epochs
    return 0.5 * (1 + math.cos(math.pi * epoch / p.epochs / 2))


def evaluated_epochs(p: ProtocolSettings) -> tuple[int, ...]:
    """Epochs (from 0) after which RDED measures: every tenth of the last fifth, and the last one."""
    every = [e for e in range(p.epochs) if e % p.evaluate_every == p.evaluate_every - 1 and e > 0.8 * p.epochs]
    return tuple(sorted({*every, p.epochs - 1}))
