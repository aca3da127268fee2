"""Label suspects: images whose label raises the model's loss, read off the stored maps at no cost.

The statistic of an image is the mean of -D over the whole image (loss without the label minus loss with it; paper 3.1):
negative where the words of the label make the prediction worse.  The whole image, not the best patch: of any image the
best patch is a lucky one, and the sum over all cells has the most draws behind it (RESULTS.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, fields

from ..machine.formats import as_csv
from ..runs.run import Run
from ..runs.units import Means
from ..settings.sections import SelectionSettings


@dataclass(frozen=True)
class Suspect:
    """One scored image; ``rank`` 0 is the most suspect of its class, the one with the lowest ``statistic``."""

    label: str
    rank: int
    statistic: float  # mean of -D, in units of the noise's variance; negative: the label raises the loss
    row: int
    path: str
    nats: float | None = None  # log p(image | label) - log p(image), where the unit of its statistic is known


def suspects(run: Run, label: str, means: Sequence[Means] | None = None) -> list[Suspect]:
    """Every scored image of a class, most suspect first (ties: the lower row); ``means``: of its images, read by default.

    Raises StoreError where one is not scored.
    """
    if means is None:
        means = [each for unit in run.of_class(label) for each in run.image_means(unit)]
    found = sorted((-d, row.row, row) for row, d, _ in means)
    return [
        Suspect(label, rank, d, row.row, row.path, run.nats and d * run.nats * math.prod(run.data.size(row)))
        for rank, (d, _, row) in enumerate(found)
    ]


def left_out(run: Run, label: str, drawn: Collection[int]) -> set[int]:
    """Of the ``drawn`` rows of a class those that `select --drop-suspects` and `--drop-below` leave out."""
    s = run.settings.selection
    if s.drop_suspects is None and s.drop_below is None:
        return set()
    found = [each for each in suspects(run, label) if each.row in drawn]
    below = set() if s.drop_below is None else {each.row for each in found if each.statistic < s.drop_below}
    return {each.row for each in found[: share_of(len(found), s)]} | below


def share_of(images: int, settings: SelectionSettings) -> int:
    """How many of a class's images ``drop_suspects`` leaves out: rounded down."""
    return int(images * (settings.drop_suspects or 0) + 1e-9)


def suspect_table(found: Sequence[Suspect]) -> bytes:
    """class, rank, statistic, row, path, nats: one line an image, as CSV."""
    return as_csv(["class", *(field.name for field in fields(Suspect)[1:])], [astuple(each) for each in found])
