"""What baselines ask of a teacher: RDED's judge, its features for a coreset, and the records of its training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.albums import Album
from ..data.classes import ClassInfo
from ..data.images import ImageData
from ..sets.baselines import judge_size
from ..sets.coresets import CORESETS
from ..sets.difficulty import read_records
from ..sets.usable import Usable, drawn
from ..settings.settings import Settings
from .bench import Bench
from .protocols import validation_resize
from .seeing import teacher_eye
from .teachers import Teacher, load_teacher

JUDGED = (5, 500)  # images on which RDED's judge is measured: at least so many of a class, and about so many in all


def advice(bench: Bench, teacher: str | None, data: ImageData, names: Sequence[str], s: Settings) -> dict[str, Any]:
    """What a baseline asks a teacher for, as ``select_baseline`` takes it.  Errors as for each."""
    method = s.selection.method
    if not teacher or method == "random":
        return {}
    if method in CORESETS:
        return {"eye": teacher_eye(teacher, _infos(data, names), judge_size(s), bench.machine.device)}
    return {"judge": judge(bench, teacher, data, names, s)} if method == "rded" else {"records": read_records(Path(teacher))}


def judge(bench: Bench, spec: str, data: ImageData, names: Sequence[str], s: Settings) -> Teacher:
    """Who judges RDED's crops of these classes, measured on the middles of images that it will judge.

    Raises ConfigError and DataError as ``load_teacher``, and DataError where its classes slipped.
    """
    infos, size = _infos(data, names), judge_size(s)
    teacher = load_teacher(spec, infos, size, bench.machine.device)
    each, usable = min(s.baseline.pool, max(JUDGED[0], JUDGED[1] // len(infos))), Usable(data, alike=s.selection.alike)
    rows = [row for name in names for row, _ in islice(usable.of(drawn(data, name, s.seed), each), each)]
    album = Album(data, tuple(rows), infos, size, validation_resize(size))
    bench.check_teacher(teacher, album, images="of the images whose crops it judges")
    return teacher


def _infos(data: ImageData, names: Sequence[str]) -> tuple[ClassInfo, ...]:
    return tuple(info for name in names for info in data.classes if info.folder == name)
