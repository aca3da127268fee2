"""What a stage makes of a unit -> its one file in RUN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ..machine.claims import give_back
from ..machine.tensors import write_unit
from .session import Read, Session
from .units import Placed, Unit, columns

if TYPE_CHECKING:  # torch comes with the model
    from ..scoring.maps import Maps


def write_maps(session: Session, unit: Unit, read: Read, found: Sequence[Maps]) -> None:
    """The maps of a unit's pictures -> RUN/maps, and their latents where they are kept."""
    run, keep, (pictures, skipped) = session.run, session.settings.compute.keep_latents, read
    tensors, latents = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for (row, _), maps in zip(pictures, found, strict=True):
        tensors |= maps.tensors(row, run.precision)
        if keep:
            latents[str(row.row)] = maps.latent.float().cpu().numpy()
    if keep:
        write_unit(run.latent_file(unit), run.mark, latents, {"label": unit.label})
    extra = {"label": unit.label, "rows": [row.row for row, _ in pictures], "draws": [maps.draws for maps in found]}
    write_unit(run.map_file(unit), run.mark, tensors, extra | {"skipped": [asdict(item) for item in skipped]})
    give_back(run.map_file(unit))
    session.log("images_scored", len(pictures))


def write_vectors(
    session: Session, unit: Unit, placed: Sequence[Placed], vectors: Sequence[np.ndarray], look: np.ndarray
) -> None:
    """The vectors of a unit's best patches -> RUN/features/KEY, with where they lie, their scores and looks."""
    run = session.run
    stacked = np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
    write_unit(
        run.feature_file(unit),
        run.feature_mark,
        {**columns(placed), "look": look, "vector": stacked},
        {"label": unit.label},
    )
    give_back(run.feature_file(unit))
    session.count("patches embedded", len(placed))
    session.log("patches_embedded", len(placed))


def keep_latents(session: Session) -> None:
    """Images that were scored without ``compute.keep_latents`` -> RUN/latents, by the VAE alone."""
    from ..scoring.maps import encode_images

    run = session.run
    with session.left(run.latent_file, "encoding images") as (units, bar):
        for unit in units:
            scored = set(run.maps(unit)[1]["rows"])
            pictures, _ = session.read([row for row in unit.rows if row.row in scored])
            keyed = [(row.digest, pixels) for row, pixels in pictures]
            made = {str(pictures[place][0].row): latent for place, latent in encode_images(session.scorer, keyed)}
            write_unit(run.latent_file(unit), run.mark, made, {"label": unit.label})
            bar.update(len(unit.rows))
