"""THE WHOLE METHOD ON ONE PAGE: labelled images in, distilled set out.  Start here.

    score    images  -> differential loss maps and gap maps     scoring.py     (the one expensive pass, stored)
    embed    maps    -> best patches -> DIFT vectors            patches.py, features.py
    select   vectors -> clusters, ranks, picks -> mosaics       selection.py, assembly.py

Each stage reads what the one before left in RUN (store.py) and skips what is there already, so that a stage can be
stopped at any moment and started again, by any number of processes.  session.py opens the run that they work on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .data.images import ImageData, Row, Skipped
from .evaluation.teachers import Teacher
from .machine.claims import ahead
from .machine.formats import read_extra, read_unit, write_unit
from .machine.progress import Progress, quiet
from .runs import run as store
from .runs.session import Session, start
from .scoring import features
from .scoring import maps as scoring
from .scoring.patches import Box
from .sets import assembly, baselines, selection
from .sets.candidates import kept_rows, mosaic_factor, most_patches
from .settings.errors import ConfigError, DataError, StoreError
from .settings.settings import Settings, fingerprint, identity


def distill(source: str, run: Path, sets: Mapping[int, Path], settings: Settings, progress: Progress = quiet) -> Session:
    """The main job: one scoring pass over ``source``, then one distilled set for each IPC, at the folders given.

    What cannot be selected is refused before anything is scored.
    """
    check_method(settings)
    session = start(source, run, settings, progress)
    for ipc, out in sets.items():
        check_set(session, ipc, out)
    score(session)
    embed(session)
    for ipc, out in sets.items():
        select(session, ipc, out)
    return session


def score(session: Session) -> None:
    """Images -> RUN/maps (paper 3.1)."""
    s, run = session.settings, session.run
    before = {unit.name for unit in session.units if run.map_file(unit).exists()}
    with session.left(run.map_file, "scoring images") as (units, bar):
        for unit, (pictures, skipped) in ahead(units, lambda unit: session.read(unit.rows)):
            prompts = [session.classes[unit.label].prompt(template) for template in s.scoring.prompts]
            keyed = [(row.digest, pixels) for row, pixels in pictures]
            score_some = partial(
                scoring.score_class, session.model, prompts=prompts, settings=s.scoring, patches=s.patches, seed=s.seed
            )
            tensors: dict[str, np.ndarray] = {}
            latents: dict[str, np.ndarray] = {}
            draws = [0] * len(pictures)
            for place, maps in session.fitting(keyed, score_some):
                row = pictures[place][0]
                tensors |= _finite(maps, row.path).tensors(row.row)
                draws[place] = maps.draws
                if s.compute.keep_latents:
                    latents[str(row.row)] = maps.latent.float().cpu().numpy()
                bar.update()
            bar.update(len(skipped))
            extra = {"label": unit.label, "rows": [row.row for row, _ in pictures], "draws": draws}
            extra["skipped"] = [asdict(item) for item in skipped]
            if s.compute.keep_latents:  # first: a unit whose maps are there is done
                write_unit(run.latent_file(unit), run.mark, latents, {"label": unit.label})
            write_unit(run.map_file(unit), run.mark, tensors, extra)
            session.log("images_scored", len(pictures))
    if session.workers.is_main:
        extras = {unit.name: read_extra(run.map_file(unit)) for unit in session.units}
        store.write_skipped(run.path, session.data.skipped, [Skipped(**x) for e in extras.values() for x in e["skipped"]])
        session.counts["images passed over"] = len(store.read_skipped(run.path))
        new = [draws for name, extra in extras.items() if name not in before for draws in extra["draws"]]
        session.count("units already scored", len(before))
        session.count("images scored", len(new))
        session.count("U-Net forwards", sum(new) * (1 + len(s.scoring.prompts)))


def embed(session: Session) -> None:
    """RUN/maps -> the best patches and their vectors -> RUN/features/KEY (paper 3.2)."""
    s = session.settings
    if s.selection.method == "diffsel-noclusters":
        return  # ranks by score alone
    weights = features.clip_digest(s.features.clip_model) if s.features.kind == "clip" else None
    session.run.open_features(session.feature_identity, weights)
    with session.left(session.feature_file, "embedding patches") as (units, bar):
        for unit, (boxes, patches) in ahead(units, lambda unit: _patches(session, unit)):
            prompt = session.classes[unit.label].prompt(s.scoring.prompts[s.patches.prompt])
            embed_some = partial(features.embed_patches, session.model, prompt=prompt, settings=s.features, seed=s.seed)
            vectors = dict(session.fitting(patches, embed_some))
            tensors = {
                **_columns(boxes),
                "vector": np.stack([vectors[i] for i in range(len(boxes))]) if boxes else np.zeros((0, 0), np.float32),
            }
            write_unit(session.feature_file(unit), session.feature_mark, tensors, {"label": unit.label})
            session.count("patches embedded", len(boxes))
            bar.update(len(unit.rows))
            session.log("patches_embedded", len(boxes))


def select(session: Session, ipc: int, out: Path, classes: Sequence[str] | None = None) -> bool:
    """RUN -> SET, on the main process, without any network.  False where this very set is there already."""
    s, names = session.settings, known_classes(session.data, classes)
    record = provenance(session, ipc, names)
    if not session.workers.is_main or assembly.check_set(out, record):
        return False
    pool = (candidates(session, name) for name in names)  # class by class: all vectors together may not fit into memory
    told = session.progress(pool, total=len(names), desc=f"selecting ipc {ipc}", unit="class")
    jobs = 1 if len(session.data.rows) < 20_000 else -1
    picks = selection.select(told, ipc, record["factor"], s.selection, s.seed, jobs)
    assembly.assemble(out, picks, session.data, s.assembly, record, session.progress)
    session.count("distilled images", ipc * len(names))
    return True


def select_baseline(data: ImageData, ipc: int, out: Path, s: Settings, classes: Sequence[str] | None = None,
                    teacher: Teacher | None = None, progress: Progress = quiet) -> bool:  # fmt: skip
    """Images -> SET by `random` or `rded`, through the same Selection and assembly; False where it is there already.

    ``teacher`` knows the classes in the order asked for.  Raises SelectionError, DataError, StoreError.
    """
    names = known_classes(data, classes)
    limit = {label: min(len(data.of_class(label)), s.baseline.pool if teacher else len(data.rows)) for label in names}
    factor = s.assembly.factor_at(ipc, s.selection.method)
    if not s.assembly.factor and min(limit.values()) < ipc * factor**2:
        factor = 1
    record = baseline_provenance(data, ipc, factor, s, names, teacher)
    if assembly.check_set(out, record):
        return False
    picks = {}
    for number, label in enumerate(names):
        if teacher:
            picks[label] = baselines.select_rded(
                data, label, number, ipc, factor, s.baseline, s.seed, teacher, judge_size(s), progress
            )
        else:
            picks[label] = baselines.select_random(data, label, ipc, factor, s.baseline, s.seed)
    assembly.assemble(out, picks, data, s.assembly, record, progress)
    return True


def _patches(session: Session, unit: store.Unit) -> tuple[list[tuple[Row, Box, float]], list[features.Patch]]:
    """The best patches of a scored unit, and their pixels."""
    boxes = session.boxes(unit)
    pictures, lost = session.read(list(dict.fromkeys(row for row, _, _ in boxes)))
    if lost:
        raise DataError(f"{lost[0].path} was scored but cannot be read any more: {lost[0].reason}")
    pixels = {row.row: image for row, image in pictures}
    return boxes, [features.Patch(row.digest, pixels[row.row], box) for row, box, _ in boxes]


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _finite(maps: scoring.Maps, path: str) -> scoring.Maps:
    if not all(np.isfinite(part).all() for part in (maps.differential, maps.gap, maps.null)):
        raise ConfigError(f"{path}: its loss maps overflow; the model does not work in this compute.precision, use fp32")
    return maps


def known_classes(data: ImageData, names: Sequence[str] | None) -> list[str]:
    """The classes asked for (all by default).  Raises DataError for one that the data lacks."""
    there = [info.folder for info in data.classes]
    for name in dict.fromkeys(names or ()):
        if name not in there:
            near = get_close_matches(name, there, n=3) or there[:8]
            raise DataError(f"class {name!r} is not in {data.root}; there is {', '.join(near)}")
    return list(dict.fromkeys(names or there))


def candidates(session: Session, label: str) -> selection.Candidates:
    """All patches of a class, from the store, without label suspects as asked.  Raises StoreError where a stage has not
    finished."""
    parts = [_unit_patches(session, unit) for unit in session.units if unit.label == label]
    parts = [part for part in parts if len(part["row"])] or parts[:1]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in ("row", "box", "score", "vector")}
    kept = np.isin(joined["row"], list(kept_rows(session, label)))
    return selection.Candidates(label, *(joined[key][kept] for key in ("row", "box", "score", "vector")))


def check_method(settings: Settings) -> None:
    """Raises ConfigError for a baseline: it reads no scoring pass, and would get diffsel's patches under its name."""
    if (name := settings.selection.method) in ("random", "rded"):
        raise ConfigError(f"selection.method = {name!r} needs no scoring pass: use `diffsel select DATA --method {name}`")


def check_set(session: Session, ipc: int, out: Path, classes: Sequence[str] | None = None) -> None:
    """Refuse, before anything is computed, a set that cannot be made: SelectionError where a class cannot give that
    many images, StoreError where ``out`` holds something else, DataError for an unknown class, ConfigError for a baseline."""
    check_method(session.settings)
    names = known_classes(session.data, classes)
    record = provenance(session, ipc, names)
    assembly.check_set(out, record)
    factor, most = record["factor"], most_patches(session, names)
    for label in names:
        if most[label] < ipc * factor**2:
            raise selection.too_few(label, most[label], ipc, factor)


def _unit_patches(session: Session, unit: store.Unit) -> dict[str, np.ndarray]:
    if session.settings.selection.method == "diffsel-noclusters":
        boxes = session.boxes(unit)
        return {**_columns(boxes), "vector": np.zeros((len(boxes), 0), np.float32)}
    file = session.feature_file(unit)
    if not file.exists():
        raise StoreError(f"{session.run.path}: {unit.name} has no features for these settings yet; run `diffsel embed`")
    return read_unit(file, session.feature_mark)[0]


def _columns(boxes: Sequence[tuple[Any, Box, float]]) -> dict[str, np.ndarray]:
    return {
        "row": np.array([row.row for row, _, _ in boxes], np.int64),
        "box": np.array([box for _, box, _ in boxes], np.int64).reshape(-1, 4),
        "score": np.array([score for _, _, score in boxes], np.float64),
    }


def judge_size(s: Settings) -> int:
    """Side of what RDED's teacher sees, pixels: the student's input, as far as it is known."""
    return s.protocol.size or s.assembly.size


def baseline_provenance(data: ImageData, ipc: int, factor: int, s: Settings, classes: Sequence[str],
                        teacher: Teacher | None) -> dict[str, Any]:  # fmt: skip
    """Everything that decides a baseline set's bytes."""
    return {
        "format": 1,
        "ipc": ipc,
        "factor": factor,
        "seed": s.seed,
        "classes": list(classes),
        "image_size": s.data.image_size,
        "images": fingerprint([[row.path, row.label, row.digest] for row in data.rows]),
        "selection": {"method": s.selection.method},
        "teacher": {"network": teacher.name, "digest": teacher.digest, "size": judge_size(s)} if teacher else None,
        "baseline": identity(s.baseline),
        "assembly": identity(s.assembly),
    }


def provenance(session: Session, ipc: int, classes: Sequence[str]) -> dict[str, Any]:
    """Everything that decides a set's bytes."""
    s = session.settings
    return {
        "format": 1,
        "ipc": ipc,
        "factor": mosaic_factor(session, ipc, classes),
        "run": session.run.mark,
        "seed": s.seed,
        "classes": list(classes),
        "image_size": s.data.image_size,
        "model": session.run.record["identity"]["model"],
        "scoring": identity(s.scoring),
        **session.feature_identity,
        "selection": identity(s.selection),
        "assembly": identity(s.assembly),
    }
