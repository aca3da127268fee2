"""Random images, RDED and the hard or easy ones: the same Selection by other means, without Stable Diffusion.

Random and RDED draw images of a class by a hash of their names and cut square boxes out of them.  `random` takes the first
ones; `rded` looks at ``pool`` images, keeps of several crops of each the one that a teacher finds easiest to name as its
class, and then the images whose crop is easiest.  The others (difficulty.py) take whole images by a teacher's records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..data.images import ImageData
from ..data.pixels import Pixels
from ..data.pool import copies, distinct, known_classes
from ..data.rows import Row
from ..data.views import Views, draw_crops, normalise, view
from ..machine.progress import Progress, quiet
from ..settings.errors import ConfigError
from ..settings.sections import BaselineSettings
from ..settings.settings import Settings, identity
from . import difficulty
from .assembly import assemble
from .coresets import CORESETS, Vectors
from .difficulty import Records
from .opening import is_there
from .selection import Pick, too_few
from .usable import AT_ONCE, Crop, Seen, Usable, drawn

SQUARE = (1.0, 1.0)


class Judge(Protocol):
    """Who finds crops easy or hard to name: a classifier whose outputs are the classes asked for, in their order."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]: ...


class Looker(Protocol):
    """Who places pictures in a space, for a coreset."""

    @property
    def identity(self) -> dict[str, Any]: ...

    def vectors(self, pictures: Sequence[Pixels]) -> Vectors: ...


def select_baseline(
    data: ImageData,
    ipc: int,
    out: Path,
    s: Settings,
    classes: Sequence[str] | None = None,
    judge: Judge | None = None,
    progress: Progress = quiet,
    records: Records | None = None,
    eye: Looker | None = None,
    seen: Seen | None = None,
) -> bool:
    """Images -> SET by a method that needs no scoring pass, through the same assembly; False where it is there already.

    ``judge``, for rded, knows the classes in the order asked for; ``records`` are for el2n, forgetting and ccs, ``eye`` is for
    a coreset.  ``seen`` is told what is passed over, and serves the next set: a judge is asked once for every ``ipc``.
    Raises SelectionError, DataError, StoreError.
    """
    data = replace(data, settings=data.settings.model_copy(update={"side_multiple": 1}))  # crops of images as they are
    names = known_classes(data, classes)
    limit = {label: min(len(distinct(data.of_class(label))), s.baseline.pool if judge else len(data.rows)) for label in names}
    factor = s.assembly.factor_at(ipc, s.selection.method)
    if not s.assembly.factor and min(limit.values()) < ipc * factor**2:
        factor = 1
    record = baseline_provenance(data, ipc, factor, s, names, judge, records, eye)
    if is_there(out, record):
        return False
    picks, usable = {}, Usable(data, seen or Seen(), s.compute.workers, s.selection.alike)
    for number, label in enumerate(names):
        if judge:
            picks[label] = select_rded(usable, label, number, ipc, factor, s.baseline, s.seed, judge, judge_size(s), progress)
        elif records:
            picks[label] = select_hard(usable, label, ipc, factor, s, records)
        elif eye:
            picks[label] = select_coreset(usable, label, ipc, factor, s, eye)
        else:
            picks[label] = select_random(usable, label, ipc, factor, s.baseline, s.seed)
    assemble(out, picks, data, s.assembly, record, progress, s.compute.workers)
    return True


def check_teacher(s: Settings, teacher: str | None) -> None:
    """Raises ConfigError where the method asks a teacher and none is given."""
    needs = {"random": "", "rded": "a classifier that judges crops: --teacher NAME, FOLDER or FILE"}
    need = needs.get(s.selection.method, "a teacher that was trained with --record: --teacher FOLDER")
    if need and not teacher:
        raise ConfigError(f"--method {s.selection.method} needs {need}")


def judge_size(s: Settings) -> int:
    """Side of what RDED's teacher sees, pixels: the student's input, as far as it is known."""
    return s.protocol.size or s.assembly.size


def baseline_provenance(
    data: ImageData,
    ipc: int,
    factor: int,
    s: Settings,
    classes: Sequence[str],
    judge: Judge | None,
    records: Records | None = None,
    eye: Looker | None = None,
) -> dict[str, Any]:
    """Everything that decides a baseline set's bytes."""
    return {
        "format": 1,
        "ipc": ipc,
        "factor": factor,
        "seed": s.seed,
        "classes": list(classes),
        "image_size": s.data.image_size,
        "images": data.digest,
        "selection": {k: v for k, v in identity(s.selection).items() if k in ("method", "alike")},
        "teacher": {"network": judge.name, "digest": judge.digest, "size": judge_size(s)} if judge else None,
        **({"records": records.digest} if records else {}),
        **({"eye": eye.identity, "restarts": s.selection.restarts} if eye else {}),
        "baseline": identity(s.baseline),
        "assembly": identity(s.assembly),
        **copies(data, classes),
    }


def boxes_of(data: ImageData, row: Row, settings: BaselineSettings, seed: int, count: int) -> Int[np.ndarray, "n 4"]:
    """``count`` random square boxes of an image, as RDED's MultiRandomCrop draws them; the whole middle where asked."""
    width, height = data.size(row)
    if settings.whole:
        side = min(width, height)
        return np.array([[(height - side) // 2, (width - side) // 2, side, side]] * count)
    rng = np.random.default_rng([seed, *bytes.fromhex(row.digest)])
    return draw_crops(rng, count, height, width, (settings.min_scale, 1.0), SQUARE)


def select_random(usable: Usable, label: str, ipc: int, factor: int, settings: BaselineSettings, seed: int) -> list[Pick]:
    """``ipc * factor^2`` random boxes of a class, one of each image.  Raises SelectionError if it has fewer images."""
    need, data = ipc * factor**2, usable.data
    pool = [row for row, _ in islice(usable.of(drawn(data, label, seed), min(need, AT_ONCE)), need)]
    if len(pool) < need:
        raise too_few(label, len(pool), ipc, factor)
    boxes = [boxes_of(data, row, settings, seed, 1)[0] for row in pool]
    return [_pick(label, rank, row, box, 0.0, "random") for rank, (row, box) in enumerate(zip(pool, boxes, strict=True))]


def select_hard(usable: Usable, label: str, ipc: int, factor: int, s: Settings, records: Records) -> list[Pick]:
    """Whole images of a class as ``selection.method`` orders them.  Raises SelectionError if it has too few."""
    rows = [row for row, _ in usable.of(drawn(usable.data, label, s.seed))]
    need, method = ipc * factor**2, s.selection.method
    if len(rows) < need:
        raise too_few(label, len(rows), ipc, factor)
    rng, b = np.random.default_rng([s.seed, *label.encode()]), s.baseline
    chosen, score = difficulty.order(method, records.of(rows), need, b.early, b.cut, rng)
    return [_whole(usable.data, label, rank, rows[i], s, float(score[i]), method) for rank, i in enumerate(chosen.tolist())]


def select_coreset(usable: Usable, label: str, ipc: int, factor: int, s: Settings, eye: Looker) -> list[Pick]:
    """Whole images of a class that stand for the others in the space of ``eye``.  Raises SelectionError if it has too few."""
    rows, vectors, need, data = list[Row](), list[Vectors](), ipc * factor**2, usable.data
    found = usable.of(sorted(distinct(data.of_class(label)), key=lambda row: row.path))
    while part := list(islice(found, AT_ONCE)):
        rows += [row for row, _ in part]
        vectors.append(eye.vectors([pixels for _, pixels in part]))
    if len(rows) < need:
        raise too_few(label, len(rows), ipc, factor)
    chosen = CORESETS[s.selection.method](np.concatenate(vectors), need, s.seed, s.selection.restarts)
    return [_whole(data, label, rank, rows[i], s, 0.0, "coverage") for rank, i in enumerate(chosen.tolist())]


def select_rded(
    usable: Usable,
    label: str,
    target: int,
    ipc: int,
    factor: int,
    settings: BaselineSettings,
    seed: int,
    judge: Judge,
    size: int,
    progress: Progress = quiet,
) -> list[Pick]:
    """RDED's choice for a class: output ``target`` of ``judge`` is asked about crops of ``size // factor`` pixels, zero-padded.

    ``score`` of a pick is minus its cross-entropy.  Raises SelectionError where the pool is too small.
    """
    need, cut, known = ipc * factor**2, settings.model_copy(update={"whole": False}), usable.seen.judged
    asked = usable.data.digest, label, target, size // factor, size, cut.model_dump_json(), seed, judge.digest
    if asked not in known:
        known[asked] = _judged(usable, label, target, size // factor, cut, seed, judge, size, progress)
    if len(pool := known[asked]) < need:
        raise too_few(label, len(pool), ipc, factor)
    best = np.argsort([crop.loss for crop in pool], kind="stable")[:need]
    return [_pick(label, rank, pool[i].row, pool[i].box, -pool[i].loss, "loss") for rank, i in enumerate(best)]


def _judged(
    usable: Usable,
    label: str,
    target: int,
    side: int,
    settings: BaselineSettings,
    seed: int,
    judge: Judge,
    size: int,
    progress: Progress,
) -> list[Crop]:
    """The best crop of each image of a class's pool."""
    listed, crops = drawn(usable.data, label, seed), list[Crop]()
    with progress(total=min(len(listed), settings.pool), desc=f"RDED {label}", unit="image") as bar:
        found = islice(usable.of(listed), settings.pool)
        while part := list(islice(found, AT_ONCE)):
            boxes = [boxes_of(usable.data, row, settings, seed, settings.crops) for row, _ in part]
            pixels = [_crops(image, box, side, judge.device) for (_, image), box in zip(part, boxes, strict=True)]
            losses = crop_losses(judge.logits(pad(normalise(torch.cat(pixels)), size)), target)
            best = zip(*best_crops(losses.reshape(-1, settings.crops)), strict=True)
            crops += [Crop(row, box[int(i)], float(loss)) for (row, _), box, (i, loss) in zip(part, boxes, best, strict=True)]
            bar.update(len(part))
    return crops


def _crops(pixels: np.ndarray, boxes: np.ndarray, side: int, device: torch.device) -> Float[Tensor, "n 3 side side"]:
    n = len(boxes)
    image = torch.from_numpy(np.array(pixels)).to(device).permute(2, 0, 1)[None].expand(n, -1, -1, -1)
    still = np.zeros((n, 1), np.int64)
    return view(image, Views(boxes, np.zeros(n, bool), still, still), side)


def pad(crops: Float[Tensor, "n 3 c c"], size: int) -> Float[Tensor, "n 3 size size"]:
    """Zeros around crops, which stay in the middle (RDED pads normalised values)."""
    before = (size - crops.shape[-1]) // 2
    after = size - crops.shape[-1] - before
    return F.pad(crops, (before, after, before, after))


def crop_losses(logits: Float[Tensor, "n classes"], target: int) -> Float[Tensor, " n"]:
    """Cross-entropy of each crop with its class."""
    return F.cross_entropy(logits.float(), torch.full((len(logits),), target, device=logits.device), reduction="none").cpu()


def best_crops(losses: Float[Tensor, "images crops"]) -> tuple[Int[Tensor, " images"], Float[Tensor, " images"]]:
    """Which crop of each image has the lowest loss, and that loss (golden `rded_selector`)."""
    loss, best = losses.min(dim=1)
    return best, loss


def _whole(data: ImageData, label: str, rank: int, row: Row, s: Settings, score: float, reason: str) -> Pick:
    middle = s.baseline.model_copy(update={"whole": True})
    return _pick(label, rank, row, boxes_of(data, row, middle, s.seed, 1)[0], score, reason)


def _pick(label: str, rank: int, row: Row, box: Sequence[int], score: float, reason: str) -> Pick:
    top, left, height, width = (int(v) for v in box)
    return Pick(label, rank, row.row, (top, left, height, width), score, None, None, None, reason)  # type: ignore[arg-type]
