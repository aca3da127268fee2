"""Which prior for these images?  Two of them score the same few images: what each knows, what it costs, where they agree.

OUT/  0, 1 (a RUN of each prior, with its set)    agreement.csv, agreement.md
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import method
from ..machine.progress import Progress, quiet
from ..report.text import table
from ..runs.knowledge import overall, stored
from ..runs.session import Session, start
from ..settings.errors import ConfigError
from ..settings.settings import Settings
from .agreement import Agreement, compare, write_tables


@dataclass(frozen=True)
class Prior:
    """One prior on some images."""

    name: str
    images: int
    seconds: float | None  # an image, of scoring alone, in this process; None where all was scored before
    nats: float | None  # an image's label tells, on average; None where they are not known
    calibration: float  # r = E[-D] / E[G]


def compare_priors(
    models: Sequence[str], source: str, out: Path, settings: Settings, ipc: int, progress: Progress = quiet
) -> tuple[list[Prior], list[Agreement]]:
    """Scores, embeds and selects with each prior -> OUT; the agreement of every two, overall first.

    Raises as ``start`` and ``select`` do, and ConfigError for a prior that is named twice.
    """
    if len(set(models)) < len(models):
        raise ConfigError(f"compare-priors: {models[0]!r} is named twice; give two priors")
    sessions, priors = [], []
    for number, name in enumerate(models):
        asked = settings.model_copy(update={"model": settings.model.model_copy(update={"model": name})})
        session = start(source, out / str(number), asked, progress)
        priors.append(_scored(session, name))
        method.embed(session)
        method.select(session, ipc, _set(session, ipc))
        sessions.append(session)
    sessions[0].workers.wait_for([_set(session, ipc) / "set.yaml" for session in sessions])
    rows = compare([session.run for session in sessions], [_set(session, ipc) for session in sessions])
    if sessions[0].workers.is_main:
        write_tables(rows, [f"prior {number}: {name}" for number, name in enumerate(models)], out, "priors")
    return priors, rows


def _set(session: Session, ipc: int) -> Path:
    return session.run.path / f"ipc{ipc}"


def _scored(session: Session, name: str) -> Prior:
    """Scores what is missing, and tells what the maps know."""
    _ = session.scorer  # loaded before the clock runs
    begin = time.perf_counter()
    method.score(session)
    seconds = time.perf_counter() - begin
    done = session.done.get("images_scored", 0)
    known = [found for label in session.run.infos if (found := stored(session.run, label))]
    nats, calibration = overall(known)
    images = sum(each.images for each in known)
    return Prior(name, images, seconds / done if done else None, nats if session.run.nats else None, calibration)


def priors_table(priors: Sequence[Prior]) -> str:
    """One line a prior."""
    rows = [
        [p.name, p.images, *("-" if v is None else f"{v:.3g}" for v in (p.seconds, p.nats)), f"{p.calibration:.2f}"]
        for p in priors
    ]
    return table(rows, ["prior", "images", "seconds an image", "nats an image", "r"])
