"""Images against other labels that they may be taken for, added to a stored pass.

    RUN/rivals/KEY/  settings.yaml              how many rivals, or which, and by which of RUN's prompts; KEY is their hash
                     <class>-000.safetensors    row.rival (K): numbers of classes in RUN's table, the likeliest first;
                                                row.rivals (K, B, h, w): D of each, against RUN's null prompt

Images, noise, timesteps and the null prompt's losses are the run's.  Every other label is tried by one draw; those that are
kept get the others, so that no forward is made twice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..machine.files import existing
from ..scoring.maps import Asked, rival_losses
from ..settings.errors import ConfigError
from .parts import RivalPart, kept_rivals
from .session import Session
from .units import Unit, scored_rows


def forwards_left(session: Session, part: RivalPart) -> int:
    """U-Net samples that are still to be computed, at most, in all units or those of this shard."""
    units = session.workers.own(session.run.units)
    there = existing(part.file(unit) for unit in units)
    return sum(part.forwards(unit) for unit in units if part.file(unit) not in there)


def score_rivals(session: Session) -> None:
    """Images -> RUN/rivals, where the settings ask for rivals."""
    if (part := session.run.rivals) is None:
        return
    with session.left(part.file, f"scoring rivals ({forwards_left(session, part):,} forwards)") as (units, bar):
        for unit in units:
            _score_unit(session, part, unit)
            bar.update(len(unit.rows))


def _score_unit(session: Session, part: RivalPart, unit: Unit) -> None:
    run, labels = session.run, part.labels(unit.label)
    kept, extra = run.maps(unit)
    rows = scored_rows(unit, extra)
    template, numbers = run.settings.scoring.prompts[part.prompt], {label: k for k, label in enumerate(run.infos)}
    texts = tuple(run.infos[label].prompt(template) for label in labels)
    pictures = session.pictures(unit, rows) if labels else []  # none, where the only one that is named is its own
    found = {f"{row.row}.rivals": kept[f"{row.row}.null"][None][:0].astype(np.float16) for row in rows}
    found |= {f"{row.row}.rival": np.zeros(0, np.int64) for row in rows}
    asked = [Asked(row.digest, picture, texts) for row, picture in pictures]
    for place, (order, losses) in rival_losses(session.scorer, asked, kept_rivals(part.count, len(labels))):
        row = pictures[place][0].row
        maps = (losses - kept[f"{row}.null"]).astype(np.float16)
        if not np.isfinite(maps).all():
            raise ConfigError(f"{pictures[place][0].path}: its maps of other labels overflow, even in fp32; leave it out")
        found |= {f"{row}.rivals": maps, f"{row}.rival": np.array([numbers[labels[k]] for k in order], np.int64)}
    taken = part.forwards(replace(unit, rows=rows))
    part.write(unit, found, session.about(unit) | {"forwards": taken})
    session.count("U-Net forwards of rivals", taken)
