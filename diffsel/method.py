"""THE WHOLE METHOD ON ONE PAGE: labelled images in, distilled set out.  Start here.

    score    images  -> differential loss maps and gap maps     scoring/maps.py        (the one expensive pass, stored)
    embed    maps    -> best patches -> DIFT vectors            scoring/patches.py, scoring/features.py
    select   vectors -> clusters, ranks, picks -> mosaics       sets/selection.py, sets/assembly.py

Each stage reads what the one before left in RUN (runs/run.py) and skips what is there already, so that a stage can be
stopped at any moment and started again, by any number of processes.  runs/session.py opens the run that they work on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .data.pool import copies_note, known_classes, near_note
from .data.rows import Skipped
from .machine.claims import ahead
from .machine.files import AsPath
from .machine.progress import Progress, bars, quiet
from .machine.tensors import read_extra
from .machine.threads import Behind
from .runs.index import read_skipped, write_skipped
from .runs.knowledge import what_it_knows
from .runs.session import Session, open_features, start
from .runs.units import Placed, Unit, devices, mixed, unit_by_unit
from .runs.writing import cut, embedded, keep_latents, with_vectors, write_maps, write_vectors
from .sets.assembly import assemble
from .sets.candidates import candidates, check_method, check_set, mosaic_factor, near_pairs, provenance
from .sets.opening import DistilledSet, is_there, read_set
from .sets.selection import select_all
from .settings.settings import DEFAULT, Settings

if TYPE_CHECKING:  # torch comes with the model
    from .scoring.features import Patch


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
    score(session, vectors=settings.selection.clustered and not settings.patches.rivals)  # before rivals there are no boxes
    embed(session)  # what an earlier start has scored
    last = session.run.rivals.file if session.run.rivals else session.run.map_file
    file_of = session.run.feature_file if settings.selection.clustered else last
    for ipc, out in sets.items() if session.workers.all_made(session.run.units, file_of, session.note) else ():
        select(session, ipc, out)
    return session


def score(session: Session, vectors: bool = False) -> None:
    """Images -> RUN/maps (paper 3.1); with ``vectors`` also what ``embed`` makes of them, while their pixels are in memory."""
    from .scoring.maps import Asked, score_all  # brings torch, which selection does without

    s, run = session.settings, session.run
    before = {unit.name for unit in run.units if run.map_file(unit).exists()}
    if vectors and len(before) < len(run.units):
        open_features(run)
    with session.left(run.map_file, "scoring images") as (units, bar), Behind() as later:
        for group, read in ahead(units, lambda group: session.read_units([unit.rows for unit in group])):
            asked = []
            for unit, (pictures, _) in zip(group, read, strict=True):
                prompts = tuple(run.infos[unit.label].prompt(template) for template in s.scoring.prompts)
                asked += [Asked(row.digest, pixels, prompts, unit.name) for row, pixels in pictures]
            found = score_all(session.scorer, asked, s.patches, s.selection)
            whole = unit_by_unit([len(pictures) for pictures, _ in read], found, bar.update)
            each = with_vectors(session, group, read, whole, later) if vectors else ((*part, None) for part in whole)
            for number, maps, held in each:
                later(write_maps, session, group[number], read[number], maps, held)
                bar.update(len(read[number][1]))
    if s.compute.keep_latents:
        keep_latents(session)  # of units that were scored without
    if s.patches.rivals:
        from .runs.rivals import score_rivals

        score_rivals(session)
    if session.workers.is_main and session.workers.all_made(run.units, run.map_file, session.note):
        extras = {unit.name: read_extra(run.map_file(unit)) for unit in run.units}
        write_skipped(run.path, session.data.skipped, [Skipped(**x) for e in extras.values() for x in e["skipped"]])
        session.counts["images passed over"] = len(read_skipped(run.path))
        new = [draws for name, extra in extras.items() if name not in before for draws in extra["draws"]]
        session.count("units already scored", len(before))
        session.count("images scored", len(new))
        session.count("U-Net forwards", sum(new) * (1 + len(s.scoring.prompts)))
        session.notes |= dict.fromkeys(filter(None, [*what_it_knows(run), mixed(devices(extras.values()))]))


def embed(session: Session) -> None:
    """RUN/maps -> the best patches and their vectors -> RUN/features/KEY (paper 3.2)."""
    s, run = session.settings, session.run
    files = [run.feature_folder / "settings.yaml", *map(run.feature_file, run.units)]
    if not s.selection.clustered or (all(file.exists() for file in files) and s.features.kind != "clip"):
        return  # ranks by score alone; or all is there, and of the run's own model
    open_features(run)

    def load(group: list[Unit]) -> tuple[list[list[Placed]], list[list[Patch]]]:
        placed = [run.boxes(unit) for unit in group]
        read = session.read_again([list(dict.fromkeys(patch.row for patch in boxes)) for boxes in placed])
        return placed, [cut(boxes, pictures) for boxes, pictures in zip(placed, read, strict=True)]

    with session.left(run.feature_file, "embedding patches") as (units, bar), Behind() as later:
        for group, (placed, patches) in ahead(units, load):
            for number, vectors in embedded(session, group, placed, patches):
                later(write_vectors, session, group[number], placed[number], patches[number], vectors)
                bar.update(len(group[number].rows))


def select(session: Session, ipc: int, out: AsPath, classes: Sequence[str] | None = None) -> bool:
    """RUN -> SET (paper 3.2, B.1), on the main process, without any network.  False where this very set is there already."""
    s, run, out = session.settings, session.run, Path(out)
    names = known_classes(run.data, classes)
    factor, note = mosaic_factor(run, ipc, names)
    for text in filter(None, (note, copies_note(run.data, names), near_note(near_pairs(run, names)))):
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
