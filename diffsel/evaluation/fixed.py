"""One soft label an image, the teacher's on the image as it is; and which kind of labels a student learns from.

    LABELS/ labels.yaml   set, teacher, classes      fixed.safetensors   logits (float16) of every image, in its order

Crops and mixes do not change such a label: a mixed image has both, by its shares, as with hard labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.albums import Pictures
from ..data.views import normalise
from ..machine.device import Machine
from ..machine.files import write_atomically
from ..machine.formats import differences, dump_yaml, is_mine, read_yaml
from ..machine.processes import Workers
from ..machine.tensors import read_unit, write_unit
from ..settings.errors import SettingsDiffer, StoreError
from ..settings.settings import fingerprint
from ..settings.training import ProtocolSettings
from .batches import AT_ONCE, Batch, Source, online
from .protocols import Recipe
from .storing import check_labels, stored
from .teachers import Teacher

RECOVER = "`diffsel relabel` writes it again"


def fixed_logits(pictures: Pictures, teacher: Teacher) -> Float[Tensor, "n classes"]:
    """The label of every image, rounded as it is stored."""
    parts = [teacher.logits(normalise(part)) for part in pictures.pixels.split(AT_ONCE)]
    return torch.cat(parts).half().float()


def write_fixed(out: Path, pictures: Pictures, teacher: Teacher, workers: Workers | None = None) -> bool:
    """Store the labels of a set, in one process of all; False where they are there.

    Raises SettingsDiffer where ``out`` holds other labels.
    """
    told = _identity(pictures.digest, teacher.digest) | {"network": teacher.name}
    told |= {"classes": [info.folder for info in pictures.classes]}
    if not is_mine(out, "labels.yaml", told, "a folder of stored labels"):
        write_atomically(out / "labels.yaml", dump_yaml(told))
    if there := _file(out).exists():
        read_unit(_file(out), fingerprint(told), f"delete it, {RECOVER}")
    with (workers or Workers()).share([out], _file) as left:
        for _ in left:
            logits = fixed_logits(pictures, teacher).half().cpu().numpy()
            write_unit(_file(out), fingerprint(told), {"logits": logits}, {})
    return not there


def check(
    folder: Path, set_digest: str, protocol: ProtocolSettings, recipe: Recipe, teacher: str | None = None
) -> Mapping[str, Any]:
    """The record of stored labels of any kind, if they are for this; errors as ``check_labels``."""
    if protocol.labels != "fixed":
        return check_labels(folder, set_digest, protocol, recipe, teacher)
    if not _file(folder).exists():
        raise StoreError(
            f"{folder} holds no fixed labels ({_file(folder).name}); write them with `diffsel relabel --labels fixed`"
        )
    record = read_yaml(folder / "labels.yaml")
    asked = {key: value for key, value in _identity(set_digest, teacher).items() if value is not None}
    if found := differences({key: record.get(key) for key in asked}, asked):
        raise SettingsDiffer(folder, found)
    return record


def source_of(
    pictures: Pictures,
    protocol: ProtocolSettings,
    recipe: Recipe,
    seed: int,
    teacher: Teacher | None,
    labels: Path | None,
    machine: Machine | None = None,
) -> Source:
    """The batches of a student: labelled by class, by the teacher as they come, or as is stored; errors as ``check``."""
    digest = teacher.digest if teacher else None
    if protocol.labels == "fixed":
        assert labels or teacher, "make_cell refuses that"
        known = _read(labels, pictures) if labels else fixed_logits(pictures, teacher)  # type: ignore[arg-type]
        return _answered(online(pictures, protocol, recipe, seed, None), known)
    if labels:
        return stored(labels, pictures, protocol, recipe, digest)
    return online(pictures, protocol, recipe, seed, teacher, machine)


def _answered(batches: Source, labels: Float[Tensor, "n classes"]) -> Source:
    """The same batches with a label for both images of each mix."""

    def answered(epoch: int) -> Iterator[Batch]:
        for batch in batches(epoch):
            yield replace(batch, logits=labels[batch.ids], other_logits=labels[batch.partners])

    return answered


def _read(folder: Path, pictures: Pictures) -> Float[Tensor, "n classes"]:
    record = read_yaml(folder / "labels.yaml")
    tensors, _ = read_unit(_file(folder), fingerprint(record), f"delete it, {RECOVER}")
    return torch.from_numpy(tensors["logits"]).float().to(pictures.pixels.device)


def _identity(set_digest: str, teacher: str | None) -> dict[str, Any]:
    return {"set": set_digest, "teacher": teacher, "labels": "fixed"}


def _file(folder: Path) -> Path:
    return folder / "fixed.safetensors"
