"""What a stage makes of a unit -> its one file in RUN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ..data.rows import Skipped
from ..machine.claims import give_back
from ..machine.tensors import write_unit
from ..settings.errors import ConfigError
from .session import Read, Session
from .units import Placed, Unit, columns

if TYPE_CHECKING:  # torch comes with the model
    from ..scoring.maps import Maps

UNSOUND = "its loss maps overflow, even in fp32"  # why an image is passed over


def write_maps(session: Session, unit: Unit, read: Read, found: Sequence[Maps]) -> None:
    """The maps of a unit's pictures -> RUN/maps, and their latents where they are kept; of what is not a number: the reason."""
    run, keep, (pictures, skipped) = session.run, session.settings.compute.keep_latents, read
    scored = [(row, maps) for (row, _), maps in zip(pictures, found, strict=True) if maps.sound]
    lost = [row for (row, _), maps in zip(pictures, found, strict=True) if not maps.sound]
    skipped = [*skipped, *(Skipped(row.path, row.label, UNSOUND) for row in lost)]
    tensors, latents = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for row, maps in scored:
        tensors |= maps.tensors(row)
        if keep:
            latents[str(row.row)] = maps.latent
    if keep:
        write_unit(run.latent_file(unit), run.mark, latents, session.about(unit))
    extra = {**session.about(unit), "rows": [row.row for row, _ in scored], "draws": [maps.draws for _, maps in scored]}
    if again := [row.row for row, maps in scored if maps.again]:
        extra["again"] = again
        session.count("images scored again in fp32", len(again))
    write_unit(run.map_file(unit), run.mark, tensors, extra | {"skipped": [asdict(item) for item in skipped]})
    give_back(run.map_file(unit))
    session.log("images_scored", len(scored))


def write_vectors(
    session: Session, unit: Unit, placed: Sequence[Placed], vectors: Sequence[np.ndarray], look: np.ndarray
) -> None:
    """The vectors of a unit's best patches -> RUN/features/KEY, with where they lie, their scores and looks."""
    run = session.run
    if lost := [patch.row for patch, vector in zip(placed, vectors, strict=True) if not np.isfinite(vector).all()]:
        raise ConfigError(
            f"{lost[0].path}: its features overflow, even in fp32; use other settings of features, or leave it out"
        )
    stacked = np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
    write_unit(
        run.feature_file(unit),
        run.feature_mark,
        {**columns(placed), "look": look, "vector": stacked},
        session.about(unit),
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
            write_unit(run.latent_file(unit), run.mark, made, session.about(unit))
            bar.update(len(unit.rows))
