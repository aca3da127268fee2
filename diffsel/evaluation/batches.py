"""Distilled images and a teacher -> what a student sees in each epoch, with labels.

`online` asks the teacher as it goes (without one, the class itself is the label), `stored` reads what `diffsel relabel`
wrote: for the same seed they give the same batches.  A batch depends on the seed, the epoch and its place in it, on nothing
else.  Online the seed is the student's; stored it is that of `relabel`, so that all students see one stream of batches.

    LABELS/ labels.yaml             set, teacher, protocol, seed: what the labels are for
            epoch-000.safetensors   image ids in order, logits (float16), crops, flips, shuffles, mixes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.albums import Pictures
from ..data.views import Mix, Views, apply_mix, draw_mix, draw_views, epoch_generator, normalise, view
from ..machine.files import write_atomically
from ..machine.formats import differences, dump_yaml, is_mine, read_yaml
from ..machine.progress import Progress, quiet
from ..machine.tensors import read_unit, write_unit
from ..settings.errors import ConfigError, SettingsDiffer, StoreError
from ..settings.settings import fingerprint
from ..settings.training import ProtocolSettings
from .protocols import Recipe, batch_starts
from .teachers import Teacher


@dataclass(frozen=True)
class Plan:
    """What one batch is made of."""

    ids: Int[np.ndarray, " batch"]
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
    share: float  # of the image itself
    unmixed: Float[Tensor, "b 3 s s"] | None = None  # what RDED's extra forward sees, where that is not ``images``
    other_logits: Float[Tensor, "b classes"] | None = None  # of the partner, where ``logits`` are of the image itself (fixed)


AT_ONCE = 512  # images that are made and labelled together, where the set is smaller
AT_ONCE_CPU = 2**19  # pixels; there, larger passes cost memory and gain no time
Source = Callable[[int], Iterator[Batch]]  # epoch -> its batches


def plan_epoch(pictures: Pictures, protocol: ProtocolSettings, recipe: Recipe, seed: int, epoch: int) -> list[Plan]:
    """Order, views and mixes of one epoch."""
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
    return [  # batches count from 1: a seed that ends in 0 is the one without it, the epoch's own
        Plan(ids, views.take(ids), draw_mix(np.random.default_rng([seed, epoch, i]), len(ids), size, size, protocol.mix))
        for i, ids in enumerate(parts, 1)
    ]


def show(pictures: Pictures, plans: Sequence[Plan], protocol: ProtocolSettings, recipe: Recipe) -> Float[Tensor, "n 3 s s"]:
    """The mixed, normalised images of several batches, one after the other."""
    return mixed(unmixed(pictures, plans, protocol, recipe), plans)


def unmixed(pictures: Pictures, plans: Sequence[Plan], protocol: ProtocolSettings, recipe: Recipe) -> Float[Tensor, "n 3 s s"]:
    """The normalised images of several batches as their views have them."""
    ids = torch.from_numpy(np.concatenate([plan.ids for plan in plans])).to(pictures.pixels.device)
    views = Views(*(np.concatenate([getattr(p.views, name) for p in plans]) for name in ("crop", "flip", "rows", "cols")))
    return normalise(view(pictures.pixels[ids], views, recipe.size, protocol.drop_remainder))


def mixed(images: Float[Tensor, "n 3 s s"], plans: Sequence[Plan]) -> Float[Tensor, "n 3 s s"]:
    parts = images.split([len(plan.ids) for plan in plans])
    return torch.cat([apply_mix(part, plan.mix) for part, plan in zip(parts, plans, strict=True)])


def epochs_at_once(pictures: Pictures, recipe: Recipe) -> int:
    """How many epochs are made and labelled in one go."""
    most = AT_ONCE if pictures.pixels.is_cuda else min(AT_ONCE, AT_ONCE_CPU // recipe.size**2)
    return max(1, most // len(pictures.labels))


def online(pictures: Pictures, protocol: ProtocolSettings, recipe: Recipe, seed: int, teacher: Teacher | None) -> Source:
    """Batches labelled as they are made; without a teacher, by their classes.

    The epochs of a small set are made and labelled several at a time: one pass of the teacher over some hundred images
    is much faster than dozens over ten, and nothing that it sees depends on the student.
    """
    together = epochs_at_once(pictures, recipe)
    ready: dict[int, list[Batch]] = {}

    def batches(epoch: int) -> Iterator[Batch]:
        if epoch not in ready:
            epochs = range(epoch, min(epoch + together, protocol.epochs))
            plans = [(e, plan) for e in epochs for plan in plan_epoch(pictures, protocol, recipe, seed, e)]
            if len(epochs) == 1:
                for one in plans:
                    yield from (batch for _, batch in label([one]))
                return
            ready.clear()
            for e, batch in label(plans):
                ready.setdefault(e, []).append(batch)
        yield from ready.pop(epoch)

    def label(plans: list[tuple[int, Plan]]) -> Iterator[tuple[int, Batch]]:
        plain = unmixed(pictures, [plan for _, plan in plans], protocol, recipe)
        images = mixed(plain, [plan for _, plan in plans])
        logits = teacher.logits(images) if teacher else None
        start = 0
        for epoch, plan in plans:
            part = slice(start, start + len(plan.ids))
            yield epoch, _batch(pictures, plan, protocol, plain[part], images[part], None if logits is None else logits[part])
            start += len(plan.ids)

    return batches


def _batch(
    pictures: Pictures, plan: Plan, protocol: ProtocolSettings, plain: Tensor, images: Tensor, logits: Tensor | None
) -> Batch:
    """RDED's CutMix writes into the batch that its extra forward sees, its MixUp makes a new one."""
    ids, partners = (torch.from_numpy(each).to(pictures.labels.device) for each in (plan.ids, plan.ids[plan.mix.partner]))
    keep = protocol.double_forward and protocol.mix == "mixup"
    labels, other = (pictures.labels[each] for each in (ids, partners))
    return Batch(images, ids, partners, labels, logits, other, plan.mix.share(*images.shape[2:]), plain if keep else None)


# ---- stored labels ---------------------------------------------------------------------------------------------------


def label_identity(
    pictures: Pictures, protocol: ProtocolSettings, recipe: Recipe, seed: int, teacher: Teacher, top_k: int | None
) -> dict[str, Any]:
    """Everything that decides the bytes of stored labels."""
    return {
        "set": pictures.digest,
        "teacher": teacher.digest,
        "network": teacher.name,
        "classes": [info.folder for info in pictures.classes],
        "seed": seed,
        "top_k": top_k,
        **({"rest": "mean"} if top_k else {}),
        **_drawn(protocol, recipe),
    }


def stored_bytes(images: int, classes: int, epochs: int, top_k: int | None, factor: int) -> int:
    """How much stored labels will take, bytes: logits (2 each; top-k also 2 for its index), ids and views."""
    return epochs * images * ((4 * top_k if top_k else 2 * classes) + 8 * (2 + 4 + 2 * factor) + 1)


def write_labels(
    out: Path,
    pictures: Pictures,
    protocol: ProtocolSettings,
    recipe: Recipe,
    seed: int,
    teacher: Teacher,
    epochs: int,
    top_k: int | None = None,
    progress: Progress = quiet,
) -> int:
    """Write the labels of ``epochs`` epochs to ``out``; those that are there and whole are kept.

    Returns how many were written.

    ``top_k``: only the k largest logits of each image; the others are taken to be their mean, to which the softmax at a
    protocol's temperature (20) comes nearest.

    Raises SettingsDiffer where ``out`` holds labels for something else.
    """
    if top_k is not None and not 1 <= top_k <= len(pictures.classes):
        raise ConfigError(f"top_k = {top_k} must lie between 1 and the number of classes, {len(pictures.classes)}")
    identity = label_identity(pictures, protocol, recipe, seed, teacher, top_k)
    if not is_mine(out, "labels.yaml", identity, "a folder of stored labels"):
        write_atomically(out / "labels.yaml", dump_yaml(identity))
    written = 0
    with progress(total=epochs, desc="labelling epochs", unit="epoch") as bar:
        for epoch in range(epochs):
            bar.update()
            file = _epoch_file(out, epoch)
            if _is_whole(file, fingerprint(identity), epoch):
                continue
            plans = plan_epoch(pictures, protocol, recipe, seed, epoch)
            logits = [teacher.logits(show(pictures, [plan], protocol, recipe)).cpu().numpy() for plan in plans]
            write_unit(file, fingerprint(identity), _tensors(plans, logits, top_k), {"epoch": epoch})
            written += 1
    return written


def check_labels(folder: Path, set_digest: str, protocol: ProtocolSettings, recipe: Recipe, teacher: str | None = None) -> dict:
    """The record of stored labels, if they are for this set, protocol and (where given) teacher.

    Raises StoreError where labels are missing, SettingsDiffer where they belong to something else.
    """
    if not (folder / "labels.yaml").exists():
        raise StoreError(f"{folder} holds no stored labels (no labels.yaml); write them with `diffsel relabel`")
    record = read_yaml(folder / "labels.yaml")
    asked = {"set": set_digest, **_drawn(protocol, recipe), **({"teacher": teacher} if teacher else {})}
    asked |= {"rest": "mean"} if record.get("top_k") else {}
    asked |= {"tile_crop": protocol.tile_crop}
    if found := differences({"tile_crop": False, **{key: record.get(key) for key in asked if key in record}}, asked):
        raise SettingsDiffer(folder, found)
    missing = [epoch for epoch in range(protocol.epochs) if not _epoch_file(folder, epoch).exists()]
    if missing:
        raise StoreError(
            f"{folder} lacks the labels of {len(missing)} of the protocol's {protocol.epochs} epochs (the first: epoch "
            f"{missing[0]}); `diffsel relabel` with --epochs {protocol.epochs} writes them"
        )
    return record


def _epoch_file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:03d}.safetensors"


def _is_whole(file: Path, mark: str, epoch: int) -> bool:
    try:
        return file.exists() and read_unit(file, mark)[1].get("epoch") == epoch
    except StoreError:
        return False


def _drawn(protocol: ProtocolSettings, recipe: Recipe) -> dict[str, Any]:
    """What decides the batches themselves; the rest of a protocol (rates, temperature, optimizer) may vary."""
    kept = ("mix", "crop", "flip", "shuffle", "drop_remainder")
    numbers = {"size": recipe.size, "batch_size": recipe.batch_size, "factor": recipe.factor}
    return {**numbers, **{key: getattr(protocol, key) for key in kept}, **({"tile_crop": True} if protocol.tile_crop else {})}


def stored(folder: Path, pictures: Pictures, protocol: ProtocolSettings, recipe: Recipe, teacher: str | None = None) -> Source:
    """Batches as `relabel` saw them, with its labels; errors as for ``check_labels``.

    They are the same for every student, whatever its seed: crops, mixes and order are those that were labelled.
    """
    record = check_labels(folder, pictures.digest, protocol, recipe, teacher)
    mark, classes = fingerprint(record), len(pictures.classes)

    def batches(epoch: int) -> Iterator[Batch]:
        tensors, extra = read_unit(_epoch_file(folder, epoch), mark, "`diffsel relabel` writes it again")
        if extra.get("epoch") != epoch:
            file = _epoch_file(folder, epoch)
            raise StoreError(
                f"{file} holds the labels of epoch {extra.get('epoch')}; delete it, `diffsel relabel` writes it again"
            )
        logits = torch.from_numpy(_all_logits(tensors, classes)).to(pictures.pixels.device)
        start = 0
        for plan in _plans(tensors, protocol.mix):
            plain = unmixed(pictures, [plan], protocol, recipe)
            yield _batch(pictures, plan, protocol, plain, mixed(plain, [plan]), logits[start : start + len(plan.ids)])
            start += len(plan.ids)

    return batches


def _tensors(plans: list[Plan], logits: list[np.ndarray], top_k: int | None) -> dict[str, np.ndarray]:
    all_logits = np.concatenate(logits)
    tensors = {
        "ids": np.concatenate([plan.ids for plan in plans]),
        "batch": np.array([len(plan.ids) for plan in plans]),
        "crop": np.concatenate([plan.views.crop for plan in plans]),
        "flip": np.concatenate([plan.views.flip for plan in plans]),
        "rows": np.concatenate([plan.views.rows for plan in plans]),
        "cols": np.concatenate([plan.views.cols for plan in plans]),
        "partner": np.concatenate([plan.mix.partner for plan in plans]),
        "lam": np.array([plan.mix.lam for plan in plans]),
        "box": np.array([plan.mix.box for plan in plans]),
    }
    if top_k is None:
        return {**tensors, "logits": all_logits.astype(np.float16)}
    best = np.argsort(-all_logits, axis=1, kind="stable")[:, :top_k]
    kept = np.take_along_axis(all_logits, best, axis=1)
    others = all_logits.copy()
    np.put_along_axis(others, best, 0, axis=1)
    rest = others.sum(1) / max(1, all_logits.shape[1] - top_k)
    return {**tensors, "top": kept.astype(np.float16), "top_class": best.astype(np.int16), "rest": rest.astype(np.float16)}


def _all_logits(tensors: dict[str, np.ndarray], classes: int) -> np.ndarray:
    if "logits" in tensors:
        return tensors["logits"].astype(np.float32)
    full = np.repeat(tensors["rest"].astype(np.float32)[:, None], classes, axis=1)
    np.put_along_axis(full, tensors["top_class"].astype(np.int64), tensors["top"].astype(np.float32), axis=1)
    return full


def _plans(tensors: dict[str, np.ndarray], kind: str) -> Iterator[Plan]:
    start = 0
    for i, length in enumerate(tensors["batch"]):
        part = slice(start, start + int(length))
        views = Views(*(tensors[name][part] for name in ("crop", "flip", "rows", "cols")))
        top, left, bottom, right = (int(v) for v in tensors["box"][i])
        mix = Mix(kind, tensors["partner"][part], float(tensors["lam"][i]), (top, left, bottom, right))
        yield Plan(tensors["ids"][part], views, mix)
        start += int(length)
