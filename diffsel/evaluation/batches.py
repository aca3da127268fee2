"""Distilled images and a teacher -> what a student sees in each epoch, with labels.

A batch depends on the seed, the epoch and its place in it, on nothing else.  Here the teacher is asked as the student goes
(without one, the class itself is the label), and the seed is the student's; storing.py asks it once, for all students.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from itertools import chain, islice, repeat

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.albums import Pictures
from ..data.views import Mix, Views, apply_mix, draw_mix, draw_views, epoch_generator, normalise, view
from ..machine.device import Machine, to_device
from ..settings.training import ProtocolSettings
from .protocols import Recipe, batch_starts
from .teachers import Teacher


@dataclass(frozen=True)
class Plan:
    """What one batch is made of, on the device of the pictures."""

    ids: Int[Tensor, " batch"]
    views: Views
    mix: Mix


@dataclass(frozen=True)
class Batch:
    """What a student is shown, and the answer: a teacher's ``logits``, or the classes of both images of each mix."""

    images: Float[Tensor, "b 3 s s"]  # normalised
    ids: Int[Tensor, " b"]  # which of the set's images these are, and
    partners: Int[Tensor, " b"]  # which ones they are mixed with
    labels: Int[Tensor, " b"]
    logits: Float[Tensor, "b classes"] | None
    other: Int[Tensor, " b"]  # class of the partner
    share: float | Tensor  # of the image itself
    unmixed: Float[Tensor, "b 3 s s"] | None = None  # what RDED's extra forward sees, where that is not ``images``
    other_logits: Float[Tensor, "b classes"] | None = None  # of the partner, where ``logits`` are of the image itself (fixed)


VIEWS = [each.name for each in fields(Views)]
AT_ONCE = 512  # images that are made and labelled together, where the set is smaller
AT_ONCE_CPU = 2**19  # pixels; there, larger passes cost memory and gain no time
Source = Callable[[int], Iterator[Batch]]  # epoch -> its batches


def plan_epoch(pictures: Pictures, protocol: ProtocolSettings, recipe: Recipe, seed: int, epoch: int) -> list[Plan]:
    """Order, views and mixes of one epoch; they go up to the device in one copy, for which nobody waits."""
    n, height, width = len(pictures.labels), pictures.size, pictures.size
    tiles = recipe.factor if protocol.tile_crop else 1
    rng, factor = epoch_generator(seed, epoch), recipe.factor if protocol.shuffle and tiles == 1 else 1
    if protocol.drop_remainder:
        height = width = pictures.size // factor * factor
    crop, flip, scale = protocol.crop, protocol.flip, recipe.crop_scale
    views = draw_views(rng, n, height, width, crop=crop, scale=scale, flip=flip, factor=factor, tiles=tiles)
    order = rng.permutation(n)
    parts = np.split(order, batch_starts(n, recipe.batch_size)[1:])
    size = recipe.size
    # batches count from 1: a seed that ends in 0 is the one without it, the epoch's own
    generators = (np.random.default_rng([seed, epoch, i]) for i in range(1, len(parts) + 1))
    mixes = [draw_mix(rng, len(ids), size, size, protocol.mix) for rng, ids in zip(generators, parts, strict=True)]
    return on_device(order, views.take(order), mixes, pictures.pixels.device)


def on_device(ids: Int[np.ndarray, " n"], views: Views, mixes: Sequence[Mix], device: torch.device) -> list[Plan]:
    """Plans of batches that follow each other in ``ids`` and ``views``."""
    columns = ids, views.crop, views.flip, views.rows, views.cols, np.concatenate([mix.partner for mix in mixes])
    widths = [column[:1].size for column in columns]
    table, plans = to_device(torch.from_numpy(np.column_stack(columns)), device), []
    for mix, part in zip(mixes, table.split([len(mix.partner) for mix in mixes]), strict=True):
        own, crop, flip, rows, cols, partner = part.split(widths, dim=1)
        plans.append(Plan(own[:, 0], Views(crop, flip[:, 0].bool(), rows, cols), replace(mix, partner=partner[:, 0])))
    return plans


def show(pictures: Pictures, plans: Sequence[Plan], protocol: ProtocolSettings, recipe: Recipe) -> Float[Tensor, "n 3 s s"]:
    """The mixed, normalised images of several batches, one after the other."""
    return mixed(unmixed(pictures, plans, protocol, recipe), plans)


def unmixed(pictures: Pictures, plans: Sequence[Plan], protocol: ProtocolSettings, recipe: Recipe) -> Float[Tensor, "n 3 s s"]:
    """The normalised images of several batches as their views have them."""
    ids = torch.cat([plan.ids for plan in plans])
    views = Views(*(torch.cat([getattr(plan.views, name) for plan in plans]) for name in VIEWS))
    return normalise(view(pictures.pixels[ids], views, recipe.size, protocol.drop_remainder))


def mixed(images: Float[Tensor, "n 3 s s"], plans: Sequence[Plan]) -> Float[Tensor, "n 3 s s"]:
    return torch.cat([apply_mix(part, plan.mix) for part, plan in zip(images.split(sizes(plans)), plans, strict=True)])


def sizes(plans: Sequence[Plan]) -> list[int]:
    return [len(plan.ids) for plan in plans]


def epochs_at_once(pictures: Pictures, recipe: Recipe) -> int:
    """How many epochs are made and labelled in one go."""
    most = AT_ONCE if pictures.pixels.is_cuda else min(AT_ONCE, AT_ONCE_CPU // recipe.size**2)
    return max(1, most // len(pictures.labels))


def online(
    pictures: Pictures,
    protocol: ProtocolSettings,
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None,
    machine: Machine | None = None,
) -> Source:
    """Batches labelled as they are made, in the precision of ``machine`` (fp32); without a teacher, by their classes.

    The epochs of a small set are made and labelled several at a time: one pass of the teacher over some hundred images
    is much faster than dozens over ten, and nothing that it sees depends on the student.
    """
    together = epochs_at_once(pictures, recipe)
    ready: dict[int, list[Batch]] = {}

    def batches(epoch: int) -> Iterator[Batch]:
        if epoch not in ready:
            epochs = range(epoch, min(epoch + together, protocol.epochs))
            plans = [plan_epoch(pictures, protocol, recipe, seed, each) for each in epochs]
            if len(epochs) == 1:
                for plan in plans[0]:
                    yield from label([plan])
                return
            ready.clear()
            labelled = label(list(chain(*plans)))
            ready.update({each: list(islice(labelled, len(own))) for each, own in zip(epochs, plans, strict=True)})
        yield from ready.pop(epoch)

    def label(plans: Sequence[Plan]) -> Iterator[Batch]:
        plain = unmixed(pictures, plans, protocol, recipe)
        images = mixed(plain, plans)
        with machine.autocast() if machine else nullcontext():
            logits = teacher.logits(images).split(sizes(plans)) if teacher else repeat(None)
        for plan, *parts in zip(plans, plain.split(sizes(plans)), images.split(sizes(plans)), logits):  # noqa: B905
            yield batch_of(pictures, plan, protocol, *parts)

    return batches


def batch_of(
    pictures: Pictures, plan: Plan, protocol: ProtocolSettings, plain: Tensor, images: Tensor, logits: Tensor | None
) -> Batch:
    """RDED's CutMix writes into the batch that its extra forward sees, its MixUp makes a new one."""
    partners = plan.ids[plan.mix.partner]
    keep = protocol.double_forward and protocol.mix == "mixup"
    labels, other = (pictures.labels[each] for each in (plan.ids, partners))
    return Batch(images, plan.ids, partners, labels, logits, other, plan.mix.share(*images.shape[2:]), plain if keep else None)
