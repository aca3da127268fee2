"""What a stage makes of a unit -> its one file in RUN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ..data.pixels import Pixels
from ..data.pool import looks
from ..data.rows import Row, Skipped
from ..machine.claims import give_back
from ..machine.tensors import write_unit
from ..machine.threads import Behind
from ..settings.errors import ConfigError
from .session import Read, Session
from .units import Held, Placed, Unit, columns, scored_rows, unit_by_unit

if TYPE_CHECKING:  # torch comes with the model
    from ..scoring.features import Patch
    from ..scoring.maps import Maps

UNSOUND = "its loss maps overflow, even in fp32"  # why an image is passed over


def packed(session: Session, unit: Unit, read: Read, found: Sequence[Maps]) -> Held:
    """The maps of a unit's pictures as they are stored; of those that are not numbers why not."""
    scored = [(row, maps) for (row, _), maps in zip(read[0], found, strict=True) if maps.sound]
    lost = [row for (row, _), maps in zip(read[0], found, strict=True) if not maps.sound]
    skipped = [*read[1], *(Skipped(row.path, row.label, UNSOUND) for row in lost)]
    extra = {"rows": [row.row for row, _ in scored], "draws": [maps.draws for _, maps in scored]}
    if again := [row.row for row, maps in scored if maps.again]:
        extra["again"] = again
        session.count("images scored again in fp32", len(again))
    tensors = {name: value for row, maps in scored for name, value in maps.tensors(row).items()}
    tensors["row"], seen = np.array(extra["rows"], np.int64), {row.row for row, _ in scored}
    tensors["look"] = looks(pixels for row, pixels in read[0] if row.row in seen)
    return tensors, session.about(unit) | extra | {"skipped": [asdict(item) for item in skipped]}


def write_maps(session: Session, unit: Unit, read: Read, found: Sequence[Maps], held: Held | None = None) -> None:
    """The maps of a unit's pictures -> RUN/maps, ``packed`` or to be, and their latents where they are kept."""
    run, (tensors, extra) = session.run, held or packed(session, unit, read, found)
    if session.settings.compute.keep_latents:
        latents = {str(row.row): maps.latent for (row, _), maps in zip(read[0], found, strict=True) if maps.sound}
        write_unit(run.latent_file(unit), run.mark, latents, session.about(unit))
    write_unit(run.map_file(unit), run.mark, tensors, extra)
    give_back(run.map_file(unit))
    session.log("images_scored", len(extra["rows"]))


def cut(placed: Sequence[Placed], pictures: Sequence[tuple[Row, Pixels]]) -> list[Patch]:
    """Best patches out of the pixels of their images."""
    from ..scoring.features import Patch

    pixels = {row.row: image for row, image in pictures}
    return [Patch(row.digest, pixels[row.row], box) for row, box, *_ in placed]


def embedded(
    session: Session, group: Sequence[Unit], placed: Sequence[Sequence[Placed]], patches: Sequence[Sequence[Patch]]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Of each unit of a group: its number, and the vectors of its best patches, ``placed`` and cut."""
    from ..scoring.features import embed_patches

    prompts = [session.run.prompt(unit.label) for unit, boxes in zip(group, placed, strict=True) for _ in boxes]
    found = embed_patches(session.scorer, list(chain.from_iterable(patches)), prompts, session.settings.features)
    return unit_by_unit(list(map(len, placed)), found)


def with_vectors(
    session: Session, group: Sequence[Unit], read: Sequence[Read], whole: Iterable[tuple[int, list[Maps]]], later: Behind
) -> Iterator[tuple[int, list[Maps], Held]]:
    """The maps of each unit of a group, packed, once all of them are there and the vectors of its best patches are written.

    Maps are to be written last: a unit whose maps are there has its vectors too.
    """

    def place(unit: Unit, part: Read, maps: Sequence[Maps]) -> tuple[Held, list[Placed], list[Patch]]:
        placed = session.run.boxes(unit, held := packed(session, unit, part, maps))
        return held, placed, cut(placed, part[0])

    found = {number: (maps, later(place, group[number], read[number], maps)) for number, maps in whole}
    held, placed, patches = zip(*(found[number][1].result() for number in range(len(group))), strict=True)
    for number, vectors in embedded(session, group, placed, patches):
        later(write_vectors, session, group[number], placed[number], patches[number], vectors)
        yield number, found[number][0], held[number]


def write_vectors(
    session: Session, unit: Unit, placed: Sequence[Placed], patches: Sequence[Patch], vectors: Sequence[np.ndarray]
) -> None:
    """The vectors of a unit's best patches -> RUN/features/KEY, with where they lie, their scores and looks."""
    run = session.run
    if lost := [patch.row for patch, vector in zip(placed, vectors, strict=True) if not np.isfinite(vector).all()]:
        raise ConfigError(
            f"{lost[0].path}: its features overflow, even in fp32; use other settings of features, or leave it out"
        )
    stacked = np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)
    look = looks(patch.pixels for patch in patches)
    tensors = {**columns(placed), "look": look, "vector": stacked}
    write_unit(run.feature_file(unit), run.feature_mark, tensors, session.about(unit))
    give_back(run.feature_file(unit))
    session.count("patches embedded", len(placed))
    session.log("patches_embedded", len(placed))


def keep_latents(session: Session) -> None:
    """Images that were scored without ``compute.keep_latents`` -> RUN/latents, by the VAE alone."""
    from ..scoring.maps import encode_images

    run = session.run
    with session.left(run.latent_file, "encoding images") as (units, bar):
        for unit in units:
            pictures, _ = session.read(scored_rows(unit, run.maps(unit)[1]))
            keyed = [(row.digest, pixels) for row, pixels in pictures]
            made = {str(pictures[place][0].row): latent for place, latent in encode_images(session.scorer, keyed)}
            write_unit(run.latent_file(unit), run.mark, made, session.about(unit))
            bar.update(len(unit.rows))
