"""THE WHOLE METHOD ON ONE PAGE: labelled images in, distilled set out.  Start here.

    score    images  -> differential loss maps and gap maps     scoring/maps.py        (the one expensive pass, stored)
    embed    maps    -> best patches -> DIFT vectors            scoring/patches.py, scoring/features.py
    select   vectors -> clusters, ranks, picks -> mosaics       sets/selection.py, sets/assembly.py

Each stage reads what the one before left in RUN (runs/run.py) and skips what is there already, so that a stage can be
stopped at any moment and started again, by any number of processes.  runs/session.py opens the run that they work on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from .data.pool import copies_note, known_classes, looks
from .data.rows import Skipped
from .machine.claims import ahead
from .machine.files import AsPath
from .machine.progress import Progress, bars, quiet
from .machine.tensors import read_extra, write_unit
from .runs.index import read_skipped, write_skipped
from .runs.knowledge import what_it_knows
from .runs.session import Session, keep_latents, open_features, start
from .runs.units import Unit, columns
from .sets.assembly import assemble
from .sets.candidates import candidates, check_method, check_set, mosaic_factor, near_note, provenance
from .sets.opening import DistilledSet, is_there, read_set
from .sets.selection import select_all
from .settings.errors import DataError
from .settings.settings import DEFAULT, Settings


def distill(
    source: AsPath,
    run: AsPath,
    ipc: int | Iterable[int] | Mapping[int, AsPath],
    settings: Settings = DEFAULT,
    progress: Progress = bars,
) -> dict[int, DistilledSet]:
    """The whole job: images -> RUN -> a distilled set for each IPC, in RUN/ipcN, or where ``ipc`` says.

    >>> sets = diffsel.distill("photos", "run", [1, 2], Settings(model="demo", image_size=64, draws=3))
    >>> sets[2]
    DistilledSet('run/ipc2': 4 images of 2 classes, chosen by diffsel)

    Started again, it goes on where it was.  Raises ConfigError, DataError, SelectionError or StoreError.
    """
    chosen = ipc if isinstance(ipc, Mapping) else {n: Path(run) / f"ipc{n}" for n in ([ipc] if isinstance(ipc, int) else ipc)}
    places = {n: Path(out) for n, out in chosen.items()}
    session = make_sets(source, run, places, settings, progress)
    session.workers.wait_for([out / "set.yaml" for out in places.values()])
    return {n: read_set(out) for n, out in places.items()}


def make_sets(source: AsPath, run: AsPath, sets: Mapping[int, Path], settings: Settings, progress: Progress = quiet) -> Session:
    """One pass over ``source``, then a set for each IPC at its folder; what cannot be selected is refused before."""
    check_method(settings)
    session = start(source, run, settings, progress)
    for ipc, out in sets.items():
        check_set(session.run, ipc, out)
    score(session)
    embed(session)
    for ipc, out in sets.items():
        select(session, ipc, out)
    return session


def score(session: Session) -> None:
    """Images -> RUN/maps (paper 3.1)."""
    from .scoring.maps import score_class  # brings torch, which selection does without

    s, run = session.settings, session.run
    before = {unit.name for unit in run.units if run.map_file(unit).exists()}
    with session.left(run.map_file, "scoring images") as (units, bar):
        for unit, (pictures, skipped) in ahead(units, lambda unit: session.read(unit.rows)):
            prompts = [run.infos[unit.label].prompt(template) for template in s.scoring.prompts]
            keyed = [(row.digest, pixels) for row, pixels in pictures]
            tensors: dict[str, np.ndarray] = {}
            latents: dict[str, np.ndarray] = {}
            draws = [0] * len(pictures)
            for place, maps in session.fitting(keyed, partial(score_class, prompts=prompts, patches=s.patches)):
                row = pictures[place][0]
                tensors |= maps.tensors(row, run.precision)
                draws[place] = maps.draws
                if s.compute.keep_latents:
                    latents[str(row.row)] = maps.latent.float().cpu().numpy()
                bar.update()
            bar.update(len(skipped))
            extra = {"label": unit.label, "rows": [row.row for row, _ in pictures], "draws": draws}
            extra["skipped"] = [asdict(item) for item in skipped]
            if s.compute.keep_latents:
                write_unit(run.latent_file(unit), run.mark, latents, {"label": unit.label})
            write_unit(run.map_file(unit), run.mark, tensors, extra)
            session.log("images_scored", len(pictures))
    if s.compute.keep_latents:
        keep_latents(session)  # of units that were scored without
    if session.workers.is_main:
        extras = {unit.name: read_extra(run.map_file(unit)) for unit in run.units}
        write_skipped(run.path, session.data.skipped, [Skipped(**x) for e in extras.values() for x in e["skipped"]])
        session.counts["images passed over"] = len(read_skipped(run.path))
        new = [draws for name, extra in extras.items() if name not in before for draws in extra["draws"]]
        session.count("units already scored", len(before))
        session.count("images scored", len(new))
        session.count("U-Net forwards", sum(new) * (1 + len(s.scoring.prompts)))
        session.notes |= dict.fromkeys(what_it_knows(run))


def embed(session: Session) -> None:
    """RUN/maps -> the best patches and their vectors -> RUN/features/KEY (paper 3.2)."""
    s, run = session.settings, session.run
    clip, files = s.features.kind == "clip", [run.feature_folder / "settings.yaml", *map(run.feature_file, run.units)]
    if not s.selection.clustered or (all(file.exists() for file in files) and not clip):
        return  # ranks by score alone; or all is there, and of the run's own model
    from .scoring.features import Patch, clip_digest, embed_patches

    open_features(run, clip_digest(s.features.clip_model) if clip else None)

    def patches(unit: Unit) -> tuple[list, list[Patch]]:
        boxes = run.boxes(unit)
        pictures, lost = session.read(list(dict.fromkeys(row for row, _, _ in boxes)))
        if lost:
            raise DataError(f"{lost[0].path} was scored but cannot be read any more: {lost[0].reason}")
        pixels = {row.row: image for row, image in pictures}
        return boxes, [Patch(row.digest, pixels[row.row], box) for row, box, _ in boxes]

    with session.left(run.feature_file, "embedding patches") as (units, bar):
        for unit, (boxes, cut) in ahead(units, patches):
            make = partial(embed_patches, prompt=run.prompt(unit.label), settings=s.features)
            vectors = dict(session.fitting(cut, make))
            stacked = np.stack([vectors[i] for i in range(len(boxes))]) if boxes else np.zeros((0, 0), np.float32)
            means = run.means(unit, [row.row for row, _, _ in boxes], [box for _, box, _ in boxes])
            found = {**columns(boxes), **means, "look": looks(patch.pixels for patch in cut), "vector": stacked}
            write_unit(run.feature_file(unit), run.feature_mark, found, {"label": unit.label})
            session.count("patches embedded", len(boxes))
            bar.update(len(unit.rows))
            session.log("patches_embedded", len(boxes))


def select(session: Session, ipc: int, out: AsPath, classes: Sequence[str] | None = None) -> bool:
    """RUN -> SET (paper 3.2, B.1), on the main process, without any network.  False where this very set is there already."""
    s, run, out = session.settings, session.run, Path(out)
    names = known_classes(run.data, classes)
    factor, note = mosaic_factor(run, ipc, names)
    for text in filter(None, (note, copies_note(run.data, names), near_note(run, names))):
        session.note(text)
    record = provenance(run, ipc, factor, names)
    if not session.workers.is_main or is_there(out, record):
        return False
    with session.workers.awaited(out):  # others may wait for it
        pool = (candidates(run, name) for name in names)  # class by class: all vectors together may not fit into memory
        told = session.progress(pool, total=len(names), desc=f"selecting ipc {ipc}", unit="class")
        picks = select_all(told, ipc, factor, s.selection, s.seed, jobs=1 if len(run.data.rows) < 20_000 else -1)
        assemble(out, picks, run.data, s.assembly, record, session.progress, s.compute.workers * session.workers.count)
    session.count("distilled images", ipc * len(names))
    return True
