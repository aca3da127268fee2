"""Labels that are stored once for all students: what `diffsel relabel` writes, and batches made of it.

For the same seed they are the batches of ``batches.online``; the seed is that of `relabel`, so that all students see one
stream of batches.

    LABELS/ labels.yaml             set, teacher, protocol, seed: what the labels are for
            epoch-000.safetensors   image ids in order, logits (float16), crops, flips, shuffles, mixes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.albums import Pictures
from ..data.views import Mix, Views
from ..machine.device import to_device
from ..machine.files import sweep, write_atomically
from ..machine.formats import differences, dump_yaml, is_mine, read_yaml
from ..machine.processes import Workers
from ..machine.progress import Progress, quiet
from ..machine.tensors import read_unit, write_unit
from ..settings.errors import ConfigError, SettingsDiffer, StoreError
from ..settings.settings import fingerprint
from ..settings.training import ProtocolSettings
from .batches import VIEWS, Batch, Plan, Source, batch_of, mixed, on_device, plan_epoch, show, sizes, unmixed
from .protocols import Recipe
from .teachers import Teacher


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
    workers: Workers | None = None,
) -> int:
    """Write the labels of ``epochs`` epochs to ``out``, shared with other processes; those that are there and whole are kept.

    Returns how many were not.

    ``top_k``: only the k largest logits of each image; the others are taken to be their mean, to which the softmax at a
    protocol's temperature (20) comes nearest.

    Raises SettingsDiffer where ``out`` holds labels for something else.
    """
    if top_k is not None and not 1 <= top_k <= len(pictures.classes):
        raise ConfigError(f"top_k = {top_k} must lie between 1 and the number of classes, {len(pictures.classes)}")
    identity = label_identity(pictures, protocol, recipe, seed, teacher, top_k)
    if not is_mine(out, "labels.yaml", identity, "a folder of stored labels"):
        write_atomically(out / "labels.yaml", dump_yaml(identity))
    sweep(out)  # what a killed start left half-written
    mark, file_of = fingerprint(identity), partial(_epoch_file, out)
    there = [epoch for epoch in range(epochs) if file_of(epoch).exists()]  # others may be written by now
    whole = {epoch for epoch in there if _is_whole(file_of(epoch), mark, epoch)}
    for epoch in set(there) - whole:
        file_of(epoch).unlink(missing_ok=True)  # what is damaged would count as made
    missing = [epoch for epoch in range(epochs) if epoch not in whole]
    done = progress(total=epochs, initial=epochs - len(missing), desc="labelling epochs", unit="epoch")
    with done as bar, (workers or Workers()).share(missing, file_of, lambda epoch: bar.update()) as left:
        for epoch in left:
            plans = plan_epoch(pictures, protocol, recipe, seed, epoch)
            logits = torch.cat([teacher.logits(show(pictures, [plan], protocol, recipe)) for plan in plans])
            write_unit(file_of(epoch), mark, _tensors(plans, logits, top_k), {"epoch": epoch})
            bar.update()
    return len(missing)


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
        logits = to_device(torch.from_numpy(_all_logits(tensors, classes)), pictures.pixels.device)
        for plan, part in zip(plans := _plans(tensors, protocol.mix, logits.device), logits.split(sizes(plans)), strict=True):
            plain = unmixed(pictures, [plan], protocol, recipe)
            yield batch_of(pictures, plan, protocol, plain, mixed(plain, [plan]), part)

    return batches


def _tensors(plans: list[Plan], logits: Tensor, top_k: int | None) -> dict[str, np.ndarray]:
    def whole(parts: Iterable[Any]) -> np.ndarray:
        return torch.cat(list(parts)).cpu().numpy()

    all_logits = logits.cpu().numpy()
    tensors = {
        "ids": whole(plan.ids for plan in plans),
        "batch": np.array(sizes(plans)),
        **{name: whole(getattr(plan.views, name) for plan in plans) for name in VIEWS},
        "partner": whole(plan.mix.partner for plan in plans),
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


def _plans(tensors: dict[str, np.ndarray], kind: str, device: torch.device) -> list[Plan]:
    partners = np.split(tensors["partner"], np.cumsum(tensors["batch"])[:-1])
    drawn = zip(partners, tensors["lam"].tolist(), map(tuple, tensors["box"].tolist()), strict=True)
    return on_device(tensors["ids"], Views(*(tensors[name] for name in VIEWS)), [Mix(kind, *each) for each in drawn], device)
