"""Trained networks that label images, and the check that their classes are ours.

A teacher is torchvision's ImageNet weights by name, a checkpoint written by `diffsel teacher`, or RDED's `.pth` files.
It carries its class table, so that a 1000-class teacher serves any subset by its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.classes import ClassInfo, imagenet_names, imagenet_wnids, refuse_shared, spelled
from ..data.views import MEAN, STD
from ..settings.errors import ConfigError, DataError
from .checkpoints import ANEW, Checkpoint, _outputs, read_checkpoint, weights_digest
from .networks import Renormalised, build, check_size

LEVEL = 1e-3  # how often a good teacher may be refused by chance


@dataclass(frozen=True)
class Teacher:
    """A frozen network whose outputs are the classes asked for, in their order."""

    name: str
    source: str
    network: nn.Module
    rows: Int[Tensor, " classes"]  # which outputs
    accuracy: float | None  # recorded top-1, percent
    digest: str  # of the weights

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @torch.inference_mode()
    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Of normalised images."""
        return self.network(images)[:, self.rows].float()


def load_teacher(spec: str, classes: Sequence[ClassInfo], size: int, device: torch.device) -> Teacher:
    """The teacher ``spec`` for ``classes`` on images of ``size`` x ``size`` pixels.

    ``spec`` is a network's name (torchvision's ImageNet weights, version 1, as the sources; or timm:NAME), a folder or
    .safetensors file written by `diffsel teacher`, or a .pth file.

    Raises ConfigError for a teacher that does not load or fit the size, DataError for classes that it lacks.
    """
    found = read_checkpoint(spec)
    rows = class_rows(found, classes)
    check_size(found.network, size)
    network = build(found.network, _outputs(found), size)
    try:
        network.load_state_dict(dict(found.state))
    except RuntimeError as error:
        trained, reason = "", " ".join(str(error).split())[:200]
        if found.size and found.size != size:
            trained = f" (it was trained at {found.size} pixels)"
            flag = f"--size {found.size} (of select, relabel, evaluate)"
            reason = f"{flag} shows it such, `diffsel teacher --size {size}` trains one for {size}"
        raise ConfigError(f"teacher {spec} does not fit images of {size} x {size} pixels{trained}: {reason}") from None
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise ConfigError(f"teacher {spec} is damaged ({name} holds numbers that are not finite); {ANEW}")
    own = (found.mean, found.std) != (MEAN, STD)
    digest = weights_digest(found.state, repr((found.mean, found.std)) if own else "")
    network = Renormalised(network, found.mean, found.std) if own else network
    network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    chosen = torch.tensor(rows, device=device)
    return Teacher(found.network, found.source, network, chosen, found.accuracy, digest)


# ---- classes ---------------------------------------------------------------------------------------------------------


def class_rows(found: Checkpoint, classes: Sequence[ClassInfo]) -> list[int]:
    """The output of each class, by folder, wnid or name.  A table that is not recorded is taken to be ours, in order.

    Raises DataError naming the classes that the teacher lacks, or that would share an output.
    """
    outputs = _outputs(found)
    table = found.classes or (tuple(imagenet_wnids()) if outputs == 1000 else None)
    if table is None:
        if outputs != len(classes):
            raise DataError(
                f"teacher {found.source} has {outputs} classes and no names for them, the data has {len(classes)}; "
                "give a checkpoint that records its classes, or the data that it was trained on"
            )
        return list(range(outputs))
    places = {name: i for i, name in enumerate(table)}
    by_name = {name: i for i, name in enumerate(imagenet_names())} if table == tuple(imagenet_wnids()) else {}
    rows = _rows(classes, places, by_name)
    missing = [info.folder for info, row in zip(classes, rows, strict=True) if row is None]
    if missing:
        raise DataError(
            f"teacher {found.source} lacks {len(missing)} of the {len(classes)} classes: {', '.join(map(repr, missing[:5]))}; "
            f"it has {', '.join(map(repr, table[:5]))}{' ...' if len(table) > 5 else ''}"
        )
    refuse_shared(classes, rows, f"teacher {found.source}")
    return [row for row in rows if row is not None]


def _rows(classes: Sequence[ClassInfo], places: Mapping[str, int], by_name: Mapping[str, int]) -> list[int | None]:
    keys = [[info.folder, info.words.get("wnid", ""), info.name] for info in classes]
    found: list[int | None] = [None] * len(classes)
    for table in (by_name, places):  # the later win
        for names in list(zip(*keys, strict=True))[::-1]:
            for i, name in enumerate(spelled(names, table)):
                found[i] = found[i] if name is None else table[name]
    return found


def check_order(
    confusion: Int[np.ndarray, "n n"],
    names: Sequence[str],
    recorded: float | None,
    source: str,
    images: str = "validation images",
) -> tuple[float, str]:
    """A teacher's top-1 (percent) from its confusion matrix (true class, predicted class), and a doubt or nothing.

    Raises DataError where the classes seem to be in another order: accuracy hardly above chance, far under the recorded
    one, or much better with the outputs permuted.  The message names the likely permutation.  ``images`` says which.

    Few images prove little: a teacher is refused only where a good one (as good as recorded, or at least half way from
    chance to certainty; by a sign test, one that takes no class more often for another) would look so with a
    probability under LEVEL.  Otherwise the doubt is returned in words.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import binom

    n, total, right = len(names), int(confusion.sum()), int(confusion.trace())
    accuracy = 100 * right / total
    true, predicted = linear_sum_assignment(-confusion)
    permuted = 100 * confusion[true, predicted].sum() / total
    moved = [(t, p) for t, p in zip(true, predicted, strict=True) if t != p and confusion[t].sum() >= 5 and confusion[t, p]]
    slips = ", ".join(f"{names[t]!r} is its {names[p]!r}" for t, p in moved[:5]) + (" ..." if len(moved) > 5 else "")
    likely = f"; with the outputs permuted it would be {permuted:.1f} % ({slips})" if moved else ""
    have = f"teacher {source} has {accuracy:.1f} % on {total} {images}"
    signs: list[tuple[str, float]] = []  # what looks wrong, and how probable that is with a good teacher
    if n > 1 and accuracy < 1.2 * 100 / n:
        signs.append((f", no better than chance for {n} classes", binom.cdf(right, total, (1 + 1 / n) / 2)))
    if recorded is not None and accuracy < recorded - 25:
        words = f", but {recorded:.1f} % is recorded: other classes, another order, or other images"
        signs.append((words, binom.cdf(right, total, recorded / 100)))
    if moved and permuted > accuracy + 10:
        signs.append((": its classes are in another order than the data's", _by_chance(confusion, moved)))
    for words, probability in signs:
        if probability < LEVEL:
            raise DataError(f"{have}{words}{likely}")
    return accuracy, f"{have}{signs[0][0]}{likely}; so few images may mislead" if signs else ""


def _by_chance(confusion: Int[np.ndarray, "n n"], moved: Sequence[tuple[int, int]]) -> float:
    """At most how probable it is that some permutation of as many classes fits so much better, though none is right.

    A sign test of the images taken for the other class against those taken for their own, times the number of such
    permutations, out of which this one was chosen.
    """
    from scipy.special import gammaln
    from scipy.stats import binom

    n, other, own = len(confusion), sum(confusion[t, p] for t, p in moved), sum(confusion[t, t] for t, _ in moved)
    choices = gammaln(n + 1) - gammaln(n - len(moved) + 1)
    return float(np.exp(min(0.0, binom.logsf(other - 1, other + own, 0.5) + choices)))
